"""Where workers can be: how many the cluster has places for, and how many are asked for."""

import math
import os
from typing import Any

import ray

from diffedit_batch.config import LABEL_CONDITION, ClusterConfig


def count_places(cluster: ClusterConfig) -> int:
    """Workers that the nodes there are now have places for: one per GPU or share of a GPU, or
    without GPUs one per node.
    """
    return sum(_count_on_node(node["Resources"], cluster) for node in _usable_nodes(cluster))


def count_wanted(cluster: ClusterConfig, num_bundles: int | None = None) -> int:
    """Workers to ask for. Those without a place are what brings an autoscaler to add nodes.

    They are actors that wait, not `ray.autoscaler.sdk.request_resources`: a driver that is killed
    takes its actors with it, while such a request would hold nodes until somebody takes it back.

    Args:
        cluster: what is asked of Ray.
        num_bundles: that are left to be done, as far as is known; None: nothing is known yet.
    """
    if cluster.worker_range is None:
        # One at the least: an autoscaler adds nodes only for those who wait.
        return max(1, count_places(cluster))
    fewest, most = cluster.worker_range
    return fewest if num_bundles is None else min(max(fewest, num_bundles), most)


def count_threads(cluster: ClusterConfig, num_workers: int) -> int | None:
    """CPU threads of each of so many workers; None leaves torch's choice."""
    if cluster.threads_per_worker is not None or cluster.gpus_per_worker > 0:
        return cluster.threads_per_worker
    nodes = [node["Resources"] for node in _usable_nodes(cluster)]
    cores = [int(there["CPU"]) for there in nodes if there.get("CPU", 0) >= 1]
    cores = cores or [os.cpu_count() or 1]  # nodes are still to come
    return max(1, min(cores) // math.ceil(num_workers / len(cores)))


def describe_request(cluster: ClusterConfig) -> str:
    """What a worker asks for, and what of it the cluster has."""
    asks = f"{cluster.gpus_per_worker:g} GPU and {cluster.cpus_per_worker:g} CPU"
    if cluster.label_selector:
        labels = ", ".join(f"{key}: {value}" for key, value in cluster.label_selector.items())
        asks += f" on a node with {labels}, of which there are {len(_matching_nodes(cluster))}"
    there, free = (
        f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU"
        for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return f"Each asks for {asks}; the cluster has {there}, free now {free}"


def _matching_nodes(cluster: ClusterConfig) -> list[dict[str, Any]]:
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and is_selected(node["Labels"], cluster.label_selector)
    ]


def _usable_nodes(cluster: ClusterConfig) -> list[dict[str, Any]]:
    """Nodes with CPU enough for a worker: a head that is there for the driver has none."""
    least = cluster.cpus_per_worker
    return [n for n in _matching_nodes(cluster) if n["Resources"].get("CPU", 0) >= least]


def _count_on_node(resources: dict[str, float], cluster: ClusterConfig) -> int:
    share, num_gpus = cluster.gpus_per_worker, int(resources.get("GPU", 0))
    if share == 0:
        return int(resources.get("CPU", 0) > 0)
    # Ray never puts a worker on parts of two GPUs.
    return int(num_gpus // share) if share >= 1 else num_gpus * int(1 / share + 1e-6)


def is_selected(labels: dict[str, str], selector: dict[str, str]) -> bool:
    """Whether a node with these labels matches a selector, by Ray's rules: a label that is not
    there is none of the values.
    """
    for key, condition in selector.items():
        found = LABEL_CONDITION.fullmatch(condition)
        assert found is not None, "checked by the config"
        values = [value.strip() for value in (found[2] or found[3]).split(",")]
        if (labels.get(key) in values) == bool(found[1]):
            return False
    return True
