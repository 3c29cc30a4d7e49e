"""Training of the small text-to-image model of scenes, in three steps.

1. The autoencoder learns to reproduce scenes.
2. A fixed set of scenes is encoded once.
3. Text encoder and noise estimator learn together on these latents to tell the noise in them; a
   share of the captions is dropped, for classifier-free guidance.

A run that was stopped continues from its checkpoints. Shapes: B images of a batch, N of all scenes,
h x w the latent grid, L caption tokens.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffedit_batch.demo.components import (
    CAPTION_TOKENS,
    Components,
    build_components,
    load_components,
    save_components,
)
from diffedit_batch.demo.optimise import Stage, optimise, write_whole
from diffedit_batch.demo.scenes import TRAIN_SEEDS, caption, render, sample_scene

logger = logging.getLogger(__name__)

_AUTOENCODER = Stage(steps=6_000, batch_size=4, learning_rate=1e-3)
_DENOISER = Stage(steps=9_000, batch_size=32, learning_rate=1e-3)
_KL_WEIGHT = 1e-4
_GRADIENT_WEIGHT = 0.5
_SQUARE_WEIGHT = 5.0
_WEIGHT_BOUNDS = (0.1, 10.0)
_ENCODE_BATCH = 8


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run; `init_from` names a pipeline folder to continue from."""

    output: Path
    init_from: Path | None = None
    autoencoder: Stage = _AUTOENCODER
    denoiser: Stage = _DENOISER
    scenes: int = 24_000
    caption_dropout: float = 0.1
    seed: int = 0
    device: str = "cpu"


def train(settings: TrainSettings) -> None:
    """Train, or go on with training, and leave the newest pipeline in `output / "pipeline"`."""
    if settings.autoencoder.shares > 1:
        torch.set_num_threads(1)
    settings.output.mkdir(parents=True, exist_ok=True)
    components = (
        load_components(settings.init_from)
        if settings.init_from
        else build_components(settings.seed)
    )
    components = replace(components, vae=_train_autoencoder(components.vae, settings))
    scenes = _encode_scenes(components, settings)
    if settings.init_from is None:
        components.vae.register_to_config(scaling_factor=1 / scenes["latents"].std().item())
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


def noise_loss(
    components: Components, latents: Tensor, tokens: Tensor, generator: np.random.Generator
) -> Tensor:
    """Return the weighted error of the noise estimated in latents (B, 4, h, w) by captions (B, L).

    Timesteps are stratified over the batch. Errors are weighted by the inverse square root of the
    signal-to-noise ratio: half-way between the error of the noise, which hardly sees the noisiest
    levels, where objects are decided, and the error of the image, which sees little else.
    """
    alpha_bars = components.scheduler.alphas_cumprod
    strata = (np.arange(len(latents)) + generator.random(len(latents))) / len(latents)
    timesteps = torch.from_numpy((strata * len(alpha_bars)).astype(np.int64))
    ratio = alpha_bars[timesteps] / (1 - alpha_bars[timesteps])
    weights = ratio.rsqrt().clamp(*_WEIGHT_BOUNDS).to(latents.device)
    noise, timesteps = _draw_noise(latents, generator), timesteps.to(latents.device)
    noisy = components.scheduler.add_noise(latents, noise, timesteps)
    states = components.text_encoder(tokens).last_hidden_state
    estimate = components.unet(
        noisy.contiguous(memory_format=torch.channels_last), timesteps, states
    ).sample
    errors: Tensor = (estimate - noise).square().mean(dim=(1, 2, 3))
    loss: Tensor = (weights * errors).sum() / weights.sum()
    return loss


def _train_autoencoder(vae: AutoencoderKL, settings: TrainSettings) -> AutoencoderKL:
    """Return the autoencoder trained on freshly drawn scenes."""

    def loss_of(generator: np.random.Generator, batch_size: int) -> Tensor:
        seeds = generator.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop, size=batch_size)
        return reconstruction_loss(vae, _draw_images(seeds).to(settings.device), generator)

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
        return noise_loss(components, latents[chosen].to(settings.device), tokens, generator)

    def save(average: nn.Module) -> None:
        averaged = replace(components, unet=average.unet, text_encoder=average.text_encoder)
        save_components(averaged, settings.output / "pipeline")

    components.unet.to(memory_format=torch.channels_last)
    denoiser = nn.ModuleDict({"unet": components.unet, "text_encoder": components.text_encoder})
    denoiser.to(settings.device)
    checkpoint = settings.output / "denoiser.pt"
    optimise(denoiser, loss_of, settings.denoiser, checkpoint, settings.seed, on_save=save)


def _encode_scenes(components: Components, settings: TrainSettings) -> dict[str, Tensor]:
    """Return unscaled latents (N, 4, h, w) and caption tokens (N, L) of the first seeds."""
    path = settings.output / "scenes.pt"
    seeds = TRAIN_SEEDS[: settings.scenes]

    @torch.no_grad()
    def encode(start: int) -> Tensor:
        images = _draw_images(seeds[start : start + _ENCODE_BATCH]).to(settings.device)
        latents: Tensor = components.vae.encode(images).latent_dist.mean
        return latents.cpu().contiguous()

    if not path.exists():
        with ThreadPoolExecutor(settings.autoencoder.shares) as pool:
            latents = torch.cat(list(pool.map(encode, range(0, len(seeds), _ENCODE_BATCH))))
        tokens = _tokenize(components, [caption(sample_scene(seed)) for seed in seeds])
        write_whole(path, {"latents": latents, "tokens": tokens})
        logger.info("encoded %d scenes", len(seeds))
    scenes: dict[str, Tensor] = torch.load(path, weights_only=True)
    return scenes


def _draw_images(seeds: Iterable[int]) -> Tensor:
    """Return the scenes of these seeds as images (B, 3, H, W) in [-1, 1]."""
    images = np.stack([render(sample_scene(int(seed))) for seed in seeds])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _draw_noise(like: Tensor, generator: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(generator.standard_normal(like.shape, dtype=np.float32))
    return noise.to(like.device)


def _tokenize(components: Components, captions: list[str]) -> Tensor:
    """Return tokens (B, L), padded as the pipeline pads them."""
    tokens: Tensor = components.tokenizer(
        captions, padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt"
    ).input_ids
    return tokens
