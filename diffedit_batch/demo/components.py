"""The parts of the small text-to-image model of scenes: built from scratch, loaded, saved.

The folder has the layout of a diffusers `StableDiffusionPipeline`, so the model loads through the
same `from_pretrained` as any real checkpoint.
"""

import copy
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffedit_batch.demo.scenes import COLORS, GROUNDS, SHAPES, SIZE

CAPTION_TOKENS = 24
TEXT_WIDTH = 96
LATENT_SIZE = SIZE // 8
WORDS = ("a", "an", "and", "on", "nothing", *COLORS, *SHAPES, *GROUNDS)
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Components:
    """What a latent diffusion pipeline consists of."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler


def build_components(seed: int) -> Components:
    """Return untrained components."""
    torch.manual_seed(seed)
    tokenizer = _build_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CAPTION_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        # Attention at 8 x 8 and 4 x 4 only: at 16 x 16 it costs as much as all the rest together.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    return Components(vae, CLIPTextModel(text_config), tokenizer, unet, scheduler)


def load_components(folder: Path) -> Components:
    """Return the components of a saved pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    return Components(
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.unet,
        DDIMScheduler.from_config(pipeline.scheduler.config),
    )


def save_components(components: Components, folder: Path) -> None:
    """Write a pipeline folder; an older one at that place stays whole until the new one is.

    The UNet, by far the largest part, is kept in half precision.
    """
    partial, old = (
        folder.with_name(f"{folder.name}.partial"),
        folder.with_name(f"{folder.name}.old"),
    )
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=copy.deepcopy(components.unet).half(),
        scheduler=components.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(partial, safe_serialization=True)
    for path in partial.rglob("*.json"):
        _forget_origin(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _forget_origin(path: Path) -> None:
    """Remove the path that a part was loaded from, which says nothing to who gets the file."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _build_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer in CLIP's format: every letter, and the words of captions whole."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges: dict[tuple[str, str], str] = {}
    for word in sorted(WORDS, key=len, reverse=True):  # so that "and" does not split "sand"
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for left, right in itertools.pairwise(itertools.accumulate(pieces)):
            merges[left, right.removeprefix(left)] = right
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *merges.values()])
    vocabulary = {token: index for index, token in enumerate([*tokens, _START, _END])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        model_max_length=CAPTION_TOKENS,
    )
