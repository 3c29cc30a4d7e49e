"""Small requested edits of random pictures, for tests of the engine."""

from typing import Any

import numpy as np

from diffedit_batch.config import EditConfig
from diffedit_batch.engine.pixels import Mask, Picture
from diffedit_batch.schema import EditRequest

QUICK = {"num_inference_steps": 10, "num_maps_per_mask": 2}
SOURCE, TARGETS = "a red circle on grass", ["a blue circle", "a star", "grass", "a sky"]


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def request(number: int = 0, target: str = TARGETS[0], **edit: Any) -> EditRequest:
    parameters = EditConfig.model_validate({**QUICK, **edit}).resolved()
    return EditRequest(str(number), (SOURCE,), (target,), edit=parameters)


def box(width: int, height: int) -> Mask:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return mask
