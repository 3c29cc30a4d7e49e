"""Who is blamed when workers die: first on paper, then with real ones."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker
from jobs_on_disk import edits_of, job, results, write_manifest, write_pictures

from diffedit_batch.errors import ClusterError, RowError
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.backlog import Backlog, Bundle
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.fan_out import fan_out
from diffedit_batch.runtime.messages import WorkerInfo
from diffedit_batch.runtime.pool import Done, Lost

Requests = list[tuple[str, str]]
"""Image and order of each row; rows ordered to `die` take their worker with them."""


class OneWorker:
    """What fan_out sees of a pool with one worker, without the worker."""

    num_workers = 1

    def __init__(self, is_node_lost: Callable[[int], bool] = lambda num_lost: False) -> None:
        self.held: list[Bundle] = []
        self.num_lost = 0
        self.is_node_lost = is_node_lost

    @property
    def num_in_flight(self) -> int:
        return len(self.held)

    def has_room(self, bundle: Bundle) -> bool:
        is_alone = bundle.num_deaths > 0 or any(held.num_deaths for held in self.held)
        return len(self.held) < (1 if is_alone else 2)

    def submit(self, bundle: Bundle) -> None:
        self.held.append(bundle)

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        orders = [o for bundle in self.held for group in bundle.groups for _, o in group]
        if "die" not in orders:
            return [Done(self.held.pop(0), None, WorkerInfo("host", "cpu", 0.0))]
        self.num_lost += 1
        lost, self.held = self.held, []
        is_node = self.is_node_lost(self.num_lost)
        return [Lost(bundle, f"death {self.num_lost}", is_node) for bundle in lost]


@dataclass
class Outcome:
    """Rows that came back, and rows given up with the causes of their deaths."""

    done: list[int] = field(default_factory=list)
    failed: dict[int, tuple[str, ...]] = field(default_factory=dict)


def run(rows: Requests, pool: OneWorker | None = None, outcome: Outcome | None = None) -> Outcome:
    """Hand out rows in bundles of 16 to one worker."""
    outcome = outcome or Outcome()

    def take(event: Done) -> None:
        outcome.done.extend(number for group in event.bundle.groups for number, _ in group)

    def give_up(request: Any, error: RowError, causes: tuple[str, ...]) -> None:
        assert (error.stage, error.kind) == ("worker", "WorkerDied")
        outcome.failed[request[0]] = causes

    requests = ((image, (number, order)) for number, (image, order) in enumerate(rows))
    fan_out(
        Backlog(requests, 16, 1),
        pool or OneWorker(),  # type: ignore[arg-type]
        threading.Event(),
        take=take,
        give_up=give_up,
        on_wait=lambda: None,
    )
    return outcome


@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_poison_row_fails_alone_wherever_it_stands(place: int) -> None:
    rows = [(str(number), "") for number in range(64)]
    rows[place] = ("poison", "die")
    outcome = run(rows)
    assert list(outcome.failed) == [place]
    assert sorted(outcome.done) == [n for n in range(64) if n != place]
    [causes] = outcome.failed.values()
    assert causes == tuple(f"death {n}" for n in range(1, len(causes) + 1))


@pytest.mark.parametrize("place", [0, 20, 60])
def test_a_picture_that_kills_whoever_reads_it_fails_all_its_rows_and_no_other(place: int) -> None:
    """More deaths in a row than a job allows whose workers are not seen to be well."""
    rows = [(str(number), "") for number in range(60)]
    rows[place:place] = [("poison", "die")] * 32
    outcome = run(rows)
    assert sorted(outcome.failed) == list(range(place, place + 32))
    assert len(outcome.done) == 60


@pytest.mark.parametrize("num_rows", [5, 16, 1000])
def test_workers_that_all_die_blame_no_row(num_rows: int) -> None:
    outcome = Outcome()
    with pytest.raises(ClusterError, match="no row is blamed"):
        run([(str(number), "die") for number in range(num_rows)], outcome=outcome)
    assert outcome == Outcome()


def test_workers_that_all_begin_to_die_blame_no_row() -> None:
    rows = [(str(number), "" if number < 100 else "die") for number in range(1000)]
    outcome = Outcome()
    with pytest.raises(ClusterError, match="no row is blamed"):
        run(rows, outcome=outcome)
    assert not outcome.failed
    assert len(outcome.done) > 80


def test_rows_are_not_charged_for_the_loss_of_nodes() -> None:
    outcome = run([("poison", "die")], OneWorker(is_node_lost=lambda num_lost: num_lost <= 3))
    assert len(outcome.failed[0]) == 3 + 4, "three nodes, a death that makes suspect, three alone"


def test_nodes_that_are_lost_again_and_again_under_the_same_row_are_its_fault() -> None:
    """Or an autoscaler would buy nodes for ever."""
    rows = [("poison", "die"), *((str(number), "") for number in range(5))]
    outcome = run(rows, OneWorker(is_node_lost=lambda num_lost: True))
    assert list(outcome.failed) == [0]
    assert len(outcome.done) == 5


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)


CAUSES = {
    "crash": "worker process has died",
    "raise": "RuntimeError: device-side assert triggered",
    "fill": "",  # MemoryError, or what follows of it
    "hang": "no progress for 2 s",
    "freeze": "no progress for 2 s",
    "die": "worker process has died",
    "kill": "worker process has died",
}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here", "fake")
def test_rows_that_kill_or_hang_their_workers_fail_and_no_others(tmp_path: Path) -> None:
    """Five of them each with a picture of its own, and two among the edits of one picture."""
    *names, last = write_pictures(tmp_path, 11)
    rows = edits_of(names) + edits_of([last], per_picture=3)
    places = [*(f"00{number}-0" for number in range(0, 10, 2)), "010-0", "010-2"]
    orders = dict(zip(places, CAUSES, strict=True))
    for row in rows:
        row["target_prompt"] = orders.get(row["id"], row["target_prompt"])
    write_manifest(tmp_path, rows)
    config = job(
        tmp_path,
        Path("demo"),
        engine={"batch_size": 2},
        cluster={"workers": 2, "hang_timeout_s": 2.0},
        output={"uri": str(tmp_path / "output"), "max_failed_fraction": 0.9},
    )
    state = run_job(config)
    assert state.counts == {"unchanged": 6, "failed": 7}
    for row in results(tmp_path):
        order = orders.get(row["id"])
        assert row["status"] == ("failed" if order else "unchanged")
        errors = row["attempt_errors"]
        assert row["attempts"] == len(errors) + (order is None)
        if order:
            assert (row["error_stage"], row["error_type"]) == ("worker", "WorkerDied")
            assert row["error_message"] == f"3 workers died of this row alone: {errors[-1]}"
            assert all(CAUSES[order] in error for error in errors[-3:])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here", "fake")
def test_a_bundle_may_take_longer_than_a_hang_as_long_as_it_makes_progress(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 20))
    for row in rows:
        row["target_prompt"] = "slow"
    write_manifest(tmp_path, rows)
    cluster = {"hang_timeout_s": 4.0}
    run_job(job(tmp_path, Path("demo"), engine={"batch_size": 20}, cluster=cluster))
    assert [row["attempts"] for row in results(tmp_path)] == [1] * 20
