"""From noise differences to masks: outlines, per-image scale, threshold, grids, feathered paste.

Legend: N mask draws, C channels, h x w latent grid, H x W pixels, H = h * factor.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

MaskRule = Literal["minmax", "mean_ratio", "otsu"]

CLIP_QUANTILE = 0.99
"""Values above it are extremes. The paper drops extremes, not saying how many (section 3.2)."""

_GUIDE_VARIANCE = 1e-3
"""Variation of a picture in 0..1 below which it is no outline."""


def difference_map(target: Tensor, source: Tensor) -> Tensor:
    """Mean absolute difference (h, w), fp32, of two noise estimates (N, C, h, w).

    Step 1 of the paper (arXiv 2210.11427, section 3.2).
    """
    return (target.float() - source.float()).abs().mean(dim=(0, 1))


def upsample(difference: Tensor, factor: int) -> Tensor:
    """A latent map (h, w) at pixel size (H, W), bilinear."""
    return functional.interpolate(difference[None, None], scale_factor=factor, mode="bilinear")[
        0, 0
    ]


def follow_outlines(difference: Tensor, picture: Tensor, radius: int) -> Tensor:
    """A map (H, W) whose edges are those of the picture (3, H, W): the guided filter.

    Within `radius` pixels the map becomes the linear function of the picture's colours that fits it
    best (He, Sun, Tang: "Guided image filtering", PAMI 2013, section 3.4). A map knows cells of 8
    pixels; the picture knows where the object ends.

    Args:
        difference: map at pixel size.
        picture: in -1..1.
        radius: half the side of the windows, in pixels.
    """

    def average(images: Tensor) -> Tensor:
        across = functional.avg_pool2d(
            images, (1, 2 * radius + 1), 1, (0, radius), count_include_pad=False
        )
        return functional.avg_pool2d(
            across, (2 * radius + 1, 1), 1, (radius, 0), count_include_pad=False
        )

    guide, target = (picture.float() + 1) / 2, difference.float()[None]
    mean_guide, mean_target = average(guide), average(target)
    products = (guide[:, None] * guide).flatten(0, 1)
    height, width = target.shape[1:]
    variance = average(products).view(3, 3, height, width) - mean_guide[:, None] * mean_guide
    covariance = average(guide * target) - mean_guide * mean_target
    ridge = _GUIDE_VARIANCE * torch.eye(3, device=guide.device)
    # `solve` would make the host wait to learn whether it could; with a ridge it can.
    slopes, _ = torch.linalg.solve_ex(
        variance.permute(2, 3, 0, 1) + ridge, covariance.permute(1, 2, 0)
    )
    slopes = slopes.permute(2, 0, 1)
    offset = mean_target - (slopes * mean_guide).sum(dim=0, keepdim=True)
    return ((average(slopes) * guide).sum(dim=0, keepdim=True) + average(offset))[0]


def rescale(difference: Tensor, rule: MaskRule, thresholding_ratio: float) -> Tensor:
    """The map on a scale of 0..1 taken from this image alone, on which a threshold is then applied.

    Args:
        difference: map of any size, not flat.
        rule: `minmax` and `otsu` cut extremes at the 99 % quantile and stretch to 0..1;
            `mean_ratio` clamps at `thresholding_ratio` times the mean without moving the minimum,
            which is the reference's rule and can never select more than 2 / ratio of an image.
        thresholding_ratio: used by `mean_ratio`.
    """
    if rule == "mean_ratio":
        ceiling = difference.mean() * thresholding_ratio
        return difference.clamp(max=ceiling) / ceiling
    low, high = difference.min(), torch.quantile(difference.flatten(), CLIP_QUANTILE)
    # A lone bright cell can lie wholly above the quantile, which would leave nothing to stretch.
    high = torch.where(high > low, high, difference.max())
    return ((difference - low) / (high - low)).clamp(0, 1)


def otsu_threshold(scaled: Tensor, num_bins: int = 256) -> Tensor:
    """The threshold of a map on 0..1 that best separates two classes (Otsu, 1979)."""
    histogram = torch.histc(scaled.float(), num_bins, 0.0, 1.0)
    centres = (torch.arange(num_bins, device=scaled.device) + 0.5) / num_bins
    weight_low = histogram.cumsum(0)
    weight_high = weight_low[-1] - weight_low
    sum_low = (histogram * centres).cumsum(0)
    mean_low = sum_low / weight_low.clamp_min(1)
    mean_high = (sum_low[-1] - sum_low) / weight_high.clamp_min(1)
    between = weight_low * weight_high * (mean_low - mean_high) ** 2
    # Between two well separated classes every cut is equally good: take the middle one.
    is_best = (between >= between.max() * (1 - 1e-6)).float()
    best = (is_best * torch.arange(num_bins, device=scaled.device)).sum() / is_best.sum()
    return (best + 1) / num_bins


def binarise(
    difference: Tensor, rule: MaskRule, *, threshold: float, thresholding_ratio: float
) -> Tensor:
    """Mask (bool, size of the map) by a rule, see `rescale`.

    `threshold` is for `minmax`: `otsu` finds its own, and `mean_ratio` cuts at one half, as the
    reference does, and is tuned by its ratio.
    """
    scaled = rescale(difference, rule, thresholding_ratio)
    if rule == "otsu":
        return scaled > otsu_threshold(scaled)
    return scaled > (threshold if rule == "minmax" else 0.5)


@dataclass(frozen=True)
class MaskPair:
    """One mask on both grids: `pixel` (H, W) bool and `latent` (h, w) bool."""

    pixel: Tensor
    latent: Tensor

    @classmethod
    def from_pixels(cls, pixel: Tensor, factor: int) -> "MaskPair":
        """Pixel mask first; a latent cell belongs to it as soon as one of its pixels does."""
        latent = functional.max_pool2d(pixel[None, None].float(), factor)[0, 0] > 0
        return cls(pixel, latent)

    def grown(self, by: int, factor: int) -> "MaskPair":
        """The pair grown, or with a negative number shrunk, by pixels; see `grow`."""
        if by == 0:
            return self
        pair = MaskPair.from_pixels(grow(self.pixel, by), factor)
        # Cells may reach beyond the pixels, for room: that room stays while they grow.
        return MaskPair(pair.pixel, pair.latent | self.latent if by > 0 else pair.latent)

    @classmethod
    def from_latents(cls, latent: Tensor, factor: int) -> "MaskPair":
        """Latent mask first, its cells drawn as squares of pixels, as the reference has it."""
        return cls(latent.repeat_interleave(factor, 0).repeat_interleave(factor, 1), latent)


def grow(mask: Tensor, by: int) -> Tensor:
    """The mask (H, W) with every pixel within `by` of it, sideways and up and down; of a negative
    number, without those so near its edge. The border of the picture is no edge.
    """
    if by < 0:
        return ~grow(~mask, -by)
    reached = mask[None].float()
    for size, padding in (((1, 2 * by + 1), (0, by)), ((2 * by + 1, 1), (by, 0))):
        reached = functional.max_pool2d(reached, size, stride=1, padding=padding)
    return reached[0] > 0


def feather(mask: Tensor, width: int) -> Tensor:
    """Blending weights (H, W) in 0..1: 1 inside the mask, falling to exactly 0 within `width`
    pixels outside.
    """
    alpha = mask[None, None].float()
    radius = width // 2
    if radius > 0:
        size = 2 * radius + 1
        alpha = functional.max_pool2d(alpha, size, stride=1, padding=radius)
        padded = functional.pad(alpha, (radius,) * 4, mode="replicate")
        # A running sum can leave 1e-8 where every pixel was 0: those must stay untouched.
        alpha = functional.avg_pool2d(padded, size, stride=1).clamp(0, 1)
        alpha = torch.where(alpha < 1e-4, 0.0, alpha)
    return alpha[0, 0]


def paste(edited: Tensor, original: Tensor, alpha: Tensor) -> Tensor:
    """Edited over original, uint8 (H, W, 3), by weights (H, W); weight 0 keeps the original."""
    weight = alpha[..., None]
    blended = (weight * edited + (1 - weight) * original).round().to(torch.uint8)
    return torch.where(weight > 0, blended, original)
