"""The shapes of the models people edit with, without their weights: for counting and timing work.

    with torch.device("meta"):
        unet = SD21.unet()

Each part is built with random weights on torch's default device; on `meta` it has none at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from diffedit_batch.core.guidance import PredictionType


@dataclass(frozen=True, eq=False)
class Architecture:
    """One model.

    Attributes:
        name: as people say it.
        resolution: side of the images it was trained on, in pixels.
        prediction_type: what its UNet predicts.
        num_tokens: text tokens it reads.
        unet_config: arguments of `UNet2DConditionModel`.
        vae_config: arguments of `AutoencoderKL`.
        text_config: arguments of `CLIPTextConfig`.
    """

    name: str
    resolution: int
    prediction_type: PredictionType
    unet_config: Mapping[str, Any] = field(repr=False)
    vae_config: Mapping[str, Any] = field(repr=False)
    text_config: Mapping[str, Any] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        """L."""
        return int(self.text_config["max_position_embeddings"])

    @property
    def text_width(self) -> int:
        """D."""
        return int(self.text_config["hidden_size"])

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    def unet(self) -> UNet2DConditionModel:
        """The noise model."""
        side = self.resolution // self.vae_scale_factor
        return UNet2DConditionModel(
            sample_size=side, cross_attention_dim=self.text_width, **self.unet_config
        ).eval()

    def vae(self) -> AutoencoderKL:
        """The image autoencoder."""
        return AutoencoderKL(
            sample_size=self.resolution,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            **self.vae_config,
        ).eval()

    def text_encoder(self) -> CLIPTextModel:
        """The text encoder."""
        return CLIPTextModel(CLIPTextConfig(**self.text_config)).eval()

    def scheduler(self) -> DDIMScheduler:
        """The noise table all of them were trained with."""
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=self.prediction_type,
        )


_SD_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SD21_UNET = _SD_UNET | {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_SD_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_CLIP_L = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_OPEN_CLIP_H = _CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}

SD15 = Architecture(
    "Stable Diffusion 1.5",
    512,
    "epsilon",
    _SD_UNET | {"attention_head_dim": 8},
    _SD_VAE,
    _CLIP_L,
)
SD21_BASE = Architecture(
    "Stable Diffusion 2.1 base", 512, "epsilon", _SD21_UNET, _SD_VAE, _OPEN_CLIP_H
)
SD21 = Architecture("Stable Diffusion 2.1", 768, "v_prediction", _SD21_UNET, _SD_VAE, _OPEN_CLIP_H)
SMALL = Architecture(
    "small",
    128,
    "epsilon",
    {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    {"block_out_channels": (16, 32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8},
    {
        "vocab_size": 1000,
        "bos_token_id": 998,
        "eos_token_id": 999,
        "max_position_embeddings": 77,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
)

ARCHITECTURES = {"sd15": SD15, "sd21-512": SD21_BASE, "sd21-768": SD21, "small": SMALL}
