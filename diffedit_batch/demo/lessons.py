"""Pictures that a captioner learns from.

Half of them are scenes with captions. The other half are crowded with more objects than a scene
has and have none: they are for learning colours and shapes, patch by patch, and one of them shows
as many as three scenes.

Shapes: N scenes and as many crowded pictures, B pictures of a batch, A attributes that a patch
may show, L caption tokens, S x S pixels, g x g patches.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffedit_batch.demo.scenes import (
    COLORS,
    SHAPES,
    SIZE,
    TRAIN_SEEDS,
    SceneObject,
    SceneSpec,
    caption,
    measure_coverage,
    render,
    sample_scene,
)

# Half the size of a scene: enough to tell shapes apart, and less to learn.
IMAGE_SIZE = 64
GRID = 8
_RADII = (16, 28)
_MARGIN = 1.15  # in radii
_NUM_TRIES = 60
_VISIBLE_SHARE = 0.02


@dataclass(frozen=True)
class Lessons:
    """Pictures to learn from.

    Attributes:
        pictures: N scenes, then N crowded ones, (2 N, 3, S, S), `uint8`.
        words: Which of `ATTRIBUTES` each patch shows, (2 N, A, g, g), 0 or 1.
        tokens: Captions of each scene and of its mirror image, (N, 2, L).
    """

    pictures: Tensor
    words: Tensor
    tokens: Tensor


def draw_lessons(num_scenes: int, tokenize: Callable[[list[str]], Tensor]) -> Lessons:
    """Return the first training scenes, each with a crowded twin.

    No pair of colour and shape is held out: a captioner this small puts no new ones together, and
    it is there to caption. `tokenize` returns the tokens (M, L) of M captions.
    """
    seeds = TRAIN_SEEDS[:num_scenes]
    specs = [sample_scene(seed) for seed in seeds]
    crowded = [crowd(spec, seed) for spec, seed in zip(specs, seeds, strict=True)]
    mirrored = [replace(spec, objects=spec.objects[::-1]) for spec in specs]
    tokens = tokenize([caption(spec) for spec in (*specs, *mirrored)])
    return Lessons(
        torch.stack([_draw_small(spec) for spec in (*specs, *crowded)]),
        torch.stack([_find_words(spec) for spec in (*specs, *crowded)]),
        torch.stack([tokens[:num_scenes], tokens[num_scenes:]], dim=1),
    )


def crowd(spec: SceneSpec, seed: int) -> SceneSpec:
    """Return the ground of a scene with as many objects as find a place."""
    rng = np.random.default_rng((seed, 1))
    pairs = list(itertools.product(COLORS, SHAPES))
    objects: list[SceneObject] = []
    for _ in range(_NUM_TRIES):
        color, shape = pairs[rng.integers(len(pairs))]
        radius = rng.uniform(*_RADII)
        x, y = rng.uniform(_MARGIN * radius, SIZE - _MARGIN * radius, size=2)
        if all(
            np.hypot(x - item.x, y - item.y) > _MARGIN * (radius + item.radius) for item in objects
        ):
            objects.append(SceneObject(color, shape, x, y, radius, rng.uniform(0, 2 * np.pi)))
    return replace(spec, objects=tuple(objects))


def draw_batch(
    lessons: Lessons, batch_size: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scenes and as many crowded pictures, flipped left to right, upside down or both.

    These are images (B, 3, S, S) in [-1, 1], the words of their patches (B, A, g, g) and the
    captions of the first half (B / 2, L).
    """
    num_scenes, half = len(lessons.tokens), batch_size // 2
    chosen = generator.integers(num_scenes, size=batch_size)
    mirrored, inverted = generator.integers(2, size=(2, batch_size))
    tokens = lessons.tokens[chosen[:half], mirrored[:half]]
    chosen[half:] += num_scenes

    def flip(parts: Tensor) -> Tensor:
        for flips, axis in ((mirrored, 3), (inverted, 2)):
            is_flipped = torch.from_numpy(flips == 1)[:, None, None, None]
            parts = torch.where(is_flipped, parts.flip(axis), parts)
        return parts

    images = flip(lessons.pictures[chosen]).float() / 127.5 - 1
    return images, flip(lessons.words[chosen]), tokens


def _draw_small(spec: SceneSpec) -> Tensor:
    """Return the picture as a captioner's processor resizes it, (3, S, S)."""
    image = Image.fromarray(render(spec)).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _find_words(spec: SceneSpec) -> Tensor:
    """Return which of `ATTRIBUTES` each patch shows, (A, g, g), 0 or 1.

    A tip of a star counts as much as a patch full of it: tips and edges tell shapes apart.
    """
    return torch.from_numpy(measure_coverage(spec, GRID) > _VISIBLE_SHARE).float()
