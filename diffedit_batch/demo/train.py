"""Training of the small text-to-image model of scenes, in three steps.

1. The autoencoder learns to reproduce scenes.
2. A fixed set of scenes is encoded once. Scenes with a held-out pair of colour and shape are left
   out, so that new combinations can be measured.
3. Text encoder and UNet learn together to tell the noise in these latents; a share of the captions
   is dropped, for classifier-free guidance. Meanwhile a linear map of the UNet's features tells
   which attributes each cell shows in the clean picture, and is thrown away afterwards: that the
   features know what there is makes denoising quicker to learn, as REPA (arXiv 2410.06940) found.

A run that was stopped continues from its checkpoints. Shapes: B images of a batch, N of all scenes,
h x w the latent grid, L caption tokens, A attributes.
"""

import itertools
import logging
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from diffedit_batch.demo.components import (
    CAPTION_TOKENS,
    Components,
    build_components,
    load_components,
    save_components,
)
from diffedit_batch.demo.optimise import Stage, optimise, write_whole
from diffedit_batch.demo.scenes import (
    ATTRIBUTES,
    COLORS,
    TRAIN_SEEDS,
    SceneSpec,
    caption,
    has_held_out_pair,
    measure_coverage,
    render,
    sample_scene,
)

logger = logging.getLogger(__name__)

