"""What can be done for a picture and its edits before a device is needed, by any thread.

Legend: N mask draws, C channels, h x w latent grid, H x W pixels, S side of what CLIP looks at.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from diffedit_batch.core.noise import draw
from diffedit_batch.engine.pixels import content_key, resize_mask, to_tensor
from diffedit_batch.engine.requests import ImageEdits
from diffedit_batch.engine.sizes import working_size
from diffedit_batch.models.clip import Clip
from diffedit_batch.models.components import Components
from diffedit_batch.models.transfer import pinned
from diffedit_batch.schema import EditRequest


class Noise(NamedTuple):
    """The draws of one row: for its mask (N, C, h, w), and, as the reference has it, of the VAE
    posterior for its mask (N, C, h, w) and its inversion (C, h, w).
    """

    mask: Tensor
    posterior_of_mask: Tensor | None
    posterior_of_inversion: Tensor | None


@dataclass(frozen=True, eq=False)
class PreparedEdits:
    """A picture and its edits, ready for the device.

    Attributes:
        edits: as they came.
        picture: at working size, (3, H, W) in -1..1.
        masks: own masks at working size, (H, W) bool, by request id.
        candidates: the edits that are tried, by request id; see `EditRequest.candidates`.
        noise: by request id and seed. Rows of one seed share theirs.
        clip_pixels: the picture as CLIP takes it, (3, S, S); None where edits are not scored by it.
    """

    edits: ImageEdits
    picture: Tensor
    masks: Mapping[str, Tensor]
    candidates: Mapping[str, list[EditRequest]]
    noise: Mapping[tuple[str, int], Noise]
    clip_pixels: Tensor | None = None


def prepare(
    edits: ImageEdits, model: Components, size_multiple: int, clip: Clip | None = None
) -> PreparedEdits:
    """Resize a picture and its own masks to working size, and draw the noise of its edits.

    The tensors are pinned where the model is on a GPU.
    """
    height, width = edits.picture.shape[:2]
    size = working_size(width, height, model.resolution, size_multiple)
    grid = (model.latent_channels, *(side // model.vae_scale_factor for side in size[::-1]))
    key = content_key(edits.picture)

    @functools.cache
    def noise(seed: int, purpose: str, *num_draws: int) -> Tensor:
        drawn = draw((*num_draws, *grid), seed=seed, image_key=key, purpose=purpose)
        return pinned(drawn, model.device)

    candidates = {
        request.id: request.candidates(has_mask=request.id in edits.masks)
        for request in edits.requests
    }
    draws = {}
    for request in chain.from_iterable(candidates.values()):
        seed, count = request.seed, request.edit.num_maps_per_mask
        is_reference = request.edit.preset == "diffusers"
        draws[request.id, seed] = Noise(
            noise(seed, "mask", count),
            noise(seed, "posterior of mask", count) if is_reference else None,
            noise(seed, "posterior of inversion") if is_reference else None,
        )
    return PreparedEdits(
        edits,
        picture=pinned(to_tensor(edits.picture, size), model.device),
        masks={
            name: pinned(torch.from_numpy(resize_mask(mask, size)), model.device)
            for name, mask in edits.masks.items()
        },
        candidates=candidates,
        noise=draws,
        clip_pixels=None if clip is None else clip.prepare(edits.picture),
    )
