from collections.abc import Iterator
from typing import Any

import pytest
import torch
from acts import by_text, text
from torch import Tensor

from diffedit_batch.core.acts import Act, Evaluate, Fetch, Once
from diffedit_batch.engine.batcher import Batcher, Finished, call_size
from diffedit_batch.engine.counters import Counters
from diffedit_batch.models.transfer import HostCopy


def ask(value: float, count: int, times: int = 1, size: int = 8) -> Act[list[Tensor]]:
    """An act with `times` wishes of `count` evaluations under one text."""
    answers = []
    for step in range(times):
        latents = torch.zeros(count, 4, size, size)
        answers.append((yield Evaluate(latents, torch.tensor(step), [text(value, value)] * count)))
    return answers


def finish(batcher: Batcher, limit: int = 1000) -> Iterator[Finished]:
    for _ in range(limit):
        yield from batcher.step()
        if batcher.is_idle:
            yield from batcher.step()
            return
    raise AssertionError("the batcher never ended")


def test_every_act_gets_the_answers_to_its_own_wishes() -> None:
    batcher = Batcher(by_text, 16, counters := Counters())
    for value in range(7):
        batcher.add(ask(value, count=3, times=4), {}, value)
    ends = {end.token: end.result for end in finish(batcher)}
    assert sorted(ends) == list(range(7))
    for value, answers in ends.items():
        assert len(answers) == 4
        for answer in answers:
            assert answer.shape == (3, 4, 8, 8)
            assert (answer == value).all()
    assert counters.unet_evals == 7 * 3 * 4


def test_wishes_at_different_timesteps_share_a_call() -> None:
    seen: list[list[int]] = []

    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        seen.append(timesteps.tolist())
        return latents

    batcher = Batcher(network, 8, Counters())
    batcher.add(ask(1, count=1, times=3), {}, "a")
    batcher.step()
    batcher.add(ask(2, count=1, times=3), {}, "b")
    list(finish(batcher))
    assert [1, 0] in seen


def test_a_large_wish_is_spread_over_calls_of_full_size() -> None:
    sizes: list[int] = []

    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        sizes.append(len(latents))
        return latents

    batcher = Batcher(network, 8, counters := Counters())
    batcher.add(ask(1, count=20), {}, "a")
    [end] = finish(batcher)
    assert end.result[0].shape[0] == 20
    assert sizes == [8, 8, 4]
    assert counters.padding_evals == 0


def test_calls_come_in_few_sizes_and_padding_is_counted() -> None:
    sizes: set[int] = set()

    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        sizes.add(len(latents))
        return by_text(latents, timesteps, states)

    batcher = Batcher(network, 16, counters := Counters())
    for count in range(1, 17):
        batcher.add(ask(count, count=count), {}, count)
        [end] = finish(batcher)
        assert end.result[0].shape[0] == count
    assert sizes == {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16}
    assert counters.unet_evals == sum(range(1, 17))
    assert counters.padding_evals == 4, "one for each of 9, 11, 13, 15"


def test_a_call_is_never_larger_than_its_limit_nor_padded_by_a_quarter() -> None:
    for num_evals in range(1, 513):
        for limit in (num_evals, num_evals + 1, 512):
            assert num_evals <= (size := call_size(num_evals, limit)) <= limit
            assert size < num_evals * 5 / 4
    assert len({call_size(num_evals, 64) for num_evals in range(1, 65)}) == 20


