"""An editor that starts from noise instead of inverting: ablations, SDEdit and text to image."""

from typing import Any, Literal

import torch
from torch import Tensor

from diffedit_batch.core.diffedit import Act, Edit, Once
from diffedit_batch.core.noise import draw
from diffedit_batch.core.schedule import add_noise
from diffedit_batch.engine.editor import DiffEditor, _Row
from diffedit_batch.models.components import Components

Start = Literal["inverted", "noised", "noise"]
"""`inverted`: as DiffEdit has it; `noised`: the clean latent under fresh noise (SDEdit, arXiv
2108.01073); `noise`: nothing but noise."""


class StartingEditor(DiffEditor):
    """An editor of which it can be said where denoising starts.

    Args:
        components: the model.
        start: where.
    """

    def __init__(self, components: Components, start: Start) -> None:
        super().__init__(components)
        self._start_from = start

    def _start(
        self, row: _Row, mean: Tensor, std: Tensor, size: tuple[int, int], key: str
    ) -> Act[Edit]:
        act = super()._start(row, mean, std, size, key)
        if self._start_from == "inverted":
            return act
        edit = row.request.edit
        schedule = self.components.schedule(edit.num_inference_steps)
        shape = tuple(mean.shape)
        noise = draw(shape, seed=row.request.seed, image_key=key, purpose="start").to(mean.device)
        alpha_bar = schedule.alpha_bar[: schedule.level_of(edit.inpaint_strength) + 1]
        if self._start_from == "noise":
            alpha_bar = torch.zeros_like(alpha_bar)
        levels = [mean, *(add_noise(mean, noise, level) for level in alpha_bar[1:])]
        return _answer_inversion(act, levels)


def _answer_inversion(act: Act[Edit], levels: list[Tensor]) -> Act[Edit]:
    """The same act, given `levels` (C, h, w) when it asks for the inverted latents."""
    answer: Any = None
    while True:
        try:
            wish = act.send(answer)
        except StopIteration as stop:
            ended: Edit = stop.value
            return ended
        if isinstance(wish, Once) and wish.name == "inversion":
            answer = levels
        else:
            answer = yield wish
