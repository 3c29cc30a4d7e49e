"""Captioned scenes of coloured shapes on textured grounds, drawn from a specification.

A `SceneSpec` says everything about a picture, and `render` is a pure function of it. Rendering the
same specification with one field changed gives the *true* edited image and the *true* mask of an
edit, against which an editor can be measured. Images are (128, 128, 3) `uint8`, masks (128, 128)
`bool`; lengths are in pixels, angles in radians.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ImageArray = NDArray[np.uint8]
MaskArray = NDArray[np.bool_]
ChangeKind = Literal["recolour", "reshape", "replace", "background", "remove"]

SIZE = 128
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 200),
    "yellow": (245, 205, 40),
    "purple": (130, 50, 170),
    "orange": (240, 130, 30),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star")
GROUNDS: dict[str, tuple[int, int, int]] = {
    "grass": (96, 140, 72),
    "sand": (214, 190, 140),
    "sky": (140, 185, 225),
    "stone": (130, 130, 135),
    "brick": (160, 90, 75),
}
CHANGE_KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)
# Pairs of colour and shape that are left out of what teaches to draw, so that new combinations can
# be measured.
HELD_OUT_PAIRS = frozenset(
    {("purple", "triangle"), ("orange", "square"), ("white", "star"), ("green", "circle")}
)

ATTRIBUTES = (*COLORS, *SHAPES, *GROUNDS)

TRAIN_SEEDS = range(0, 1_000_000)
JUDGE_SEEDS = range(1_000_000, 2_000_000)
VALIDATION_SEEDS = range(2_000_000, 3_000_000)
TEST_SEEDS = range(3_000_000, 4_000_000)

_COUNT_SHARES = (0.08, 0.46, 0.46)
_SUPERSAMPLING = 4
# Distances of the corners from the centre, in radii; no shape reaches farther than a star.
_REACH = 1.2
_CORNERS = {"square": [1.0] * 4, "triangle": [1.15] * 3, "star": [_REACH, 0.5] * 5}
_SHADING = 0.22 / np.sqrt(2)
_LIGHT_ANGLES = (np.radians(205), np.radians(245))
_TEXTURE_CONTRAST = {"grass": 50, "sand": 24, "sky": 160, "stone": 40, "brick": 45}


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    rotation: float


@dataclass(frozen=True)
class SceneSpec:
    """A scene; `ground_seed` fixes the texture of the ground, `light_angle` the shading."""

    objects: tuple[SceneObject, ...]
    ground: str
    ground_seed: int
    light_angle: float


@dataclass(frozen=True)
class Change:
    """An edit: which object (`index`) or ground gets which new attribute; "" keeps the old one."""

    kind: ChangeKind
    index: int = 0
    color: str = ""
    shape: str = ""
    ground: str = ""


def sample_scene(seed: int) -> SceneSpec:
    """Return the scene of a seed: up to two objects apart, distinct in colour and shape.

    Objects come from left to right, so a picture has one caption.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES))
    colors = rng.permutation(list(COLORS))[:count]
    shapes = rng.permutation(list(SHAPES))[:count]
    places = _sample_places(rng, count)
    return SceneSpec(
        objects=tuple(
            SceneObject(str(color), str(shape), *place.tolist())
            for color, shape, place in zip(colors, shapes, places, strict=True)
        ),
        ground=str(rng.choice(list(GROUNDS))),
        ground_seed=int(rng.integers(2**31)),
        light_angle=float(rng.uniform(*_LIGHT_ANGLES)),
    )


def sample_change(spec: SceneSpec, kind: ChangeKind, seed: int) -> Change:
    """Return an edit of this kind whose result keeps colours and shapes distinct within the scene.

    Raises:
        ValueError: The scene is empty and the edit needs an object.
    """
    rng = np.random.default_rng((seed, CHANGE_KINDS.index(kind)))
    if kind == "background":
        return Change(kind, ground=_draw_other(rng, list(GROUNDS), {spec.ground}))
    if not spec.objects:
        raise ValueError(f"an empty scene has nothing to {kind}")
    index = int(rng.integers(len(spec.objects)))
    color = _draw_other(rng, list(COLORS), {item.color for item in spec.objects})
    shape = _draw_other(rng, list(SHAPES), {item.shape for item in spec.objects})
    return Change(
        kind,
        index,
        color=color if kind in ("recolour", "replace") else "",
        shape=shape if kind in ("reshape", "replace") else "",
    )


def edit(spec: SceneSpec, change: Change) -> SceneSpec:
    """Return the counterfactual scene: `spec` with this one change and all else equal."""
    if change.kind == "background":
        return replace(spec, ground=change.ground)
    objects = list(spec.objects)
    old = objects.pop(change.index)
    if change.kind != "remove":
        new = replace(old, color=change.color or old.color, shape=change.shape or old.shape)
        objects.insert(change.index, new)
    return replace(spec, objects=tuple(objects))


def has_held_out_pair(spec: SceneSpec) -> bool:
    """Return whether an object of the scene is one that training leaves out."""
    return any((item.color, item.shape) in HELD_OUT_PAIRS for item in spec.objects)


def caption(spec: SceneSpec) -> str:
    """Return the caption, such as "an orange star and a black square on brick"."""
    names = [f"{item.color} {item.shape}" for item in spec.objects]
    listed = " and ".join(f"{'an' if name.startswith('o') else 'a'} {name}" for name in names)
    return f"{listed or 'nothing'} on {spec.ground}"


