"""Nodes that come and go while a job runs, each with a GPU that only Ray's scheduler sees."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker
from jobs_on_disk import edits_of, job, results, write_manifest, write_pictures
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster

from diffedit_batch.config import JobConfig
from diffedit_batch.errors import ClusterError
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.backlog import Backlog, Bundle
from diffedit_batch.runtime.driver import run_job

pytestmark = pytest.mark.ray

OBJECT_STORE = 80 * 2**20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without GPUs."""
    # Workers may be classes of modules beside the folder of this file.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        },
    )
    yield cluster
    cluster.shutdown()


def add_node(cluster: Cluster, **labels: str) -> Any:
    return cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=OBJECT_STORE, labels=labels)


def demand(cluster: Cluster) -> list[dict[str, float]]:
    """What an autoscaler is told that actors wait for, one by one."""
    kinds = get_cluster_status(cluster.gcs_address).resource_demands.ray_task_actor_demand
    requests = [request for kind in kinds for request in kind.bundles_by_count]
    return [request.bundle for request in requests for _ in range(request.count)]


def wait_until_nobody_waits(cluster: Cluster) -> None:
    """Until nothing is left of the demand of a driver that is gone, which Ray learns of by and by;
    in vain until the test's timeout, where something is.
    """
    while demand(cluster):
        time.sleep(0.05)


def drive(config: JobConfig, outcome: Any) -> None:
    """The driver, in a process of its own, so that nodes can be taken from under it."""
    os.chdir(Path(config.output.uri).parent)

    def count_workers(state: Any) -> None:
        outcome["num_ready"] = state.num_workers

    put_back = Backlog.put_back

    def record_charge(backlog: Backlog, bundle: Bundle, cause: str, **how: bool) -> None:
        outcome["charges"] = (*outcome.get("charges", ()), how.get("is_charged", True))
        put_back(backlog, bundle, cause, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "Worker", FakeWorker)
        patch.setattr(Backlog, "put_back", record_charge)
        try:
            state = run_job(config, on_progress=count_workers)
            outcome["hosts"] = [worker.info.host for worker in state.workers]
        except ClusterError as error:
            outcome["error"] = str(error)


def nodes_job(folder: Path, cluster: Cluster, num_rows: int, **keys: Any) -> JobConfig:
    rows = edits_of(write_pictures(folder, num_rows))
    for row in rows:
        row["target_prompt"] = "slow"
    write_manifest(folder, rows)
    return job(
        folder,
        Path("demo"),
        engine={"batch_size": 4},
        cluster={
            "address": cluster.address,
            "workers": "auto",
            "gpus_per_worker": 1.0,
            "threads_per_worker": None,
            **keys,
        },
    )


class Driver:
    """A running driver, and what can be seen of it from outside."""

    def __init__(self, config: JobConfig) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._manager = spawn.Manager()
        self.outcome = self._manager.dict()
        self._folder = Path(config.output.uri) / "results"
        self._process = spawn.Process(target=drive, args=(config, self.outcome))
        self._process.start()

    def num_parts(self) -> int:
        return len(list(self._folder.glob("*.parquet")))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self._process.is_alive(), dict(self.outcome)
            time.sleep(0.05)

    def join(self) -> dict[str, Any]:
        self._process.join()
        outcome = dict(self.outcome)
        self._manager.shutdown()
        return outcome


@pytest.mark.parametrize("is_graceful", [True, False])
def test_a_node_is_lost_another_comes_and_every_row_comes_once(
    tmp_path: Path, cluster: Cluster, is_graceful: bool
) -> None:
    first = add_node(cluster)
    run = Driver(nodes_job(tmp_path, cluster, 160))
    run.wait_for(lambda: run.num_parts() >= 2)
    add_node(cluster)
    run.wait_for(lambda: run.outcome["num_ready"] == 2)
    num_parts = run.num_parts()
    run.wait_for(lambda: run.num_parts() >= num_parts + 2)
    cluster.remove_node(first, allow_graceful=is_graceful)
    outcome = run.join()
    assert "error" not in outcome
    assert set(outcome["charges"]) == {False}, "no row is suspected for it"
    rows = results(tmp_path)
    assert len(rows) == len({row["id"] for row in rows}) == 160
    assert {row["status"] for row in rows} == {"unchanged"}
    again = [row for row in rows if row["attempts"] > 1]
    assert 1 <= len(again) <= 8, "at most the two bundles that the node had in flight"
    for row in again:
        [cause] = row["attempt_errors"]
        assert any(words in cause for words in ("its node has died", "is unavailable"))
    # The one on each node, and no other: the lost one's place went with its node.
    assert len(set(outcome["hosts"])) == 2


def test_when_all_nodes_are_gone_the_job_waits_for_another_and_then_no_longer(
    tmp_path: Path, cluster: Cluster
) -> None:
    node = add_node(cluster)
    config = nodes_job(tmp_path, cluster, 40, start_timeout_s=15.0)
    run = Driver(config)
    run.wait_for(lambda: run.num_parts() >= 2)
    cluster.remove_node(node)
    run.wait_for(lambda: run.outcome["num_ready"] == 0)
    node = add_node(cluster)
    num_parts = run.num_parts()
    run.wait_for(lambda: run.num_parts() >= num_parts + 2)
    cluster.remove_node(node)
    error = run.join()["error"]
    assert "no worker became ready within cluster.start_timeout_s (15 s)" in error
    assert "0 are loading, 1 wait for a place. Each asks for 1 GPU" in error
    assert "the cluster has 0 GPU and 1 CPU" in error
    committed = results(tmp_path)
    assert 0 < len(committed) < 40

    add_node(cluster)
    run = Driver(config)
    assert "error" not in run.join()
    rows = results(tmp_path)
    assert len(rows) == len({row["id"] for row in rows}) == 40
    assert {row["run_id"] for row in committed} < {row["run_id"] for row in rows}


def test_a_range_is_demanded_of_an_autoscaler_and_nothing_once_the_job_has_ended(
    tmp_path: Path, cluster: Cluster
) -> None:
    keys: dict[str, Any] = {
        "workers": "2..4",
        "gpus_per_worker": 0.5,
        "label_selector": {"type": "in(small, smaller)"},
    }
    # A cluster without GPUs: nobody brings nodes.
    run = Driver(nodes_job(tmp_path, cluster, 40, **keys, start_timeout_s=3.0))
    error = run.join()["error"]
    assert (
        "wait for a place. Each asks for 0.5 GPU and 0.1 CPU on a node with type: in(small,"
        in error
    )
    assert "of which there are 0; the cluster has 0 GPU and 1 CPU" in error
    wait_until_nobody_waits(cluster)

    run = Driver(nodes_job(tmp_path, cluster, 40, **keys))
    run.wait_for(lambda: len(demand(cluster)) == 4)
    assert {request["GPU"] for request in demand(cluster)} == {0.5}
    add_node(cluster, type="large")
    add_node(cluster, type="small")
    run.wait_for(lambda: run.outcome.get("num_ready", 0) == 2)
    run.wait_for(lambda: run.num_parts() >= 2)  # as soon as there is a worker
    assert len(demand(cluster)) == 2, "the other node has place for two, but is of another type"
    outcome = run.join()
    assert "error" not in outcome
    assert len(set(outcome["hosts"])) == 2
    rows = results(tmp_path)
    assert len(rows) == len({row["id"] for row in rows}) == 40
    assert {row["attempts"] for row in rows} == {1}
    wait_until_nobody_waits(cluster)
