from types import SimpleNamespace
from typing import Any

import pytest

from diffedit_batch.engine.counters import Counters
from diffedit_batch.runtime import worker_state
from diffedit_batch.runtime.messages import BundleResult, WorkerInfo
from diffedit_batch.runtime.records import RunState
from diffedit_batch.runtime.worker_state import WorkerState


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(worker_state, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def bundle(num_rows: int, status: str = "edited", **more: Any) -> BundleResult:
    rows = [{"id": str(number), "status": status} for number in range(num_rows)]
    return BundleResult(rows, Counters(unet_evals=num_rows), {"edit": 1.0, "wait": 0.5}, **more)


def info(host: str = "node") -> WorkerInfo:
    return WorkerInfo(host, "cpu", 0.0, pid=7)


def test_the_rate_is_that_of_the_last_bundles_and_falls_while_nothing_comes(clock: Clock) -> None:
    worker = WorkerState(info())
    assert worker.rows_per_s == 0.0
    clock.now += 10
    worker.deliver(bundle(20))
    assert worker.rows_per_s == 2.0
    for _ in range(8):
        clock.now += 1
        worker.deliver(bundle(5))
    assert worker.rows_per_s == 5.0, "the slow start is no longer among the last eight"
    clock.now += 8
    assert worker.rows_per_s == 2.5
    worker.is_ready = False
    assert worker.rows_per_s == 0.0
    assert worker.num_rows == 60


def test_a_record_keeps_the_rate_up_to_the_last_bundle_and_where_the_logs_are(clock: Clock) -> None:
    worker = WorkerState(info())
    clock.now += 4
    worker.deliver(bundle(2))
    worker.deliver(bundle(1, "failed", gpu_memory_used_bytes=5))
    clock.now += 1000
    worker.is_ready = False
    kept = worker.as_dict("/tmp/ray/session/logs")
    assert kept["counts"] == {"edited": 2, "failed": 1}
    assert kept["rows_per_s"] == 0.75
    assert kept["gpu_memory_used_bytes"] == 5
    assert (kept["host"], kept["pid"]) == ("node", 7)
    assert kept["log_files"] == "/tmp/ray/session/logs/worker-*-7.*"


def test_a_run_is_as_fast_as_the_workers_it_has(clock: Clock) -> None:
    state = RunState("run", num_rows=100)
    workers = [info("a"), info("b")]
    state.see(workers, workers, [])
    assert state.eta_s is None
    clock.now += 5
    for worker, num_rows in zip(workers, (10, 5), strict=True):
        state.deliver(worker, bundle(num_rows))
    state.selected["new"], state.counts["edited"] = 40, 15
    assert state.rows_per_s == 3.0
    assert state.num_left == 85
    assert state.eta_s == 85 / 3
    assert (state.counters.unet_evals, state.seconds) == (15, {"edit": 2.0, "wait": 1.0})

    state.see(workers, workers[1:], [("a:7", "died")])
    assert state.rows_per_s == 1.0
    assert (state.num_workers, state.lost_workers) == (1, [("a:7", "died")])
    assert [worker.is_ready for worker in state.workers] == [False, True]


def test_rows_that_earlier_runs_did_are_neither_left_nor_fast(clock: Clock) -> None:
    """After a resume the rate and what is left are of this run alone."""
    state = RunState("run", num_rows=1000, num_committed=900)
    worker = info()
    state.see([worker], [worker], [])
    assert state.num_left == 100, "before any row was looked at"
    state.selected.update(unchanged=900, new=10)
    assert state.num_left == 100
    clock.now += 10
    state.deliver(worker, bundle(5))
    state.counts["edited"] = 5
    assert (state.num_done, state.num_left, state.eta_s) == (905, 95, 190.0)
    state.selected.update(new=90)
    state.counts["edited"] = 100
    assert (state.num_done, state.num_left) == (1000, 0)


@pytest.mark.parametrize(
    ("selected", "num_left"),
    [
        ({"changed": 10}, 100),  # the config changed: so are all the others, by what was seen
        ({"changed": 5, "unchanged": 5}, 50),
        ({"retried": 1, "unchanged": 9}, 10),
        ({"new": 10}, 20),  # no result was met yet: they are expected to be kept
        ({"new": 100}, 100),
    ],
)
def test_what_is_left_follows_what_became_of_the_rows_before(
    selected: dict[str, int], num_left: int
) -> None:
    state = RunState("run", num_rows=100, num_committed=80 if "new" in selected else 100)
    state.selected.update(selected)
    assert state.num_left == num_left