def test_padding_never_reaches_an_act() -> None:
    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        return torch.arange(len(latents), dtype=torch.float32)[:, None, None, None] + latents

    batcher = Batcher(network, 16, Counters())
    batcher.add(ask(1, count=5), {}, "a")
    [end] = finish(batcher)
    assert end.result[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_shapes_do_not_mix() -> None:
    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        assert len({tuple(one.shape) for one in latents}) == 1
        return latents

    batcher = Batcher(network, 16, counters := Counters())
    batcher.add(ask(1, count=2, size=8), {}, "small")
    batcher.add(ask(1, count=2, size=16), {}, "large")
    assert {end.token for end in finish(batcher)} == {"small", "large"}
    assert counters.unet_calls == 2


def test_the_oldest_act_goes_first() -> None:
    batcher = Batcher(by_text, 4, Counters())
    for token in ("first", "second", "third"):
        batcher.add(ask(1, count=4, times=3), {}, token)
    assert [end.token for end in finish(batcher)] == ["first", "second", "third"]


def test_shapes_that_fill_a_call_go_first_and_a_rare_one_at_the_end() -> None:
    batcher = Batcher(by_text, 4, counters := Counters())
    batcher.add(ask(1, count=3, size=16), {}, "rare")
    assert not batcher.has_full_call
    for token in ("one", "other"):
        batcher.add(ask(1, count=2, times=3), {}, token)
    assert batcher.has_full_call
    assert [end.token for end in finish(batcher)] == ["one", "other", "rare"]
    assert counters.padding_evals == 0
    batcher.add(ask(1, count=3, size=16), {}, "rare")
    batcher.add(ask(1, count=3), {}, "common")
    assert [end.token for end in finish(batcher)] == ["rare", "common"], "the oldest, with no full"


class SlowCopy(HostCopy):
    """Numbers that arrive when they are let go, as from a GPU."""

    let_go = False

    @property
    def is_here(self) -> bool:
        return self.let_go


def test_others_go_on_while_numbers_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def curious() -> Act[list[float]]:
        numbers: list[float] = yield Fetch(torch.tensor([1.5, 2.5]))
        yield from ask(1, count=1)
        return numbers

    monkeypatch.setattr("diffedit_batch.engine.batcher.HostCopy", SlowCopy)
    batcher = Batcher(by_text, 4, Counters())
    batcher.add(curious(), {}, "curious")
    batcher.add(ask(1, count=4, times=3), {}, "busy")
    assert [end.token for _ in range(3) for end in batcher.step()] == ["busy"]
    [end] = finish(batcher)
    assert (end.token, end.result) == ("curious", [1.5, 2.5]), "waited for, with nothing else to do"
    batcher.add(curious(), {}, "curious")
    batcher.add(ask(1, count=4, times=3), {}, "busy")
    batcher.step()
    monkeypatch.setattr(SlowCopy, "let_go", True)
    assert [end.token for _ in range(2) for end in batcher.step()] == ["curious"], "now the older"
    assert [end.token for end in finish(batcher)] == ["busy"]


def test_what_is_asked_once_runs_once_for_all_who_share_a_scope() -> None:
    started: list[str] = []

    def shared() -> Act[list[Tensor]]:
        started.append("inversion")
        return (yield from ask(5, count=1, times=3))

    def row(extra: int) -> Act[Any]:
        levels = yield Once("inversion", "key", shared)
        yield from ask(1, count=extra)
        return levels

    scope: dict[Any, Any] = {}
    batcher = Batcher(by_text, 8, counters := Counters())
    for number in range(1, 4):
        batcher.add(row(number), scope, number)
    ends = list(finish(batcher))
    batcher.add(row(1), scope, "late")
    ends += list(finish(batcher))
    assert started == ["inversion"]
    assert counters.inversions == 1
    assert len({id(end.result) for end in ends}) == 1
    batcher.add(row(1), {}, "elsewhere")
    list(finish(batcher))
    assert counters.inversions == 2


def test_an_error_ends_its_act_and_no_other() -> None:
    def broken() -> Act[None]:
        yield from ask(1, count=1)
        raise ValueError("no such step")

    batcher = Batcher(by_text, 8, Counters())
    batcher.add(broken(), {}, "broken")
    batcher.add(ask(2, count=1, times=3), {}, "good")
    ends = {end.token: end for end in finish(batcher)}
    assert isinstance(ends["broken"].error, ValueError)
    assert ends["good"].error is None


def test_an_error_of_a_shared_act_reaches_all_who_wait_for_it() -> None:
    def shared() -> Act[None]:
        yield from ask(1, count=1)
        raise FloatingPointError("nan")

    def row() -> Act[None]:
        yield Once("inversion", "key", shared)

    batcher = Batcher(by_text, 8, Counters())
    scope: dict[Any, Any] = {}
    batcher.add(row(), scope, 1)
    batcher.add(row(), scope, 2)
    ends = list(finish(batcher))
    assert [type(end.error) for end in ends] == [FloatingPointError] * 2


def limited(limit: int) -> Any:
    """A network on a device that holds calls of up to `limit` evaluations."""

    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        if len(latents) > limit:
            raise torch.OutOfMemoryError(f"{len(latents)} do not fit")
        return by_text(latents, timesteps, states)

    return network


def test_out_of_memory_halves_the_call_and_remembers_it_for_the_shape() -> None:
    batcher = Batcher(limited(5), 16, counters := Counters())
    batcher.add(ask(3, count=20, times=2), {}, "a")
    [end] = finish(batcher)
    assert all((answer == 3).all() for answer in end.result)
    assert counters.batch_halvings == 2
    assert counters.unet_evals == 40
    batcher.add(ask(3, count=20), {}, "b")
    list(finish(batcher))
    assert counters.batch_halvings == 2


def test_a_row_that_does_not_fit_alone_fails_and_others_go_on() -> None:
    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        if latents.shape[-1] == 16:
            raise torch.OutOfMemoryError("too large")
        return latents

    batcher = Batcher(network, 4, Counters())
    batcher.add(ask(1, count=4, size=16), {}, "large")
    batcher.add(ask(1, count=4, size=8), {}, "small")
    ends = {end.token: end for end in finish(batcher)}
    assert isinstance(ends["large"].error, torch.OutOfMemoryError)
    assert ends["small"].error is None


def test_what_nobody_expected_is_not_swallowed() -> None:
    def network(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        raise RuntimeError("device-side assert")

    batcher = Batcher(network, 4, Counters())
    batcher.add(ask(1, count=1), {}, "a")
    with pytest.raises(RuntimeError, match="device-side assert"):
        batcher.step()
