"""A latent diffusion model as the engine uses it: text in, noise estimates, images in and out.

Legend: B batch, C latent channels, h x w latent grid, H x W pixels, L tokens, D text width.
"""

import copy
import functools
import logging
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from diffedit_batch.config import ModelConfig
from diffedit_batch.core.acts import Text
from diffedit_batch.core.guidance import PredictionType
from diffedit_batch.core.schedule import Schedule, make_schedule
from diffedit_batch.errors import ModelError
from diffedit_batch.models.hub import fetch
from diffedit_batch.models.identity import identify
from diffedit_batch.models.loading import DTYPES, explained, timed, tried_out
from diffedit_batch.models.network import AttentionLog, Network
from diffedit_batch.models.transfer import to_device

logger = logging.getLogger(__name__)

_MAX_CACHED_TEXTS = 1024
_MAX_COUNTED_TEXTS = 65_536


class Components:
    """A loaded model: UNet, VAE, text encoder, tokenizer and noise table.

    Attributes:
        network: the UNet as it is called.
        attention_kernels: fused ones that ran when the model was tried out; none: plain products.
        device: where latents live.
        dtype: of the UNet's weights.
        prediction_type: what the UNet predicts.
        latent_channels: C.
        vae_scale_factor: pixels per latent cell.
        unet_scale_factor: by how much the UNet shrinks a latent grid; sizes that are no multiple
            cost padding.
        resolution: side in pixels of the images it was trained on.
        num_text_encodes: prompts encoded so far (cached ones not counted).
        start_seconds: what it took to be ready, by phase: `download` (or waiting for another
            process of this node that downloads), `load`, `warm_up`.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, resolution: int | None = None) -> None:
        self._pipeline = pipeline
        self._unet, self._vae = pipeline.unet.eval(), pipeline.vae.eval()
        self.network = Network(self._unet)
        self.device: torch.device = pipeline._execution_device
        self.dtype: torch.dtype = self._unet.dtype
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self._alphas_cumprod = scheduler.alphas_cumprod.to(self.device)
        self._scheduler_config = scheduler.config
        self.prediction_type = cast(PredictionType, scheduler.config.prediction_type)
        self.latent_channels: int = self._vae.config.latent_channels
        self.vae_scale_factor: int = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.unet_scale_factor: int = 2 ** (len(self._unet.config.block_out_channels) - 1)
        self.resolution: int = resolution or self._unet.config.sample_size * self.vae_scale_factor
        self.attention_kernels: tuple[str, ...] = ()
        self.num_text_encodes = 0
        self.start_seconds: dict[str, float] = {}
        self._encode_prompt = functools.lru_cache(_MAX_CACHED_TEXTS)(self._encode_one_prompt)
        self.text = functools.lru_cache(_MAX_CACHED_TEXTS)(self._average)
        self.is_truncated = functools.lru_cache(_MAX_COUNTED_TEXTS)(self._is_truncated)
        self.schedule = functools.lru_cache(64)(self._make_schedule)

    @classmethod
    def load(cls, config: ModelConfig, device: str) -> "Components":
        """The configured model on `device` (`cuda`, `cuda:1`, `cpu`).

        Raises:
            ModelError: it cannot be loaded; says what was tried and what to do.
        """
        identity = identify(config)
        dtype = DTYPES[config.dtype or ("float32" if device == "cpu" else "float16")]
        seconds: dict[str, float] = {}
        unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
        files: dict[str, Any] = {"variant": config.variant, "use_safetensors": True, **unused}
        with explained(config, identity):
            with timed(seconds, "download"):
                download = functools.partial(
                    StableDiffusionPipeline.download, identity.source, **files
                )
                folder = fetch(config, identity, download)
            with timed(seconds, "load"):
                pipeline = StableDiffusionPipeline.from_pretrained(
                    folder, dtype=dtype, requires_safety_checker=False, **files
                )
        with timed(seconds, "load"):
            _place(pipeline, config, device)
        model = cls(pipeline, config.resolution)
        with tried_out(config.id, device), timed(seconds, "warm_up"):
            model._try_out()
        model.start_seconds = seconds
        return model

    def _try_out(self) -> None:
        """Use every part once."""
        side = 2 * self.unet_scale_factor
        if self.device.type == "cuda":
            # There it costs little, and which attention kernels run depends on it.
            side = self.resolution // self.vae_scale_factor
        latents = torch.zeros(1, self.latent_channels, side, side, device=self.device)
        states = self._encode_one_prompt("a")[None]
        self.num_text_encodes = 0
        with AttentionLog() as log:
            self.predict(latents, torch.ones(1, device=self.device), states)
        self.attention_kernels = tuple(sorted(log.kernels))
        kernels = ", ".join(self.attention_kernels) or "no fused kernel"
        logger.info("attention of the network: %s", kernels)
        self.encode(self.decode(latents))

    def _make_schedule(self, num_inference_steps: int) -> Schedule:
        """Levels for a number of steps. Raises ValueError where the model cannot serve them."""
        return make_schedule(
            self._alphas_cumprod,
            num_inference_steps,
            timestep_spacing=self._scheduler_config.timestep_spacing,
            steps_offset=self._scheduler_config.steps_offset,
            set_alpha_to_one=self._scheduler_config.set_alpha_to_one,
        )

    def _average(self, prompts: tuple[str, ...]) -> Text:
        """The prompts as one text: the mean of their padded embeddings (L, D)."""
        states = [self._encode_prompt(prompt) for prompt in prompts]
        return Text(prompts, states[0] if len(states) == 1 else torch.stack(states).mean(0))

    def _is_truncated(self, prompt: str) -> bool:
        """Whether the prompt is longer than the text encoder reads."""
        tokenizer: Any = self._pipeline.tokenizer
        num_tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        return bool(num_tokens > tokenizer.model_max_length)

    @torch.no_grad()
    def _encode_one_prompt(self, prompt: str) -> Tensor:
        # One at a time: an embedding then never depends on which prompts were encoded beside it.
        self.num_text_encodes += 1
        tokenizer: Any = self._pipeline.tokenizer
        encoder: Any = self._pipeline.text_encoder
        tokens = tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        # As the pipeline does it, which would make the host wait for the device.
        needs_mask = getattr(encoder.config, "use_attention_mask", False)
        states = encoder(
            to_device(tokens.input_ids, self.device),
            attention_mask=to_device(tokens.attention_mask, self.device) if needs_mask else None,
        )
        return cast(Tensor, states[0][0].to(self.device))

    def predict(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Network outputs (B, C, h, w), fp32.

        Args:
            latents: (B, C, h, w).
            timesteps: (B,); they may differ.
            states: texts, (B, L, D).
        """
        return self.network(latents, timesteps, states)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (B, C, h, w), fp32, of the scaled latents of images
        (B, 3, H, W) in -1..1.
        """
        posterior = self._vae.encode(images.to(self.device, self._vae.dtype)).latent_dist
        scale = self._vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), fp32 in about -1..1, of scaled latents (B, C, h, w)."""
        scaled = latents.to(self._vae.dtype) / self._vae.config.scaling_factor
        return cast(Tensor, self._vae.decode(scaled).sample.float())

    @property
    def can_be_more_precise(self) -> bool:
        """Whether `in_full_precision` would compute anything differently, and can be made.

        With CPU offload there is no room for a copy by definition.
        """
        is_half = self.dtype != torch.float32 or self._vae.dtype != torch.float32
        return is_half and not hasattr(self._unet, "_hf_hook")

    def in_full_precision(self) -> "Components":
        """A second set of components with fp32 UNet and VAE, for the rare row that overflows."""
        pipeline = copy.copy(self._pipeline)
        pipeline.unet = copy.deepcopy(self._unet).float()
        pipeline.vae = copy.deepcopy(self._vae).float()
        return Components(pipeline, self.resolution)


def _place(pipeline: StableDiffusionPipeline, config: ModelConfig, device: str) -> None:
    """Put a pipeline on its device, as the config wants it held in memory."""
    pipeline.vae.to(DTYPES[config.vae_dtype])
    pipeline.set_progress_bar_config(disable=True)
    if config.enable_vae_slicing:
        pipeline.vae.enable_slicing()
    if config.enable_vae_tiling:
        pipeline.vae.enable_tiling()
    if config.enable_attention_slicing:
        pipeline.enable_attention_slicing()
    if config.enable_model_cpu_offload:
        if device == "cpu":
            raise ModelError(
                "model.enable_model_cpu_offload needs a GPU (cluster.gpus_per_worker > 0)"
            )
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
