"""Step-level batching: the wishes of many rows, at any timestep, in few full network calls.

Acts (see `core.diffedit`) yield what they need and are parked; `Batcher.step` packs parked wishes
of one shape into one call, oldest row first, and hands the outputs back. Rows that finish early
make room at once; nothing a row receives depends on who shared its calls, but for the last bits in
which kernels of different sizes round.

Legend: B evaluations in a call, C channels, h x w latent grid, L tokens, D text width.
"""

import bisect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffedit_batch.core.acts import Act, Evaluate
from diffedit_batch.engine.counters import Counters

NoiseModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents (B, C, h, w), timesteps (B,), texts (B, L, D)) -> outputs (B, C, h, w)."""

Scope = dict[Hashable, "_Task"]
"""The acts that rows of one image share, by key."""


@dataclass
class Finished:
    """An act that came to its end: its `token` and either a `result` or an `error`."""

    token: Any
    result: Any = None
    error: Exception | None = None


@dataclass(eq=False)
class _Task:
    order: int
    act: Act[Any]
    scope: Scope
    token: Any
    wish: Evaluate | None = None
    num_taken: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    end: Finished | None = None
    waiting: list["_Task"] = field(default_factory=list)

    @property
    def bucket(self) -> tuple[int, ...]:
        assert self.wish is not None
        return (*self.wish.latents.shape[1:], self.wish.texts[0].states.shape[0])


class Batcher:
    """Runs many acts over one noise model.

    Args:
        noise_model: the network.
        batch_size: evaluations in a full call; smaller calls are padded to the next power of two,
            so that few shapes ever reach the device.
        counters: where work is counted.
    """

    def __init__(self, noise_model: NoiseModel, batch_size: int, counters: Counters) -> None:
        self._noise_model = noise_model
        self._batch_size = batch_size
        self._counters = counters
        self._limits: dict[tuple[int, ...], int] = {}
        self._parked: list[_Task] = []
        self._finished: list[Finished] = []
        self._num_started = 0

    def add(self, act: Act[Any], scope: Scope, token: Any) -> None:
        """Start an act; `token` comes back with its end."""
        self._num_started += 1
        self._advance(_Task(self._num_started, act, scope, token), None)

    def step(self) -> list[Finished]:
        """Run one network call, if any act waits; return the acts that ended meanwhile."""
        if self._parked:
            self._call(self._parked[0].bucket)
        finished, self._finished = self._finished, []
        return finished

    def _call(self, bucket: tuple[int, ...]) -> None:
        limit = self._limits.get(bucket, self._batch_size)
        takers: list[tuple[_Task, Evaluate, slice]] = []
        room = limit
        for task in self._parked:
            if room == 0:
                break
            if task.bucket != bucket or task.wish is None:
                continue
            count = min(room, len(task.wish.texts) - task.num_taken)
            takers.append((task, task.wish, slice(task.num_taken, task.num_taken + count)))
            room -= count
        latents = torch.cat([wish.latents[part] for _, wish, part in takers])
        timesteps = torch.cat(
            [wish.timestep.expand(part.stop - part.start) for _, wish, part in takers]
        )
        states = torch.stack([text.states for _, wish, part in takers for text in wish.texts[part]])
        num_evals = len(latents)
        size = min(limit, 1 << (num_evals - 1).bit_length())
        outputs, failure = None, ""
        try:
            outputs = self._noise_model(*(_pad(t, size) for t in (latents, timesteps, states)))
        except torch.OutOfMemoryError as error:
            failure = str(error)
        if outputs is None:
            # Not before the handler is left: its traceback keeps what did not fit alive.
            self._shrink(bucket, size, takers[0][0], torch.OutOfMemoryError(failure))
            return
        self._counters.unet_calls += 1
        self._counters.unet_evals += num_evals
        self._counters.padding_evals += size - num_evals
        start = 0
        for task, wish, part in takers:
            count = part.stop - part.start
            task.outputs.append(outputs[start : start + count])
            task.num_taken += count
            start += count
            if task.num_taken == len(wish.texts):
                self._parked.remove(task)
                self._advance(task, torch.cat(task.outputs))

    def _shrink(self, bucket: tuple[int, ...], size: int, first: _Task, error: Exception) -> None:
        """Remember a smaller call for this shape; if not even one fits, fail the row that asked."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size > 1:
            self._limits[bucket] = size // 2
            self._counters.batch_halvings += 1
        else:
            self._parked.remove(first)
            self._advance(first, error)

    def _advance(self, task: _Task, answer: Any) -> None:
        """Hand an answer (or an exception) to an act and run it up to its next wish or its end."""
        while True:
            try:
                if isinstance(answer, Exception):
                    wish = task.act.throw(answer)
                else:
                    wish = task.act.send(answer)
            except StopIteration as stop:
                self._finish(task, Finished(task.token, result=stop.value))
                return
            except (ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
                self._finish(task, Finished(task.token, error=error))
                return
            if isinstance(wish, Evaluate):
                task.wish, task.num_taken, task.outputs = wish, 0, []
                bisect.insort(self._parked, task, key=lambda parked: parked.order)
                return
            shared = task.scope.get(wish.key)
            if shared is None:
                # What others wait for is as old as the row that asked first.
                shared = _Task(task.order, wish.start(), task.scope, None)
                task.scope[wish.key] = shared
                if wish.name == "inversion":
                    self._counters.inversions += 1
                self._advance(shared, None)
            if shared.end is None:
                shared.waiting.append(task)
                return
            answer = shared.end.error or shared.end.result

    def _finish(self, task: _Task, end: Finished) -> None:
        task.end = end
        if task.token is not None:
            self._finished.append(end)
        for waiting in task.waiting:
            self._advance(waiting, end.error or end.result)
        task.waiting.clear()


def _pad(batch: Tensor, size: int) -> Tensor:
    """The batch with its last element repeated up to `size`."""
    missing = size - len(batch)
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
