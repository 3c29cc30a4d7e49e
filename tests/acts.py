"""Running acts in tests without a batcher."""

from collections.abc import Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffedit_batch.core.acts import Act, Evaluate, Fetch, Text, Texts
from diffedit_batch.engine.batcher import NoiseModel

T = TypeVar("T")


def text(key: Hashable, value: float = 0.0) -> Text:
    """A text of 3 tokens and width 4, all of one value."""
    return Text(key, torch.full((3, 4), value))


def texts(source: float = 1.0, target: float = 2.0, negative: float = 0.0) -> Texts:
    """Texts told apart by their value; the inversion uses the source, all negatives are equal."""
    empty = text(("negative", negative), negative)
    return Texts(
        source=text(("prompt", source), source),
        target=text(("prompt", target), target),
        inversion=text(("prompt", source), source),
        negative=empty,
        inversion_negative=empty,
        source_mask_negative=empty,
        target_mask_negative=empty,
    )


def drive(act: Act[T], noise_model: NoiseModel, log: list[Evaluate] | None = None) -> T:
    """Run an act to its end, one wish at a time; wishes for evaluations are appended to `log`."""
    return _drive(act, noise_model, {}, [] if log is None else log)


def _drive(
    act: Act[T], noise_model: NoiseModel, shared: dict[Hashable, Any], log: list[Evaluate]
) -> T:
    answer: Any = None
    while True:
        try:
            wish = act.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if isinstance(wish, Evaluate):
            log.append(wish)
            states = torch.stack([one.states for one in wish.texts])
            answer = noise_model(wish.latents, wish.timestep.expand(len(states)), states)
        elif isinstance(wish, Fetch):
            answer = wish.values.tolist()
        else:
            if wish.key not in shared:
                shared[wish.key] = _drive(wish.start(), noise_model, shared, log)
            answer = shared[wish.key]


def num_evals(log: list[Evaluate]) -> int:
    """Network evaluations in a log."""
    return sum(len(wish.texts) for wish in log)


def by_text(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """A network that answers each text's own value everywhere, whatever it is shown."""
    return states[:, 0, 0, None, None, None].expand_as(latents)
