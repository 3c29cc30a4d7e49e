"""Ray for the length of a run, and signals that ask for its end."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from diffedit_batch.config import ClusterConfig, JobConfig
from diffedit_batch.data.lease import Lease
from diffedit_batch.data.storage import PROBE, Storage
from diffedit_batch.errors import ClusterError, DiffEditError, InterruptedRunError
from diffedit_batch.models.hub import pin
from diffedit_batch.runtime.records import RunState

logger = logging.getLogger(__name__)

_TOKEN_HINT = (
    "if it was started with RAY_AUTH_MODE=token, set that and its token (RAY_AUTH_TOKEN) here too"
)


@contextmanager
def worker_session(
    config: JobConfig, models: Sequence[str], storage: Storage, lease: Lease, state: RunState
) -> Iterator[tuple[JobConfig, threading.Event]]:
    """Ray, an output that was seen to be writable, and models known to exist as far as that can be
    told from here.

    Args:
        config: the job.
        models: sections of its models that are loaded.
        storage: its output.
        lease: of this run on the output.
        state: is told the commits of the models, and where log files are.

    Yields:
        The job with its models pinned to these commits, and an event that is set on a request to
        stop.

    Raises:
        DiffEditError: the output cannot be written, there is no such model, Ray cannot be had; what
            is raised inside is given a note on where log files are.
    """
    # What cannot be written or loaded must not cost a cluster's start to be found out.
    storage.write(PROBE, b"")
    try:
        is_here = ray_address(config.cluster) == "local"
        pinned, state.commits = pin(config, models, is_here=is_here)
        with ray_session(config), stop_on_signal() as stop:
            state.logs = logs_folder()
            yield pinned, stop
    except DiffEditError as error:
        if state.logs and not isinstance(error, InterruptedRunError):
            error.add_note(f"log files of the workers: {state.logs}, on every node")
        raise
    finally:
        if not lease.is_lost:  # else it is another run's by now
            storage.remove([PROBE])


@contextmanager
def ray_session(config: JobConfig) -> Iterator[None]:
    """Ray, connected to the configured cluster or started on this machine, for the length of a run.

    Raises:
        ClusterError: Ray cannot be reached or started, or this machine has too few GPUs.
    """
    cluster = config.cluster
    address = ray_address(cluster)
    is_ours = not ray.is_initialized()
    if is_ours:
        _check_answers(address)
        local: dict[str, Any] = {}
        if address == "local":
            # Only ids and prompts travel, never pixels: Ray's default would reserve gigabytes.
            local = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
        try:
            with _on_loopback() if address == "local" else nullcontext():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:
            hint = "" if address == "local" else f"; {_TOKEN_HINT}"
            raise ClusterError(
                f"Ray at {address!r} cannot be had: {describe_death(error)}{hint}"
            ) from error
    try:
        _warn_of_open_cluster()
        if address == "local" and cluster.gpus_per_worker > ray.cluster_resources().get("GPU", 0):
            raise ClusterError(
                f"each worker asks for {cluster.gpus_per_worker} GPU, and this machine shows"
                f" {ray.cluster_resources().get('GPU', 0):.0f}. To run on the CPU, set"
                " cluster.gpus_per_worker to 0"
            )
        yield
    except DiffEditError:
        raise
    except RayError as error:
        raise ClusterError(f"Ray at {address!r} gave out: {describe_death(error)}") from error
    finally:
        if is_ours:
            ray.shutdown()


def ray_address(cluster: ClusterConfig) -> str:
    """Of the cluster that is used; `local`: one that is started on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or "local"


def _check_answers(address: str) -> None:
    """Refuse a cluster of which nothing answers, for which Ray alone would wait two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit() or "://" in host:  # `local`, `auto`, or what Ray refuses by itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address!r} ({error.strerror or error}); see whether it"
            " runs, and set cluster.address or RAY_ADDRESS to host:port of its head"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that starts here listen on this machine only: whoever reaches its ports runs code.

    Ray does so where it may not form clusters, and takes no address for it: 127.0.0.1 as the
    node's address is replaced by that of the network.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _warn_of_open_cluster() -> None:
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes > 1 and os.environ.get("RAY_AUTH_MODE") != "token":
        logger.warning(
            "Ray runs on %d nodes without tokens: whoever reaches its ports can run code there."
            " Start every node, and this command, with RAY_AUTH_MODE=token",
            num_nodes,
        )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGUSR1 set.

    Entered after Ray has started, because Ray installs handlers of its own.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        logger.warning("%s: finishing what is in flight", signal.Signals(number).name)
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, request_stop) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def logs_folder() -> str:
    """Where Ray keeps the log files of this session, on every node; empty where it does not say,
    as through Ray Client.
    """
    node = ray._private.worker.global_worker.node
    return "" if node is None else str(node.get_logs_dir_path())


def describe_death(error: BaseException) -> str:
    """One line on why a worker died."""
    if isinstance(error, RayActorError):
        text = re.sub(r"\x1b\[[0-9;]*m|\t(class_name|actor_id|namespace): .*", "", str(error))
        return " ".join(text.split())[:500]
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:500]


def is_node_loss(error: BaseException) -> bool:
    """Whether a worker was lost together with its node, or with the connection to it.

    A node that vanishes stays in Ray's list of nodes until its health checks have failed; until
    then its actors are only unavailable. An actor whose process alone died is never that.
    """
    return isinstance(error, ActorUnavailableError) or (
        isinstance(error, RayActorError) and "its node has died" in str(error)
    )
