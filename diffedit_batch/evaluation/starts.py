"""Where denoising starts if not from the inverted picture: ablations, SDEdit and text to image."""

import hashlib
from typing import Literal

import torch
from torch import Tensor

from diffedit_batch.core.diffedit import Act, FindLevels, Recipe, Texts
from diffedit_batch.core.guidance import PredictionType
from diffedit_batch.core.noise import draw
from diffedit_batch.core.schedule import Schedule, add_noise

Start = Literal["inverted", "noised", "noise"]
"""`inverted`: as DiffEdit has it; `noised`: the clean latent under fresh noise (SDEdit, arXiv
2108.01073); `noise`: nothing but noise."""


def add_fresh_noise(
    x_0: Tensor,
    texts: Texts,
    recipe: Recipe,
    schedule: Schedule,
    prediction_type: PredictionType,
) -> Act[list[Tensor]]:
    """Levels as `invert` gives them, but of one fresh noise; the network is not asked."""
    noise = _draw_start(x_0, recipe)
    num_levels = schedule.level_of(recipe.inpaint_strength)
    return [x_0, *(add_noise(x_0, noise, a) for a in schedule.alpha_bar[1 : num_levels + 1])]
    yield  # an act is a generator


def forget_picture(
    x_0: Tensor,
    texts: Texts,
    recipe: Recipe,
    schedule: Schedule,
    prediction_type: PredictionType,
) -> Act[list[Tensor]]:
    """Levels of nothing but noise: with a mask of everything, text to image."""
    noise = _draw_start(x_0, recipe)
    return [x_0, *([noise] * schedule.level_of(recipe.inpaint_strength))]
    yield  # an act is a generator


FIND_LEVELS: dict[Start, FindLevels | None] = {
    "inverted": None,
    "noised": add_fresh_noise,
    "noise": forget_picture,
}
"""How an editor gets its levels, by where denoising starts."""


def _draw_start(x_0: Tensor, recipe: Recipe) -> Tensor:
    key = hashlib.sha256(x_0.cpu().numpy().tobytes()).hexdigest()
    noise = draw(tuple(x_0.shape), seed=recipe.seed, image_key=key, purpose="start")
    return noise.to(x_0.device, torch.float32)
