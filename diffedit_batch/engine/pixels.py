"""Between pictures of any size and tensors of a few sizes.

Legend: H x W pixels. Pictures are uint8 (H, W, 3), soft maps uint8 (H, W), masks bool (H, W).
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diffedit_batch.core.mask import paste

Picture = NDArray[np.uint8]
SoftMap = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PSNR_CAP = 100.0
"""Decibels of pictures that are equal to the bit; an infinite number would spoil every mean."""


def content_key(picture: Picture) -> str:
    """64 hex digits that stand for the pixels of a picture, however they were stored."""
    digest = hashlib.sha256(repr(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def to_tensor(picture: Picture, size: tuple[int, int]) -> Tensor:
    """The picture at `size` (width, height) as (3, H, W), fp32 in -1..1."""
    return torch.from_numpy(resize(picture, size)).permute(2, 0, 1).float() / 127.5 - 1


def to_bytes(image: Tensor) -> Tensor:
    """A (3, H, W) image in -1..1 as bytes (H, W, 3), on its device."""
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def to_picture(image: Tensor) -> Picture:
    """A (3, H, W) image in -1..1 as a picture."""
    picture: Picture = to_bytes(image).cpu().numpy()
    return picture


def resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture at `size` (width, height); itself where it has that size."""
    if picture.shape[1::-1] == size:
        return picture.copy()
    image = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    return np.array(image)


def resize_weights(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights (H, W) in 0..1 at `size` (width, height); what is 0 all around stays 0."""
    if weights.shape[::-1] == size:
        return weights
    return functional.interpolate(weights[None, None], size=size[::-1], mode="bilinear")[0, 0]


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """The mask at `size` (width, height).

    Where it shrinks, a pixel belongs to it as soon as one of those it stands for does: a thin line
    must not get lost.
    """
    height, width = mask.shape
    weights = torch.from_numpy(mask).float()
    smaller = (min(size[1], height), min(size[0], width))
    if smaller != mask.shape:
        weights = functional.adaptive_max_pool2d(weights[None, None], smaller)[0, 0]
    resized: Mask = (resize_weights(weights, size) > 0.5).numpy()
    return resized


def resize_map(soft: SoftMap, size: tuple[int, int]) -> SoftMap:
    """The map at `size` (width, height); itself where it has that size."""
    if soft.shape[::-1] == size:
        return soft
    return np.array(Image.fromarray(soft).resize(size, Image.Resampling.BILINEAR))


def background_psnr(edited: Picture, original: Picture, mask: Mask) -> float | None:
    """How well the pixels outside the mask were kept: PSNR in dB, at most `PSNR_CAP`, or None
    where there are none.
    """
    kept = ~mask
    if not kept.any():
        return None
    # By lines: differences of a large picture at once would take several times its memory.
    total = 0
    for edited_row, row, is_kept in zip(edited, original, kept, strict=True):
        difference = edited_row[is_kept].astype(np.int32) - row[is_kept]
        total += int((difference * difference).sum())
    if total == 0:
        return PSNR_CAP
    mean = total / (3 * int(kept.sum()))
    return min(PSNR_CAP, float(10 * np.log10(255**2 / mean)))


def paste_picture(edited: Picture, original: Picture, weights: Tensor) -> Picture:
    """Edited over original, by weights of their size; weight 0 keeps the original's bytes."""
    # Pictures that came from elsewhere may be read-only, which torch does not take.
    over, under = (torch.from_numpy(np.require(p, requirements="W")) for p in (edited, original))
    pasted: Picture = paste(over, under, weights).numpy()
    return pasted
