"""Step-level batching: the wishes of many rows, at any timestep, in few full network calls.

Acts (see `core.diffedit`) yield what they need and are parked; `Batcher.step` packs parked wishes
of one shape into one call, oldest row first, and hands the outputs back. Shapes that fill a call
go before those that do not: rows of a rare shape wait until there are more of them, or nothing else
to do. Rows that finish early make room at once; nothing a row receives depends on who shared its
calls, but for the last bits in which kernels of different sizes round.

Legend: B evaluations in a call, C channels, h x w latent grid, L tokens, D text width.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffedit_batch.core.acts import Act, Evaluate, Fetch
from diffedit_batch.engine.counters import Counters
from diffedit_batch.models.transfer import HostCopy

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
    numbers: HostCopy | None = None
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
        batch_size: evaluations in a full call; smaller ones come in few sizes, see `call_size`.
        counters: where work is counted.
    """

    def __init__(self, noise_model: NoiseModel, batch_size: int, counters: Counters) -> None:
        self._noise_model = noise_model
        self._batch_size = batch_size
        self._counters = counters
        self._limits: dict[tuple[int, ...], int] = {}
        self._parked: list[_Task] = []
        self._fetching: list[_Task] = []
        self._finished: list[Finished] = []
        self._num_started = 0

    def add(self, act: Act[Any], scope: Scope, token: Any) -> None:
        """Start an act; `token` comes back with its end."""
        self._num_started += 1
        self._advance(_Task(self._num_started, act, scope, token), None)

    @property
    def is_idle(self) -> bool:
        """Whether no act waits for anything."""
        return not self._parked and not self._fetching

    @property
    def has_full_call(self) -> bool:
        """Whether the next call will be full."""
        bucket = self._choose()
        return bucket is not None and self._count_waiting()[bucket] >= self._limit(bucket)

    def step(self) -> list[Finished]:
        """Run one network call, if any act waits; return the acts that ended meanwhile."""
        bucket = self._choose()
        if bucket is not None:
            self._call(bucket)
        # After the call is under way: what it is computed from is then there already.
        self._take_numbers(is_idle=bucket is None)
        finished, self._finished = self._finished, []
        return finished

    def _choose(self) -> tuple[int, ...] | None:
        """The shape of the oldest act among those that fill a call, or else among all."""
        waiting = self._count_waiting()
        for bucket, num_evals in waiting.items():
            if num_evals >= self._limit(bucket):
                return bucket
        return next(iter(waiting), None)

    def _count_waiting(self) -> Counter[tuple[int, ...]]:
        """Evaluations waited for by shape, that of the oldest act first."""
        waiting: Counter[tuple[int, ...]] = Counter()
        for task in self._parked:
            assert task.wish is not None
            waiting[task.bucket] += len(task.wish.texts) - task.num_taken
        return waiting

    def _limit(self, bucket: tuple[int, ...]) -> int:
        return self._limits.get(bucket, self._batch_size)

    def _take_numbers(self, *, is_idle: bool) -> None:
        """Let acts go on whose numbers are here; wait for them only where nothing else is to do."""
        fetching, self._fetching = self._fetching, []
        for task in fetching:
            assert task.numbers is not None
            if task.numbers.is_here or (is_idle and not self._parked):
                self._advance(task, _numbers(task.numbers))
            else:
                self._fetching.append(task)

    def _call(self, bucket: tuple[int, ...]) -> None:
        limit = self._limit(bucket)
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
        size = call_size(num_evals, limit)
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
            if isinstance(wish, Fetch):
                task.numbers = HostCopy({"numbers": wish.values})
                if not task.numbers.is_here:
                    self._fetching.append(task)
                    return
                answer = _numbers(task.numbers)
                continue
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


def call_size(num_evals: int, limit: int) -> int:
    """The size of a call that holds so many evaluations: 1 to 8, 10, 12, 14, 16, 20, ..., limit.

    Four sizes between a power of two and the next: few shapes for the device to prepare for, and
    little to fill up.
    """
    step = 1 << max(0, (num_evals - 1).bit_length() - 3)
    return min(limit, -(-num_evals // step) * step)


def _numbers(copy: HostCopy) -> list[float]:
    numbers: list[float] = copy.wait()["numbers"].tolist()
    return numbers


def _pad(batch: Tensor, size: int) -> Tensor:
    """The batch with its last element repeated up to `size`."""
    missing = size - len(batch)
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
