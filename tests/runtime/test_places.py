from typing import Any

import pytest
import ray

from diffedit_batch.config import ClusterConfig
from diffedit_batch.runtime.places import count_places, count_threads, count_wanted, is_selected


def node(gpus: float = 0, cpus: float = 8, is_alive: bool = True, **labels: str) -> dict[str, Any]:
    resources = {"GPU": gpus, "CPU": cpus}
    there = {name: value for name, value in resources.items() if value}
    return {"Alive": is_alive, "Resources": there, "Labels": labels}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A head that is there for the driver, two GPU nodes of two types, and one that has gone."""
    nodes = [node(cpus=0), node(2, type="L4"), node(4, 16, type="H100"), node(8, is_alive=False)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    return nodes


@pytest.mark.parametrize(
    ("gpus_per_worker", "label_selector", "num_places"),
    [
        (1.0, {}, 6),
        (2.0, {}, 3),
        (4.0, {}, 1),
        (8.0, {}, 0),
        (0.5, {}, 12),
        # Two on each GPU, and none on what is left of two.
        (0.4, {}, 12),
        (0.1, {}, 60),
        (0.0, {}, 2),
        (1.0, {"type": "L4"}, 2),
        (1.0, {"type": "!L4"}, 4),
        (0.5, {"type": "in(L4, A10G)"}, 4),
        (0.0, {"type": "H100"}, 1),
        (1.0, {"type": "A100"}, 0),
    ],
)
@pytest.mark.usefixtures("nodes")
def test_places_of_a_cluster(
    gpus_per_worker: float, label_selector: dict[str, str], num_places: int
) -> None:
    cluster = ClusterConfig(gpus_per_worker=gpus_per_worker, label_selector=label_selector)
    assert count_places(cluster) == num_places
    assert count_wanted(cluster) == max(1, num_places), "one that waits brings an autoscaler to act"


@pytest.mark.parametrize(
    ("workers", "num_bundles", "num_wanted"),
    [
        (4, None, 4),
        (4, 1, 4),
        (4, 100, 4),
        ("2..8", None, 2),
        ("2..8", 0, 2),
        ("2..8", 5, 5),
        ("2..8", 100, 8),
        ("auto", 1, 6),
    ],
)
@pytest.mark.usefixtures("nodes")
def test_workers_that_are_wanted(
    workers: int | str, num_bundles: int | None, num_wanted: int
) -> None:
    assert count_wanted(ClusterConfig(workers=workers), num_bundles) == num_wanted


@pytest.mark.parametrize(
    ("keys", "num_workers", "num_threads"),
    [
        ({"gpus_per_worker": 0.0}, 1, 8),
        ({"gpus_per_worker": 0.0}, 2, 8),
        ({"gpus_per_worker": 0.0}, 3, 4),
        ({"gpus_per_worker": 0.0}, 100, 1),
        ({"gpus_per_worker": 0.0, "threads_per_worker": 3}, 2, 3),
        ({"gpus_per_worker": 1.0}, 2, None),
    ],
)
@pytest.mark.usefixtures("nodes")
def test_threads_share_the_cores_of_a_node(
    keys: dict[str, Any], num_workers: int, num_threads: int | None
) -> None:
    assert count_threads(ClusterConfig(**keys), num_workers) == num_threads


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("L4", {"L4"}),
        ("!L4", {"H100", None}),
        ("in(L4,H100)", {"L4", "H100"}),
        ("!in(H100, A100)", {"L4", None}),
    ],
)
def test_labels_are_matched_as_ray_does(condition: str, matches: set[str | None]) -> None:
    for value in ("L4", "H100", None):
        labels: dict[str, str] = {} if value is None else {"type": value}
        assert is_selected(labels, {"type": condition}) == (value in matches)
