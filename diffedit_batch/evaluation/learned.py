"""A second, learned reading of objects, to check the first: a small network that names a crop.

Trained by `train_judge.py` on scenes of `JUDGE_SEEDS`, which no model and no measurement sees.

Legend: B crops, S = 32 pixels, the side of a crop.
"""

import functools
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from diffedit_batch.demo.scenes import COLORS, SHAPES, ImageArray, SceneObject

SIDE = 32
REACH = 1.4
"""Half the width of a crop, in radii of the object."""
COLOR_NAMES = (*COLORS, "")
SHAPE_NAMES = (*SHAPES, "")
"""What the network answers; "": there is no object."""
WEIGHTS = Path(__file__).with_name("judge.safetensors")


class ObjectReader(nn.Module):
    """Logits of colours (B, 9) and shapes (B, 5) for crops (B, 3, S, S) in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for stride, (inner, outer) in zip((1, 2, 2, 1), pairwise(widths), strict=True):
            layers += [
                nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.colors = nn.Linear(64 * 16, len(COLOR_NAMES))
        self.shapes = nn.Linear(64 * 16, len(SHAPE_NAMES))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of colours and shapes."""
        features = self.body(crops)
        return self.colors(features), self.shapes(features)


def crop(picture: ImageArray, x: float, y: float, radius: float) -> NDArray[np.uint8]:
    """The surroundings (S, S, 3) of a place in a picture, whatever the size of what is there."""
    reach = REACH * radius
    margin = int(np.ceil(reach))
    padded = Image.fromarray(np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), "edge"))
    box = (margin + x - reach, margin + y - reach, margin + x + reach, margin + y + reach)
    return np.array(padded.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def to_batch(crops: NDArray[np.uint8]) -> Tensor:
    """Crops (B, S, S, 3) as the network takes them, (B, 3, S, S)."""
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_objects(picture: ImageArray, places: Sequence[SceneObject]) -> list[tuple[str, str]]:
    """Colour and shape that the network sees at each place; "" where it sees no object."""
    if not places:
        return []
    crops = np.stack([crop(picture, one.x, one.y, one.radius) for one in places])
    with torch.no_grad():
        colors, shapes = _load()(to_batch(crops))
    return [
        (COLOR_NAMES[int(color)], SHAPE_NAMES[int(shape)])
        for color, shape in zip(colors.argmax(1), shapes.argmax(1), strict=True)
    ]


@functools.cache
def _load() -> ObjectReader:
    reader = ObjectReader()
    reader.load_state_dict(load_file(WEIGHTS))
    return reader.eval()
