from pathlib import Path

import pytest
from fake_worker import FakeWorker
from jobs_on_disk import job

from diffedit_batch.runtime.backlog import Bundle
from diffedit_batch.runtime.pool import Done, Lost, WorkerPool
from diffedit_batch.schema import EditRequest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def bundle(*orders: str, num_deaths: int = 0) -> Bundle:
    requests = [EditRequest(str(i), ("a",), (order,)) for i, order in enumerate(orders)]
    return Bundle([tuple(requests)], num_deaths=num_deaths)


def next_events(workers: WorkerPool) -> list[Done | Lost]:
    for _ in range(60):
        events = workers.wait(1.0)
        if events:
            return events
    raise AssertionError("nothing happened for a minute")


@pytest.fixture
def workers(tmp_path: Path) -> WorkerPool:
    workers = WorkerPool(job(tmp_path, Path("demo")), FakeWorker, "edit")
    while not workers.num_ready:
        workers.wait(1.0)
    return workers


def test_a_worker_takes_two_bundles_and_no_third(workers: WorkerPool) -> None:
    for _ in range(2):
        assert workers.has_room(bundle("a"))
        workers.submit(bundle("slow"))
    assert not workers.has_room(bundle("a"))
    assert workers.num_in_flight == 2
    workers.close()


def test_a_suspect_runs_with_nothing_beside_it(workers: WorkerPool) -> None:
    workers.submit(bundle("slow"))
    assert not workers.has_room(bundle("a", num_deaths=1))
    next_events(workers)
    workers.submit(bundle("slow", num_deaths=1))
    assert not workers.has_room(bundle("a"))
    workers.close()


def test_patience_counts_from_when_a_worker_was_last_alive(workers: WorkerPool) -> None:
    """A worker that dies hours after the start is replaced like any other."""
    workers._last_alive -= 1e6
    workers.submit(bundle("slow", "die"))
    [event] = next_events(workers)
    assert isinstance(event, Lost)
    while not workers.num_ready:
        workers.wait(1.0)
    workers.submit(bundle("a"))
    [event] = next_events(workers)
    assert isinstance(event, Done)
    workers.close()
