"""How good a mask is, and how well an edit left alone what it should.

Every metric is a float; NaN says that it is undefined for this item (nothing predicted, no
background left), which whoever averages must count and leave out.

Legend: H x W pixels, h x w latent grid. Masks are bool, pictures uint8 (H, W, 3).
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]

UNDEFINED = float("nan")
BACKGROUND_MARGIN = 4
"""Pixels around the true mask that are neither inside nor background."""
PSNR_CAP = 60.0
"""Decibels at which identical pictures (infinite PSNR) enter averages and medians."""


def iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union; undefined where both are empty."""
    return _ratio((mask & truth).sum(), (mask | truth).sum())


def precision(mask: Mask, truth: Mask) -> float:
    """Share of the mask that is true; undefined where it is empty."""
    return _ratio((mask & truth).sum(), mask.sum())


def recall(mask: Mask, truth: Mask) -> float:
    """Share of the truth that was found; undefined where there is none."""
    return _ratio((mask & truth).sum(), truth.sum())


def to_grid(mask: Mask, factor: int) -> Mask:
    """The cells (h, w) of which at least half the pixels (H, W) belong to the mask."""
    height, width = mask.shape
    cells = mask.reshape(height // factor, factor, width // factor, factor)
    covered: Mask = cells.mean(axis=(1, 3)) >= 0.5
    return covered


def boundary_f(mask: Mask, truth: Mask, tolerance: float = 2.0) -> float:
    """F score of the outlines, equal where they are within `tolerance` pixels of each other.

    The frame of the picture is no outline. Undefined where neither mask has one; 0 where one has.
    """
    ours, theirs = _outline(mask), _outline(truth)
    if not ours.any() and not theirs.any():
        return UNDEFINED
    if not ours.any() or not theirs.any():
        return 0.0
    exactness = (ndimage.distance_transform_edt(~theirs)[ours] <= tolerance).mean()
    coverage = (ndimage.distance_transform_edt(~ours)[theirs] <= tolerance).mean()
    return _ratio(2 * exactness * coverage, exactness + coverage, 0.0)


def average_precision(scores: NDArray[np.floating], truth: Mask) -> float:
    """Area under the precision-recall curve of a continuous map (H, W), by steps.

    Says how well the map tells inside from outside at the best of thresholds. Equal scores are
    accepted together. Undefined where the truth is empty.
    """
    if not truth.any():
        return UNDEFINED
    levels, inverse = np.unique(-scores.ravel(), return_inverse=True)
    hits = np.bincount(inverse, weights=truth.ravel(), minlength=len(levels)).cumsum()
    taken = np.bincount(inverse, minlength=len(levels)).cumsum()
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / hits[-1])


def background_of(truth: Mask) -> Mask:
    """The pixels farther than `BACKGROUND_MARGIN` from a true mask: an edit must not touch them."""
    if not truth.any():
        return np.ones_like(truth)
    far: Mask = ndimage.distance_transform_edt(~truth) > BACKGROUND_MARGIN
    return far


def mean_squared_error(picture: Picture, reference: Picture, where: Mask) -> float:
    """Mean squared difference within `where`, in squares of 1/255; undefined where that is
    empty.
    """
    difference = picture[where].astype(np.float64) - reference[where]
    return float((difference**2).mean()) if difference.size else UNDEFINED


def worst_block_error(picture: Picture, reference: Picture, where: Mask, size: int = 8) -> float:
    """The largest mean squared error of the `size` x `size` blocks that lie wholly in `where`.

    A small stain far from the mask hardly moves a mean over the background. Undefined where no
    block lies in `where`.
    """
    height, width = where.shape
    shape = (height // size, size, width // size, size)
    squares = ((picture.astype(np.float64) - reference) ** 2).mean(axis=2)
    errors = squares.reshape(shape).mean(axis=(1, 3))[where.reshape(shape).all(axis=(1, 3))]
    return float(errors.max()) if errors.size else UNDEFINED


def psnr(squared_error: float) -> float:
    """Decibels of a mean squared error; infinite for identical pictures."""
    if squared_error == 0:
        return float("inf")
    return float(10 * np.log10(255**2 / squared_error))


def identical_share(picture: Picture, reference: Picture, where: Mask) -> float:
    """Share of the pixels of `where` that are equal to the bit; undefined where it is empty."""
    same = (picture == reference).all(axis=2)
    return _ratio((same & where).sum(), where.sum())


def seam_error(picture: Picture, truth: Picture, mask: Mask, width: int = 3) -> float:
    """How much steeper a picture is than the true edit, along the outline of the mask used.

    Mean lightness gradient within `width` pixels of the outline, in 1/255 per pixel, over that of
    `truth`: a visible seam is positive, a smear negative. Undefined where the mask has no outline.
    """
    outline = _outline(mask)
    if not outline.any():
        return UNDEFINED
    ring = ndimage.distance_transform_edt(~outline) <= width
    return float(_steepness(picture)[ring].mean() - _steepness(truth)[ring].mean())


def _ratio(part: float, whole: float, otherwise: float = UNDEFINED) -> float:
    return float(part / whole) if whole > 0 else otherwise


def _outline(mask: Mask) -> Mask:
    """Pixels of a mask that have a neighbour outside it."""
    edge: Mask = mask & ~ndimage.binary_erosion(mask, border_value=1)
    return edge


def _steepness(picture: Picture) -> NDArray[np.floating]:
    grey = picture.astype(np.float64).mean(axis=2)
    slopes = np.gradient(grey)
    steepness: NDArray[np.floating] = np.hypot(slopes[0], slopes[1])
    return steepness
