"""Where denoising starts if not from the inverted picture: ablations, SDEdit and text to image."""

import hashlib
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from diffedit_batch.core.acts import Act, FindLevels, Recipe, Texts
from diffedit_batch.core.diffedit import invert
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
    *,
    keeps_picture: bool,
) -> Act[list[Tensor]]:
    """Levels as `invert` gives them, but of one fresh noise; the network is not asked.

    Without the picture they are nothing but noise: with a mask of everything, text to image.
    """
    key = hashlib.sha256(x_0.cpu().numpy().tobytes()).hexdigest()
    noise = draw(tuple(x_0.shape), seed=recipe.seed, image_key=key, purpose="start")
    noise = noise.to(x_0.device, torch.float32)
    alpha_bars = schedule.alpha_bar[1 : schedule.level_of(recipe.inpaint_strength) + 1]
    return [x_0, *(add_noise(x_0, noise, a) if keeps_picture else noise for a in alpha_bars)]
    yield  # an act is a generator


FIND_LEVELS: dict[Start, FindLevels] = {
    "inverted": invert,
    "noised": partial(add_fresh_noise, keeps_picture=True),
    "noise": partial(add_fresh_noise, keeps_picture=False),
}
"""How an editor gets its levels, by where denoising starts."""
