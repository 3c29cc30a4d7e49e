from pathlib import Path

import pytest
from fake_worker import BrokenWorker, FakeWorker, StuckWorker
from jobs_on_disk import job

from diffedit_batch.config import JobConfig
from diffedit_batch.errors import ClusterError
from diffedit_batch.runtime import pool
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


def start(config: JobConfig, worker: type = FakeWorker) -> WorkerPool:
    """A pool with a worker that is ready."""
    workers = WorkerPool(config, worker, "edit")
    while not workers.num_ready:
        workers.wait(1.0)
    return workers


@pytest.fixture
def workers(tmp_path: Path) -> WorkerPool:
    return start(job(tmp_path, Path("demo")))


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


def test_patience_counts_while_the_driver_looks(workers: WorkerPool) -> None:
    """A driver that was held up for days replaces a worker that died meanwhile like any other."""
    workers._watched_at -= 1e6
    workers.submit(bundle("slow", "die"))
    [event] = next_events(workers)
    assert isinstance(event, Lost)
    assert "worker process has died" in event.cause
    assert not event.is_node_lost
    while not workers.num_ready:
        workers.wait(1.0)
    workers.submit(bundle("a"))
    [event] = next_events(workers)
    assert isinstance(event, Done)
    workers.close()


@pytest.mark.parametrize("order", ["hang", "freeze"])
def test_a_worker_that_makes_no_progress_is_replaced(tmp_path: Path, order: str) -> None:
    workers = start(job(tmp_path, Path("demo"), cluster={"hang_timeout_s": 2.0}))
    process = Path("/proc", workers.infos[0].host.removeprefix("process "))
    assert process.exists()
    workers.submit(bundle("a", order))
    [event] = next_events(workers)
    assert isinstance(event, Lost)
    assert (event.cause, event.is_node_lost) == ("no progress for 2 s", False)
    while not workers.num_ready or process.exists():
        workers.wait(1.0)
    workers.close()


def test_a_worker_with_nothing_to_do_is_left_in_peace(tmp_path: Path) -> None:
    workers = start(job(tmp_path, Path("demo"), cluster={"hang_timeout_s": 0.5}))
    for _ in range(4):
        assert workers.wait(1.0) == []
        assert workers.num_ready == 1
    workers.close()


def test_a_worker_that_dies_with_nothing_to_do_is_replaced(workers: WorkerPool) -> None:
    [actor] = workers._actors
    actor.kill()
    while workers._actors == [actor]:
        assert workers.wait(1.0) == []
    workers.close()


def test_a_worker_that_hangs_while_it_starts_is_replaced(tmp_path: Path) -> None:
    cluster = {"workers": 2, "start_timeout_s": 10.0}
    config = job(tmp_path, Path("demo"), cluster=cluster)
    (tmp_path / "output").mkdir()
    workers = start(config, StuckWorker)
    while workers.num_ready < 2:
        workers.wait(1.0)
    workers.close()


def test_a_worker_that_cannot_be_made_stops_the_job_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"3 workers in a row .* no such library"):
        start(job(tmp_path, Path("demo")), BrokenWorker)


def test_who_waits_for_a_place_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "_WARN_EVERY_S", 1.0)
    cluster = {"cpus_per_worker": 64.0, "start_timeout_s": 4.0, "workers": 2}
    with pytest.raises(ClusterError, match="0 are loading, 2 wait for a place"):
        start(job(tmp_path, Path("demo"), cluster=cluster))
    assert "Each asks for 0 GPU and 64 CPU; the cluster has 0 GPU and 2 CPU" in caplog.text
    assert "no worker is ready, the job stops in" in caplog.text


def test_a_range_follows_the_work_that_is_left(tmp_path: Path) -> None:
    workers = start(job(tmp_path, Path("demo"), cluster={"workers": "1..3"}))
    assert workers.num_workers == 1, "before anything is known of the work"
    workers.submit(bundle(f"wait for {tmp_path}/it is time"))
    workers.num_bundles_left = 100
    while workers.num_ready < 3:
        assert workers.wait(1.0) == []
        assert workers.num_workers <= 3
    workers.submit(bundle("a"))
    assert isinstance(next_events(workers)[0], Done)
    workers.num_bundles_left = 1
    while workers.num_workers > 1:
        assert workers.wait(1.0) == []
    (tmp_path / "it is time").touch()
    assert isinstance(next_events(workers)[0], Done), "who has work is not the one to go"
    assert len(workers.infos) == 3
    workers.close()
