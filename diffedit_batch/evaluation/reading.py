"""What a picture shows, read without learning: colours, shapes and grounds of known places.

Every reading answers a name, or "" where the picture is none of the names clearly enough. Colours
are compared in CIE Lab, where distances are those the eye sees.

Legend: H x W pixels, K colours of a palette, P pixels of a window, S shifts, T templates.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage, spatial
from skimage.color import rgb2lab

from diffedit_batch.demo.scenes import (
    COLORS,
    GROUNDS,
    SHAPES,
    ImageArray,
    MaskArray,
    SceneObject,
    SceneSpec,
    render,
    render_masks,
)

Floats = NDArray[np.floating]

MARGIN = 0.75
"""The nearest colour counts only at less than this share of the distance to the next one."""
SMALLEST_FIT = 0.75
"""IoU below which an outline is no shape at all."""
FOREIGN = 14.0
"""Lab distance from every colour of a ground at which a pixel is no part of it."""
SMALLEST_SHARE = 0.01
"""Share of a picture below which a patch of colour is no object."""
FLAT = 0.15
"""Standard deviation of fine lightness below which a surface is paint, not a ground."""

_BRIGHTNESS = np.array([0.78, 0.9, 1.0, 1.1, 1.22])
# Autoencoders round corners off: every template is there sharp and blunt.
_BLUR = 2.5
_SCALES = (0.8, 0.9, 1.0, 1.1, 1.2)
_SHIFTS = (-4, -2, -1, 0, 1, 2, 4)
# Corners at equal angles, in radii from the centre; a turn by one of `period` equal parts changes
# nothing.
_OUTLINES = {"square": ([1.0] * 4, 4), "triangle": ([1.15] * 3, 3), "star": ([1.2, 0.5] * 5, 5)}
# In squares of the radius.
_AREAS = {"circle": np.pi, "square": 2.0, "triangle": 1.72, "star": 1.76}
_NUM_ROTATIONS = {"square": 9, "triangle": 12, "star": 8}


def to_lab(picture: ImageArray) -> Floats:
    """A picture (H, W, 3) in CIE Lab."""
    lab: Floats = rgb2lab(picture)
    return lab


def read_colour(lab: Floats, support: MaskArray) -> str:
    """The colour of what fills `support`: the nearest name to the median of its inner pixels.

    Shading darkens one half of an object as much as it brightens the other: the median is the
    paint's own colour.
    """
    inner = ndimage.binary_erosion(support, iterations=3)
    middle = np.median(lab[inner if inner.any() else support], axis=0)
    return _nearest(middle, list(COLORS), _lab_of(list(COLORS.values())))


def read_shape(lab: Floats, place: SceneObject, palette: Floats, rivals: Sequence[str]) -> str:
    """The shape of what has the colour of `place`, at its position, give or take 4 px and 20 %.

    Pixels nearer to that colour, shaded or not, than to the ground's `palette` (K, 3) and to the
    colours of `rivals` are the outline; the shape whose template covers it best is the answer.
    """
    templates, half = _templates(round(place.radius))
    reach = half + max(_SHIFTS)
    x, y = round(place.x), round(place.y)
    top, left = max(0, y - reach), max(0, x - reach)
    window = lab[top : y + reach + 1, left : x + reach + 1]
    outline = _outline_of(window, place.color, palette, rivals)
    rows, columns = window.shape[:2]
    padded = np.zeros((2 * reach + 1, 2 * reach + 1), bool)
    first_row, first_column = top - (y - reach), left - (x - reach)
    padded[first_row : first_row + rows, first_column : first_column + columns] = outline
    side = 2 * half + 1
    shifted = np.stack(
        [
            padded[dy : dy + side, dx : dx + side].ravel()
            for dy in np.add(_SHIFTS, max(_SHIFTS))
            for dx in np.add(_SHIFTS, max(_SHIFTS))
        ]
    )  # (S, P)
    inside = shifted.astype(np.float32) @ templates.T.astype(np.float32)  # (S, T)
    union = outline.sum() + templates.sum(axis=1) - inside
    fit = (inside / union).max(axis=0)
    best = int(fit.argmax())
    names = [shape for shape in SHAPES for _ in _poses(shape)]
    return names[best // 2] if fit[best] >= SMALLEST_FIT else ""


def locate(
    lab: Floats, one: SceneObject, palette: Floats, rivals: Sequence[str]
) -> SceneObject | None:
    """`one` where a picture shows something of its colour, with a radius to match; None if nowhere.

    Args:
        lab: the picture.
        one: whose colour and shape are looked for; its place plays no part.
        palette: colours (K, 3) of the ground.
        rivals: colours of other objects.
    """
    outline = _outline_of(lab, one.color, palette, rivals)
    if outline.mean() < SMALLEST_SHARE:
        return None
    y, x = ndimage.center_of_mass(outline)
    radius = float(np.sqrt(outline.sum() / _AREAS[one.shape]))
    return dataclasses.replace(one, x=float(x), y=float(y), radius=radius)


def read_ground(lab: Floats, visible: MaskArray) -> str:
    """The ground that fills `visible`: its median colour, most of its pixels, and some texture."""
    pixels = lab[visible][::7]
    distances = [spatial.KDTree(ground_palette(name)).query(pixels)[0] for name in GROUNDS]
    by_median = _nearest(np.median(pixels, axis=0), list(GROUNDS), _ground_medians())
    shares = np.bincount(np.argmin(distances, axis=0), minlength=len(GROUNDS)) / len(pixels)
    names = list(GROUNDS)
    fine = lab[..., 0] - ndimage.gaussian_filter(lab[..., 0], 4)
    inner = ndimage.binary_erosion(visible, iterations=8, border_value=1)
    if not by_median or shares[names.index(by_median)] < 0.8 or fine[inner].std() < FLAT:
        return ""
    return by_median


def is_bare(lab: Floats, support: MaskArray, palette: Floats) -> bool:
    """Whether nothing but ground is left in `support`, judged by the ground's `palette` (K, 3)."""
    distances, _ = spatial.KDTree(palette).query(lab[support])
    return bool((distances > FOREIGN).mean() < 0.05)


