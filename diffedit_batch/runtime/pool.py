"""The workers as Ray actors: started, fed two bundles deep, and replaced when they die."""

import logging
import os
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from diffedit_batch.config import JobConfig
from diffedit_batch.errors import ClusterError, DiffEditError
from diffedit_batch.runtime.backlog import Bundle
from diffedit_batch.runtime.session import describe_death
from diffedit_batch.runtime.worker import WorkerInfo

logger = logging.getLogger(__name__)

BUNDLES_IN_FLIGHT = 2
"""Per worker: while one is finished, the other keeps network calls full."""

_MAX_FAILED_STARTS = 3
_RELEASE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Done:
    """A bundle that came back, and what the worker made of it."""

    bundle: Bundle
    result: Any


@dataclass(frozen=True)
class Lost:
    """A bundle whose worker died, and why."""

    bundle: Bundle
    cause: str


@dataclass(eq=False)
class _Slot:
    actor: Any
    loading: Any
    num_failed_starts: int = 0
    info: WorkerInfo | None = None
    bundles: dict[Any, Bundle] = field(default_factory=dict)


class WorkerPool:
    """The workers of one pass. Use inside `ray_session`.

    Args:
        config: the job.
        worker: class of the workers, made with (config, number of CPU threads or None); `load()`
            returns a WorkerInfo.
        method: name of the method that takes the groups of a bundle.
        max_workers: no more than that many.
    """

    def __init__(
        self, config: JobConfig, worker: type, method: str, max_workers: int | None = None
    ) -> None:
        self._config = config
        self._worker, self._method = worker, method
        cluster = config.cluster
        num_gpus = ray.cluster_resources().get("GPU", 0)
        per_worker = cluster.gpus_per_worker
        self.num_workers = cluster.workers or max(
            1, int(num_gpus / per_worker) if per_worker else 1
        )
        if max_workers is not None:
            self.num_workers = min(self.num_workers, max_workers)
        self._num_threads = cluster.threads_per_worker
        if self._num_threads is None and per_worker == 0:
            self._num_threads = max(1, (os.cpu_count() or 1) // self.num_workers)
        self._free = ray.available_resources()
        self._last_alive = time.monotonic()
        self.infos: list[WorkerInfo] = []
        self._slots = [self._start() for _ in range(self.num_workers)]

    @property
    def num_in_flight(self) -> int:
        """Bundles handed out and not yet back."""
        return sum(len(slot.bundles) for slot in self._slots)

    @property
    def num_ready(self) -> int:
        """Workers whose model is loaded."""
        return sum(slot.info is not None for slot in self._slots)

    def has_room(self, bundle: Bundle) -> bool:
        """Whether a ready worker could take the bundle."""
        return self._best_slot(bundle) is not None

    def submit(self, bundle: Bundle) -> None:
        """Hand a bundle to the ready worker that holds least."""
        slot = self._best_slot(bundle)
        assert slot is not None, "ask has_room first"
        slot.bundles[getattr(slot.actor, self._method).remote(bundle.groups)] = bundle

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """What happened within the timeout, at the latest when something did.

        Raises:
            DiffEditError: a worker reported an error that concerns the whole job.
            ClusterError: workers cannot be had or kept.
        """
        if self.num_ready:
            self._last_alive = time.monotonic()
        else:
            self._check_patience()
        refs = [ref for slot in self._slots for ref in slot.bundles]
        refs += [slot.loading for slot in self._slots if slot.info is None]
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        events: list[Done | Lost] = []
        for ref in ready:
            events += self._collect(ref)
        return events

    def close(self) -> None:
        """Stop all workers at once."""
        for slot in self._slots:
            ray.kill(slot.actor)

    def wait_until_gone(self) -> None:
        """After `close`: return when what the workers held is free again, for others to have.

        Somebody else may be faster on a shared cluster; then this gives up after a while, and
        Ray's scheduler does the waiting.
        """
        give_up = time.monotonic() + _RELEASE_TIMEOUT_S
        while time.monotonic() < give_up:
            free = ray.available_resources()
            if all(free.get(n, 0) > self._free.get(n, 0) - 1e-6 for n in ("GPU", "CPU")):
                return
            time.sleep(0.05)

    def _start(self, num_failed_starts: int = 0) -> _Slot:
        cluster = self._config.cluster
        actor = (
            ray.remote(self._worker)
            .options(
                num_gpus=cluster.gpus_per_worker,
                num_cpus=cluster.cpus_per_worker,
                max_concurrency=BUNDLES_IN_FLIGHT,
                # A restart by Ray would be one we do not learn of in time to charge the right rows.
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            .remote(self._config, self._num_threads)
        )
        return _Slot(actor, actor.load.remote(), num_failed_starts)

    def _best_slot(self, bundle: Bundle) -> _Slot | None:
        limit = 1 if bundle.num_deaths > 0 else BUNDLES_IN_FLIGHT
        free = [
            slot
            for slot in self._slots
            if slot.info is not None
            and len(slot.bundles) < limit
            and not any(held.num_deaths for held in slot.bundles.values())
        ]
        return min(free, key=lambda slot: len(slot.bundles), default=None)

    def _collect(self, ref: Any) -> list[Done | Lost]:
        slot = next(
            (s for s in self._slots if ref in s.bundles or (s.info is None and s.loading == ref)),
            None,
        )
        if slot is None:  # it went with a worker that was replaced a moment ago
            return []
        try:
            value = ray.get(ref)
        except DiffEditError as error:
            # Ray wraps it together with a remote traceback, which helps nobody here.
            raise getattr(error, "cause", error) from None
        except Exception as error:
            # Whatever a worker did not expect leaves its process in doubt (a CUDA fault, for one).
            return self._replace(slot, error)
        if slot.info is None:
            slot.info = value
            slot.num_failed_starts = 0
            self.infos.append(value)
            return []
        return [Done(slot.bundles.pop(ref), value)]

    def _replace(self, slot: _Slot, error: Exception) -> list[Done | Lost]:
        cause = describe_death(error)
        logger.warning("a worker died: %s", cause)
        ray.kill(slot.actor)
        if slot.info is not None:
            self._slots[self._slots.index(slot)] = self._start()
        elif slot.num_failed_starts + 1 < _MAX_FAILED_STARTS:
            self._slots[self._slots.index(slot)] = self._start(slot.num_failed_starts + 1)
        elif len(self._slots) > 1:
            # A bad GPU, say: the others go on without it.
            logger.warning("given up after %d failed starts", _MAX_FAILED_STARTS)
            self._slots.remove(slot)
        else:
            raise ClusterError(
                f"{_MAX_FAILED_STARTS} workers in a row died while starting: {cause}"
            ) from error
        return [Lost(bundle, cause) for bundle in slot.bundles.values()]

    def _check_patience(self) -> None:
        waited = time.monotonic() - self._last_alive
        cluster = self._config.cluster
        if waited > cluster.start_timeout_s:
            raise ClusterError(
                "no worker became ready within cluster.start_timeout_s"
                f" ({cluster.start_timeout_s:.0f} s). Each asks for"
                f" {cluster.gpus_per_worker} GPU and {cluster.cpus_per_worker} CPU; the cluster has"
                f" {_describe(ray.cluster_resources())}, free now"
                f" {_describe(ray.available_resources())}"
            )


def _describe(resources: dict[str, float]) -> str:
    return f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU"
