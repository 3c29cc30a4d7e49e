"""What an editor is given, and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffedit_batch.core.mask import feather, rescale
from diffedit_batch.engine.pixels import (
    Mask,
    Picture,
    SoftMap,
    background_psnr,
    paste_picture,
    resize,
    resize_map,
    resize_mask,
    resize_weights,
)
from diffedit_batch.errors import RowError
from diffedit_batch.schema import EditRequest


@dataclass(frozen=True)
class ImageEdits:
    """One picture, uint8 (H, W, 3), its edits, and own masks, bool (H, W), by request id."""

    picture: Picture
    requests: Sequence[EditRequest]
    masks: Mapping[str, Mask] = field(default_factory=dict)


class Candidate(NamedTuple):
    """A seed that was tried, and its score; None where it failed or has none."""

    seed: int
    score: float | None


@dataclass(frozen=True)
class EditResult:
    """What became of one request.

    Pictures are restored to the original size on first access, by whichever thread asks, so that
    the thread that drives the device need not.

    Attributes:
        request: the request as it was carried out: of several seeds, with the one that was kept.
        original: the picture as it came.
        error: why the row failed, or None.
        working: the decoded edit at working size, or None where there was nothing to change.
        working_mask: where the edit acted, at working size.
        difference: the map behind the mask, in pixels at working size (with preset `diffusers` in
            latent cells), or None without one.
        clip_text: cosine that CLIP finds of the edited picture and the target prompt, or None where
            it is not asked.
        clip_direction: of what changed in the picture and in the prompt; 0 where nothing did.
        clip_image: of the edited picture and the original.
        lpips: how different LPIPS finds the edited picture and the original, 0 where it was left as
            it is, or None where it is not asked.
        is_flagged: whether the safety checker flags the picture, or None where it is not asked.
        candidates: the seeds that were tried and what each scored, where there were several.
        num_truncated_prompts: texts of this row that the text encoder could not read to the end.
        seconds: from admission to result, waiting for neighbours in shared calls included.
    """

    request: EditRequest
    original: Picture
    error: RowError | None = None
    working: Picture | None = None
    working_mask: Mask | None = None
    difference: NDArray[np.float32] | None = None
    clip_text: float | None = None
    clip_direction: float | None = None
    clip_image: float | None = None
    lpips: float | None = None
    is_flagged: bool | None = None
    candidates: tuple[Candidate, ...] = ()
    num_truncated_prompts: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """`edited`, `unchanged` or `failed`."""
        if self.error is not None:
            return "failed"
        return "unchanged" if self.working is None else "edited"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original."""
        return cast(tuple[int, int], self.original.shape[1::-1])

    @property
    def coverage(self) -> float:
        """Share of the picture inside the mask."""
        assert self.working_mask is not None
        return float(self.working_mask.mean())

    @property
    def map_mean(self) -> float | None:
        """Mean of the difference map, or None without one."""
        return None if self.difference is None else float(self.difference.mean())

    @property
    def map_max(self) -> float | None:
        """Largest value of the difference map, or None without one."""
        return None if self.difference is None else float(self.difference.max())

    @cached_property
    def map_contrast(self) -> float | None:
        """Mean of the map inside the mask over its mean outside, or None where either is empty."""
        if self.difference is None or self.working_mask is None:
            return None
        factor = self.working_mask.shape[0] // self.difference.shape[0]
        mask = self.working_mask[::factor, ::factor]
        inside, outside = self.difference[mask], self.difference[~mask]
        if inside.size == 0 or outside.size == 0 or not outside.any():
            return None
        return float(inside.mean() / outside.mean())

    @cached_property
    def background_psnr(self) -> float | None:
        """PSNR in dB of the pixels outside the mask, at most 100, or None where there are none."""
        return background_psnr(self.image, self.original, self.mask)

    def measured(self) -> dict[str, float | None]:
        """Result columns that say how an edit came out; None where there is nothing to measure."""
        return {
            "mask_coverage": self.coverage,
            "map_mean": self.map_mean,
            "map_max": self.map_max,
            "map_contrast": self.map_contrast,
            "background_psnr": self.background_psnr,
            "clip_text": self.clip_text,
            "clip_direction": self.clip_direction,
            "clip_image": self.clip_image,
            "lpips": self.lpips,
            "num_truncated_prompts": self.num_truncated_prompts,
            "seconds": self.seconds,
        }

    @cached_property
    def weights(self) -> Tensor:
        """The mask with its soft edge, (H, W) in 0..1, original size."""
        width = self.request.edit.feather
        assert self.working_mask is not None
        assert width is not None, "the parameters of a request are resolved"
        soft = feather(torch.from_numpy(self.working_mask), width)
        return resize_weights(soft, self.size)

    @cached_property
    def image(self) -> Picture:
        """The edited picture, original size."""
        if self.working is None:
            return self.original
        restored = resize(self.working, self.size)
        if not self.request.edit.paste_background:
            return restored
        return paste_picture(restored, self.original, self.weights)

    @cached_property
    def mask(self) -> Mask:
        """The mask, original size."""
        assert self.working_mask is not None
        return resize_mask(self.working_mask, self.size)

    @cached_property
    def map(self) -> SoftMap | None:
        """The difference map as grey, original size, or None without one.

        0 to 255 stand for the 0..1 on which the threshold of this row was applied, see
        `core.mask.rescale`: with `minmax` from the smallest difference to the 99 % quantile, so
        that the mask, before `mask_grow`, is what is brighter than 255 times `mask_threshold`. It
        says nothing of how large differences are; `map_mean` and `map_max` do. Black where there
        was nothing to change: stretched to 0..1, a flat map would show rounding.
        """
        if self.difference is None or self.working_mask is None:
            return None
        edit = self.request.edit
        assert edit.mask_rule is not None, "the parameters of a request are resolved"
        scaled = torch.from_numpy(self.difference)
        if self.working is None and edit.mask_grow >= 0:  # else it may have shrunk to nothing
            scaled = torch.zeros_like(scaled)
        else:
            scaled = rescale(scaled, edit.mask_rule, edit.mask_thresholding_ratio)
        factor = self.working_mask.shape[0] // scaled.shape[0]
        soft = (scaled * 255).round().to(torch.uint8)
        soft = soft.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        return resize_map(soft.numpy(), self.size)

    def with_found(self, **found: Any) -> "EditResult":
        """A copy that says more; what was restored once is not restored again."""
        copy = replace(self, **found)
        fields = set(self.__dataclass_fields__)
        copy.__dict__.update({k: v for k, v in self.__dict__.items() if k not in fields})
        return copy