def render(spec: SceneSpec) -> ImageArray:
    """Return the picture of a scene; later objects are drawn over earlier ones."""
    image = Image.fromarray(_draw_ground(spec.ground, spec.ground_seed))
    for item in spec.objects:
        image.paste(Image.fromarray(_shade(item, spec.light_angle)), mask=_draw_coverage(item))
    return np.asarray(image)


def render_masks(spec: SceneSpec) -> list[MaskArray]:
    """Return the pixels that belong to each object, in the order of `spec.objects`."""
    return [np.asarray(_draw_coverage(item)) > 127 for item in spec.objects]


def measure_coverage(spec: SceneSpec, size: int) -> NDArray[np.float32]:
    """Return the share of each of `size` x `size` cells that shows each of `ATTRIBUTES`:
    (A, h, w), A their number.
    """
    cell = SIZE // size
    coverage = np.zeros((len(ATTRIBUTES), size, size), dtype=np.float32)
    ground = coverage[ATTRIBUTES.index(spec.ground)]
    ground += 1
    for item, mask in zip(spec.objects, render_masks(spec), strict=True):
        share = mask.reshape(size, cell, size, cell).mean(axis=(1, 3))
        coverage[ATTRIBUTES.index(item.color)] += share
        coverage[ATTRIBUTES.index(item.shape)] += share
        ground -= share
    return coverage


def true_mask(before: SceneSpec, after: SceneSpec) -> MaskArray:
    """Return the pixels that an edit may touch.

    These are the pixels that differ by more than 2 of 255, the whole support of every object that
    was changed or removed, and all that no object covers where the ground was changed.
    """
    difference = np.abs(render(before).astype(np.int16) - render(after).astype(np.int16))
    mask: MaskArray = np.any(difference > 2, axis=2)
    if before.ground != after.ground:
        mask |= ~sum(render_masks(before), start=np.zeros_like(mask))
    for spec, other in ((before, after), (after, before)):
        for item, support in zip(spec.objects, render_masks(spec), strict=True):
            if item not in other.objects:
                mask |= support
    return mask


def _sample_places(rng: np.random.Generator, count: int) -> NDArray[np.floating[Any]]:
    """Return rows of x, y, radius, rotation: objects inside the image that do not touch, by x."""
    smallest, largest = (20, 34) if count == 1 else (17, 26)
    while True:
        radius = rng.uniform(smallest, largest, size=count)
        x, y = rng.uniform(_REACH * radius, SIZE - _REACH * radius, size=(2, count))
        distance = np.hypot(np.ptp(x), np.ptp(y)) if count == 2 else np.inf
        if distance > _REACH * radius.sum() + 2:
            rotation = rng.uniform(0, 2 * np.pi, size=count)
            return np.stack([x, y, radius, rotation], axis=1)[np.argsort(x)]


def _draw_other(rng: np.random.Generator, names: list[str], taken: set[str]) -> str:
    return str(rng.choice([name for name in names if name not in taken]))


def _draw_coverage(item: SceneObject) -> Image.Image:
    """Return the antialiased share of every pixel that the object covers, as an 8-bit image."""
    large = Image.new("L", (SIZE * _SUPERSAMPLING, SIZE * _SUPERSAMPLING))
    draw = ImageDraw.Draw(large)
    if item.shape == "circle":
        x, y, radius = np.array([item.x, item.y, item.radius]) * _SUPERSAMPLING
        draw.circle((x, y), radius, fill=255)
    else:
        reaches = _CORNERS[item.shape]
        angles = item.rotation + np.arange(len(reaches)) * 2 * np.pi / len(reaches)
        lengths = item.radius * np.array(reaches)
        x = (item.x + lengths * np.cos(angles)) * _SUPERSAMPLING
        y = (item.y + lengths * np.sin(angles)) * _SUPERSAMPLING
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return large.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _shade(item: SceneObject, light_angle: float) -> ImageArray:
    """Return a full picture of the object's colour, brighter towards the light."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    toward_light = (columns - item.x) * np.cos(light_angle) + (rows - item.y) * np.sin(light_angle)
    brightness = 1 + _SHADING * toward_light / item.radius
    return _to_bytes(np.array(COLORS[item.color], dtype=float) * brightness[..., None])


def _draw_ground(ground: str, seed: int) -> ImageArray:
    """Return the textured ground: a vertical gradient with patches, clouds or bricks."""
    rng = np.random.default_rng(seed)
    contrast = _TEXTURE_CONTRAST[ground]
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    slope = (rows / SIZE - 0.5)[..., None] * rng.uniform(-25, 25)
    picture = np.array(GROUNDS[ground], dtype=float) + slope
    if ground == "sky":
        picture += np.clip(_draw_patches(rng, cells=6) - 0.55, 0, 1)[..., None] * contrast
    elif ground == "brick":
        offset = int(rng.integers(16))
        odd_course = (rows + offset) // 16 % 2
        upright = (columns + offset + odd_course * 16) % 32 < 2
        picture[upright | ((rows + offset) % 16 < 2)] += contrast
    else:
        picture += (_draw_patches(rng, cells=16) - 0.5)[..., None] * contrast
    return _to_bytes(picture)


def _draw_patches(rng: np.random.Generator, cells: int) -> NDArray[np.floating[Any]]:
    """Return smooth noise between 0 and 1, about `cells` bumps wide."""
    coarse = rng.normal(size=(cells, cells))
    levels = _to_bytes((coarse - coarse.min()) / np.ptp(coarse) * 255)
    smooth = Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=float) / 255


def _to_bytes(values: NDArray[np.floating[Any]]) -> ImageArray:
    return np.asarray(np.clip(values, 0, 255), dtype=np.uint8)