_AUTOENCODER = Stage(steps=6_000, batch_size=4, learning_rate=1e-3)
_DENOISER = Stage(steps=22_000, batch_size=32, learning_rate=1e-3, uses_muon=True)
_KL_WEIGHT = 1e-4
_GRADIENT_WEIGHT = 0.5
_SQUARE_WEIGHT = 5.0
_OBJECT_WEIGHT = 5.0
_READING_WEIGHT = 0.2
_ENCODE_BATCH = 8
# What the UNet computed last; shares of a batch run in threads of their own.
_features = threading.local()


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run; `autoencoder_from` names a pipeline whose autoencoder is
    taken.
    """

    output: Path
    autoencoder_from: Path | None = None
    autoencoder: Stage = _AUTOENCODER
    denoiser: Stage = _DENOISER
    scenes: int = 32_000
    caption_dropout: float = 0.1
    seed: int = 0
    device: str = "cpu"


def train(settings: TrainSettings) -> None:
    """Train, or go on with training, and leave the newest pipeline in `output / "pipeline"`."""
    settings.output.mkdir(parents=True, exist_ok=True)
    components = build_components(settings.seed)
    if settings.autoencoder_from is None:
        vae = _train_autoencoder(components.vae, settings)
    else:
        vae = load_components(settings.autoencoder_from).vae
    components = replace(components, vae=vae)
    scenes = _encode_scenes(components, settings)
    vae.register_to_config(scaling_factor=1 / scenes["latents"].std().item())
    _train_denoiser(components, scenes, settings)


def reconstruction_loss(
    vae: AutoencoderKL, images: Tensor, generator: np.random.Generator
) -> Tensor:
    """Return the round trip error of images (B, 3, H, W) in [-1, 1], plus a weak KL term."""
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean + posterior.std * _draw_noise(posterior.mean, generator)
    difference: Tensor = vae.decode(latents).sample - images
    gradient = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    divergence: Tensor = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
    return (
        difference.abs().mean()
        + _SQUARE_WEIGHT * difference.square().mean()
        + _GRADIENT_WEIGHT * gradient
        + _KL_WEIGHT * divergence
    )


def velocity_loss(
    components: Components,
    reader: nn.Module,
    latents: Tensor,
    tokens: Tensor,
    coverage: Tensor,
    generator: np.random.Generator,
) -> Tensor:
    """Return the weighted error of the velocity (Salimans & Ho 2022, section 4) told from captions,
    plus that of the attributes read off the features.

    Timesteps are stratified over the batch. Cells with an object count up to `_OBJECT_WEIGHT`
    times: they are few, and the texture of the ground, most of all other error, cannot be foretold.
    The noisier the latent, the less they count extra: where it does not tell yet where objects
    are, that would teach to see too many.

    Args:
        components: The model.
        reader: Maps the UNet's features to logits of attributes, (B, A, h, w).
        latents: (B, 4, h, w), scaled.
        tokens: Captions, (B, L).
        coverage: Share of each cell that shows each attribute, (B, A, h, w).
        generator: Draws timesteps and noise.
    """
    alpha_bars = components.scheduler.alphas_cumprod
    strata = (np.arange(len(latents)) + generator.random(len(latents))) / len(latents)
    timesteps = torch.from_numpy((strata * len(alpha_bars)).astype(np.int64))
    # An object reaches as far as its neighbouring cells: there its outline is.
    has_object = (coverage[:, : len(COLORS)].sum(dim=1, keepdim=True) > 0).float()
    objects = functional.max_pool2d(has_object, kernel_size=3, stride=1, padding=1)
    clearness = (1 - timesteps / len(alpha_bars)).to(latents.device)
    weights = 1 + (_OBJECT_WEIGHT - 1) * clearness[:, None, None, None] * objects
    noise, timesteps = _draw_noise(latents, generator), timesteps.to(latents.device)
    noisy = components.scheduler.add_noise(latents, noise, timesteps)
    states = components.text_encoder(tokens).last_hidden_state
    estimate = components.unet(
        noisy.contiguous(memory_format=torch.channels_last), timesteps, states
    ).sample
    errors = (estimate - components.scheduler.get_velocity(latents, noise, timesteps)).square()
    misread = functional.binary_cross_entropy_with_logits(
        reader(_features.last), coverage, reduction="none"
    ).sum(dim=1)
    loss: Tensor = (weights * errors.mean(dim=1, keepdim=True)).sum() / weights.sum()
    return loss + _READING_WEIGHT * misread.mean()


def _train_autoencoder(vae: AutoencoderKL, settings: TrainSettings) -> AutoencoderKL:
    """Return the autoencoder trained on freshly drawn scenes."""

    def loss_of(generator: np.random.Generator, batch_size: int) -> Tensor:
        seeds = generator.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop, size=batch_size)
        images = _draw_images(sample_scene(int(seed)) for seed in seeds)
        return reconstruction_loss(vae, images.to(settings.device), generator)

    vae.to(settings.device, memory_format=torch.channels_last)
    checkpoint = settings.output / "autoencoder.pt"
    average: Any = optimise(vae, loss_of, settings.autoencoder, checkpoint, settings.seed)
    return average


def _train_denoiser(
    components: Components, scenes: dict[str, Tensor], settings: TrainSettings
) -> None:
    """Train text encoder and noise estimator, saving the pipeline at every checkpoint."""
    latents = scenes["latents"] * components.vae.config.scaling_factor
    no_caption = _tokenize(components, [""])

    def loss_of(generator: np.random.Generator, batch_size: int) -> Tensor:
        chosen = torch.from_numpy(generator.integers(len(latents), size=batch_size))
        dropped = torch.from_numpy(generator.random((batch_size, 1)) < settings.caption_dropout)
        tokens = torch.where(dropped, no_caption, scenes["tokens"][chosen]).to(settings.device)
        batch = latents[chosen].to(settings.device)
        coverage = scenes["coverage"][chosen].to(settings.device).float() / 255
        return velocity_loss(components, reader, batch, tokens, coverage, generator)

    def save(average: nn.Module) -> None:
        averaged = replace(components, unet=average.unet, text_encoder=average.text_encoder)
        save_components(averaged, settings.output / "pipeline")

    components.unet.to(memory_format=torch.channels_last)
    read_block = components.unet.up_blocks[-2]  # its features are as large as the latent
    read_block.register_forward_hook(_keep_features)
    reader = nn.Conv2d(read_block.resnets[-1].out_channels, len(ATTRIBUTES), kernel_size=1)
    denoiser = nn.ModuleDict(
        {"unet": components.unet, "text_encoder": components.text_encoder, "reader": reader}
    )
    denoiser.to(settings.device)
    checkpoint = settings.output / "denoiser.pt"
    optimise(denoiser, loss_of, settings.denoiser, checkpoint, settings.seed, on_save=save)


def _encode_scenes(components: Components, settings: TrainSettings) -> dict[str, Tensor]:
    """Return unscaled latents (N, 4, h, w), caption tokens (N, L) and the coverage of cells by
    attributes (N, A, h, w), in 1/255.

    The scenes are the first of the training seeds that have no held-out pair.
    """
    path = settings.output / "scenes.pt"

    @torch.no_grad()
    def encode(start: int) -> Tensor:
        images = _draw_images(specs[start : start + _ENCODE_BATCH]).to(settings.device)
        latents: Tensor = components.vae.encode(images).latent_dist.mean
        return latents.cpu().contiguous()

    if not path.exists():
        known = (spec for spec in map(sample_scene, TRAIN_SEEDS) if not has_held_out_pair(spec))
        specs = list(itertools.islice(known, settings.scenes))
        with ThreadPoolExecutor(settings.autoencoder.shares) as pool:
            latents = torch.cat(list(pool.map(encode, range(0, len(specs), _ENCODE_BATCH))))
        tokens = _tokenize(components, [caption(spec) for spec in specs])
        coverage = np.stack(
            [np.uint8(255 * measure_coverage(spec, latents.shape[-1])) for spec in specs]
        )
        content = {"latents": latents, "tokens": tokens, "coverage": torch.from_numpy(coverage)}
        write_whole(path, content)
        logger.info("encoded %d scenes", len(specs))
    scenes: dict[str, Tensor] = torch.load(path, weights_only=True)
    return scenes


def _draw_images(specs: Iterable[SceneSpec]) -> Tensor:
    """Return these scenes as images (B, 3, H, W) in [-1, 1]."""
    images = np.stack([render(spec) for spec in specs])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _keep_features(block: nn.Module, arguments: Any, features: Tensor) -> None:
    _features.last = features


def _draw_noise(like: Tensor, generator: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(generator.standard_normal(like.shape, dtype=np.float32))
    return noise.to(like.device)


def _tokenize(components: Components, captions: list[str]) -> Tensor:
    """Return tokens (B, L), padded as the pipeline pads them."""
    tokens: Tensor = components.tokenizer(
        captions, padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt"
    ).input_ids
    return tokens
