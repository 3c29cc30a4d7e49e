"""Whole pipelines with random weights: as fast as trained ones, and there without a download.

Their texts come from the tokenizer of the embedded model, filled up to the length of the
architecture's own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from diffedit_batch.config import ModelConfig
from diffedit_batch.core.guidance import PredictionType
from diffedit_batch.models.architectures import Architecture
from diffedit_batch.models.identity import identify


def read_architecture(folder: Path) -> Architecture:
    """The architecture of a saved pipeline, from its configs alone."""

    def config(part: str, *derived: str) -> dict[str, Any]:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        tree: dict[str, Any] = json.loads((folder / part / name).read_text("utf-8"))
        return {k: v for k, v in tree.items() if not k.startswith("_") and k not in derived}

    blocks = ("down_block_types", "up_block_types")
    vae = config("vae", "sample_size", "latent_channels", *blocks)
    unet = config("unet")
    side = unet.pop("sample_size") * 2 ** (len(vae["block_out_channels"]) - 1)
    del unet["cross_attention_dim"]
    prediction_type: PredictionType = config("scheduler")["prediction_type"]
    return Architecture(folder.name, side, prediction_type, unet, vae, config("text_encoder"))


def random_pipeline(
    architecture: Architecture, device: str, dtype: torch.dtype, vae_dtype: torch.dtype
) -> StableDiffusionPipeline:
    """A pipeline of an architecture on a device, always with the same weights.

    They are torch's own initial ones, but for the last layer of the UNet and of the VAE's encoder:
    scaled so that noise estimates and latents are of order 1, as trained ones are, at every step.
    """
    torch.manual_seed(0)
    with torch.device(device):
        unet, vae, text_encoder = (
            architecture.unet(),
            architecture.vae(),
            architecture.text_encoder(),
        )
        channels = vae.config.latent_channels
        latents = torch.randn(1, channels, 32, 32)
        states = torch.randn(1, architecture.num_tokens, architecture.text_width)
        image = torch.rand(1, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        noise = unet(latents, torch.full((1,), 500, device=device), states).sample
        _divide(unet.conv_out, noise.std(), slice(None))
        mean = vae.encode(image).latent_dist.mean * vae.config.scaling_factor
        _divide(vae.quant_conv, mean.std(), slice(channels))
    tokenizer = CLIPTokenizer.from_pretrained(
        Path(identify(ModelConfig(id="demo")).source) / "tokenizer",
        model_max_length=architecture.num_tokens,
    )
    if dtype != torch.float32:
        unet.to(dtype)
        text_encoder.to(dtype)
    if vae_dtype != torch.float32:
        vae.to(vae_dtype)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=architecture.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _divide(layer: torch.nn.Conv2d, scale: torch.Tensor, channels: slice) -> None:
    """Divide output channels of a layer."""
    layer.weight[channels] /= scale
    assert layer.bias is not None
    layer.bias[channels] /= scale
