"""A captioner of scenes: a small BLIP, built and trained from scratch.

Captions alone teach a vision transformer slowly. While it trains, a linear map of the patches
therefore also tells which colours, shapes and grounds each of them shows, and is thrown away
afterwards.

Shapes: B pictures of a batch, L caption tokens, D features, A attributes that a patch may show,
S x S pixels, g x g patches.
"""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

from diffedit_batch.config import CaptionsConfig
from diffedit_batch.demo.components import WORDS
from diffedit_batch.demo.lessons import GRID, IMAGE_SIZE, draw_batch, draw_lessons
from diffedit_batch.demo.optimise import Stage, optimise
from diffedit_batch.demo.scenes import ATTRIBUTES

logger = logging.getLogger(__name__)

PREFIX = CaptionsConfig().prefix
CAPTIONER = Stage(steps=12_500, batch_size=48, learning_rate=7e-4, uses_muon=True)
NUM_SCENES = 12_000
_WIDTH = 128
# The prefix and 128 more: a caption that does not end must not run out of positions.
_POSITIONS = 136
_PREFIX_TOKENS = 1 + len(PREFIX.split())  # with the one that generation starts from
_IGNORED = -100  # what the loss of transformers leaves out


@dataclass(frozen=True)
class Captioner:
    """What captioning consists of."""

    model: BlipForConditionalGeneration
    processor: BlipProcessor


def build_captioner(seed: int) -> Captioner:
    """Return an untrained captioner."""
    torch.manual_seed(seed)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
    words = dict.fromkeys([*special, *PREFIX.split(), *WORDS])
    tokenizer = BertTokenizer(
        vocab={word: index for index, word in enumerate(words)}, bos_token="[DEC]"
    )
    images = BlipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    shape = {
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_attention_heads": 4,
        "projection_dim": _WIDTH,
    }
    config = BlipConfig(
        text_config={
            **shape,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": _POSITIONS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **shape,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": IMAGE_SIZE // GRID,
            "initializer_range": 0.02,
        },
        projection_dim=_WIDTH,
        image_text_hidden_size=_WIDTH,
    )
    model = BlipForConditionalGeneration(config)
    model.vision_model.embeddings.position_embedding.data = _make_positions()
    return Captioner(model, BlipProcessor(images, tokenizer))


def save_captioner(captioner: Captioner, folder: Path) -> None:
    """Write model and processor, to be loaded with `from_pretrained`."""
    captioner.model.save_pretrained(folder)
    captioner.processor.save_pretrained(folder)


def train_captioner(
    output: Path,
    stage: Stage = CAPTIONER,
    num_scenes: int = NUM_SCENES,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train, or go on with training; the newest captioner is in `output / "captioner"`."""
    captioner = build_captioner(seed)
    lessons = draw_lessons(num_scenes, functools.partial(tokenize, captioner))
    logger.info("drew %d scenes", num_scenes)
    reader = nn.Linear(_WIDTH, len(ATTRIBUTES))
    network = nn.ModuleDict({"model": captioner.model, "reader": reader}).to(device)

    def loss_of(generator: np.random.Generator, batch_size: int) -> Tensor:
        batch = draw_batch(lessons, batch_size, generator)
        return caption_loss(captioner, reader, *(part.to(device) for part in batch))

    def save(average: nn.Module) -> None:
        folder = output / "captioner"
        save_captioner(Captioner(average.model, captioner.processor), folder)

    output.mkdir(parents=True, exist_ok=True)
    optimise(network, loss_of, stage, output / "captioner.pt", seed, on_save=save)


def tokenize(captioner: Captioner, captions: list[str]) -> Tensor:
    """Return prefix and captions as generation goes through them, padded: (B, L)."""
    tokenizer = captioner.processor.tokenizer
    texts = [f"{PREFIX} {caption}" for caption in captions]
    tokens: Tensor = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    tokens[:, 0] = tokenizer.bos_token_id
    return tokens


def caption_loss(
    captioner: Captioner, reader: nn.Module, images: Tensor, words: Tensor, tokens: Tensor
) -> Tensor:
    """Return the error of the words of captions, plus that of the patches.

    Args:
        captioner: The model.
        reader: Maps a patch's features to logits of words, (..., D) to (..., A).
        images: (B, 3, S, S) in [-1, 1].
        words: Whether each patch shows a word, (B, A, g, g), 0 or 1.
        tokens: Prefix and caption of the first images, (B, L) or fewer.
    """
    is_word = tokens != captioner.processor.tokenizer.pad_token_id
    labels = tokens.masked_fill(~is_word, _IGNORED)
    labels[:, :_PREFIX_TOKENS] = _IGNORED
    features = captioner.model.vision_model(images).last_hidden_state
    wording = captioner.model.text_decoder(
        tokens,
        attention_mask=is_word.long(),
        encoder_hidden_states=features[: len(tokens)],
        labels=labels,
    ).loss
    seen = reader(features[:, 1:])  # without the class token
    shown = words.flatten(2).transpose(1, 2)
    error = functional.binary_cross_entropy_with_logits(seen, shown, reduction="none")
    loss: Tensor = wording + error.sum(dim=2).mean()
    return loss


def _make_positions() -> Tensor:
    """Return sines and cosines of row and column, (1, 1 + g g, D), zero for the class token.

    Patches so know from the start which others are near, and in which direction.
    """
    frequencies = np.geomspace(np.pi / 2, np.pi / 16, _WIDTH // 4)
    angles = np.arange(GRID)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.broadcast_arrays(waves[:, None], waves[None, :])
    places = np.concatenate([rows, columns], axis=2).reshape(-1, _WIDTH)
    positions = np.concatenate([np.zeros((1, _WIDTH)), places / 2])
    return torch.from_numpy(positions[None].astype(np.float32))
