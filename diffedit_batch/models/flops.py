"""Floating-point operations of each part of a model, counted on shapes alone.

One multiplication with its addition is two. Counted by torch's `FlopCounterMode` on tensors without
memory: matrix products, convolutions and attention, which is all that counts.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffedit_batch.models.architectures import Architecture


@dataclass(frozen=True)
class PartFlops:
    """FLOPs of one use of each part.

    Attributes:
        unet_eval: one network evaluation.
        vae_encode: one image encoded.
        vae_decode: one latent decoded.
        text_encode: one prompt encoded.
    """

    unet_eval: int
    vae_encode: int
    vae_decode: int
    text_encode: int

    def of(
        self, *, unet_evals: float, vae_encodes: float, vae_decodes: float, text_encodes: float
    ) -> float:
        """FLOPs of so much work; the names are those of `engine.counters.Counters`."""
        return (
            unet_evals * self.unet_eval
            + vae_encodes * self.vae_encode
            + vae_decodes * self.vae_decode
            + text_encodes * self.text_encode
        )


@functools.cache
def count_flops(
    model: Architecture, width: int | None = None, height: int | None = None
) -> PartFlops:
    """FLOPs of the parts of a model for images of a size in pixels; default: what it was trained
    on.
    """
    width, height = width or model.resolution, height or model.resolution
    columns, rows = width // model.vae_scale_factor, height // model.vae_scale_factor
    with torch.device("meta"), torch.no_grad():
        unet, vae, text_encoder = model.unet(), model.vae(), model.text_encoder()
        latents = torch.empty(1, 4, rows, columns)
        states = torch.empty(1, model.num_tokens, model.text_width)
        image = torch.empty(1, 3, height, width)
        tokens = torch.zeros(1, model.num_tokens, dtype=torch.long)
        return PartFlops(
            unet_eval=_count(lambda: unet(latents, torch.ones(1), states)),
            vae_encode=_count(lambda: vae.encode(image)),
            vae_decode=_count(lambda: vae.decode(latents)),
            text_encode=_count(lambda: text_encoder(tokens)),
        )


def _count(use: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        use()
    return counter.get_total_flops()