def has_patch(lab: Floats, visible: MaskArray, palette: Floats) -> bool:
    """Whether something as large as an object that is no ground lies in `visible`."""
    foreign = visible.copy()
    foreign[visible] = spatial.KDTree(palette).query(lab[visible])[0] > FOREIGN
    return bool(_largest_part(foreign).mean() > SMALLEST_SHARE)


def palette_of(scene: SceneSpec) -> Floats:
    """Lab colours (K, 3) that the ground of this very scene shows between its objects."""
    lab = to_lab(render(scene))
    covered = np.logical_or.reduce([np.zeros(lab.shape[:2], bool), *render_masks(scene)])
    bare = ~ndimage.binary_dilation(covered, iterations=2)
    return np.concatenate([lab[bare][::37], np.median(lab[bare], axis=0)[None]])


@functools.cache
def ground_palette(ground: str) -> Floats:
    """Lab colours (K, 3) that a ground shows in some renderings of it."""
    scenes = [SceneSpec((), ground, seed, 0.0) for seed in range(4)]
    return np.concatenate([palette_of(scene) for scene in scenes])


@functools.cache
def _ground_medians() -> Floats:
    return np.stack([np.median(ground_palette(name), axis=0) for name in GROUNDS])


def _lab_of(colours: Sequence[Sequence[float]]) -> Floats:
    lab: Floats = rgb2lab(np.clip(np.array(colours, float), 0, 255) / 255)
    return lab


@functools.cache
def _shades(color: str) -> Floats:
    return _lab_of(_BRIGHTNESS[:, None] * np.array(COLORS[color]))


def _nearest(value: Floats, names: Sequence[str], prototypes: Floats) -> str:
    distances = np.linalg.norm(prototypes - value, axis=1)
    first, second = np.argsort(distances)[:2]
    return names[first] if distances[first] < MARGIN * distances[second] else ""


def _outline_of(lab: Floats, color: str, palette: Floats, rivals: Sequence[str]) -> MaskArray:
    """The largest patch nearer to a colour, shaded or not, than to ground and rivals."""
    classes = [_shades(color), palette, *(_shades(name) for name in rivals)]
    nearest = [spatial.KDTree(one).query(lab.reshape(-1, 3))[0] for one in classes]
    return _largest_part((np.argmin(nearest, axis=0) == 0).reshape(lab.shape[:2]))


def _largest_part(mask: MaskArray) -> MaskArray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest: MaskArray = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return largest


def _poses(shape: str) -> list[tuple[float, float]]:
    """Rotation and scale of every template of a shape."""
    if shape == "circle":
        return [(0.0, scale) for scale in _SCALES]
    period = 2 * np.pi / _OUTLINES[shape][1]
    turns = np.arange(_NUM_ROTATIONS[shape]) * period / _NUM_ROTATIONS[shape]
    return [(turn, scale) for turn in turns for scale in _SCALES]


@functools.lru_cache(32)
def _templates(radius: int) -> tuple[NDArray[np.bool_], int]:
    """All shapes in all poses, (T, P), in a square window, and half the side of that window."""
    half = int(np.ceil(1.2 * max(_SCALES) * radius)) + 1
    pictures = []
    for shape in SHAPES:
        for rotation, scale in _poses(shape):
            image = Image.new("1", (2 * half + 1, 2 * half + 1))
            draw = ImageDraw.Draw(image)
            if shape == "circle":
                draw.circle((half, half), radius * scale, fill=1)
            else:
                reaches = np.array(_OUTLINES[shape][0])
                angles = rotation + np.arange(len(reaches)) * 2 * np.pi / len(reaches)
                corners = half + radius * scale * reaches * np.array(
                    [np.cos(angles), np.sin(angles)]
                )
                draw.polygon(list(map(tuple, corners.T.tolist())), fill=1)
            sharp = np.asarray(image)
            pictures += [sharp, ndimage.gaussian_filter(sharp.astype(np.float32), _BLUR) > 0.5]
    return np.stack(pictures).reshape(len(pictures), -1), half
