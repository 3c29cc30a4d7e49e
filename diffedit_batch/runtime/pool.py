"""The workers: as many as there are places for, watched, and replaced when they die or hang."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import ray

from diffedit_batch.config import JobConfig
from diffedit_batch.errors import ClusterError, DiffEditError, ModelError
from diffedit_batch.runtime.actor import BUNDLES_IN_FLIGHT, WorkerActor
from diffedit_batch.runtime.backlog import Bundle
from diffedit_batch.runtime.messages import WorkerInfo
from diffedit_batch.runtime.places import count_threads, count_wanted, describe_request
from diffedit_batch.runtime.session import describe_death, is_node_loss

logger = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 3
_RELEASE_TIMEOUT_S = 30.0
_WATCH_EVERY_S = 1.0
_WARN_EVERY_S = 30.0


@dataclass(frozen=True)
class Done:
    """A bundle that came back, what was made of it, and by which worker."""

    bundle: Bundle
    result: Any
    worker: WorkerInfo


@dataclass(frozen=True)
class Lost:
    """A bundle whose worker was lost, why, and whether with its whole node."""

    bundle: Bundle
    cause: str
    is_node_lost: bool


class WorkerPool:
    """The workers of one pass. Use inside `ray_session`.

    With `cluster.workers: auto` it follows the cluster, as nodes come and go; with a range it
    follows the work that is left.

    Args:
        config: the job.
        worker: class of the workers, see `WorkerActor`.
        method: name of the method that takes the groups of a bundle.
        max_workers: no more than that many.

    Attributes:
        num_bundles_left: bundles that wait or are handed out, as far as is known; may be changed.
        infos: of all workers that became ready, those since lost included.
        lost: name of each worker that was lost (empty: before it was ready), and why.
    """

    def __init__(
        self, config: JobConfig, worker: type, method: str, max_workers: int | None = None
    ) -> None:
        self._config = config
        self._worker, self._method = worker, method
        self._max_workers = max_workers
        self.num_bundles_left: int | None = None
        self._num_wanted, self._num_given_up = self._count_wanted(), 0
        self._free = ray.available_resources()
        self._watched_at = time.monotonic()
        self._waited_s = self._warned_s = 0.0
        self.infos: list[WorkerInfo] = []
        self.lost: list[tuple[str, str]] = []
        self._actors = [self._start() for _ in range(self._num_wanted)]

    @property
    def num_workers(self) -> int:
        """Workers, ready or not."""
        return len(self._actors)

    @property
    def num_in_flight(self) -> int:
        """Bundles handed out and not yet back."""
        return sum(len(actor.bundles) for actor in self._actors)

    @property
    def ready(self) -> list[WorkerInfo]:
        """Of the workers whose model is loaded."""
        return [actor.info for actor in self._actors if actor.info is not None]

    @property
    def num_ready(self) -> int:
        """Workers whose model is loaded."""
        return len(self.ready)

    def has_room(self, bundle: Bundle) -> bool:
        """Whether a ready worker could take the bundle."""
        return self._find_room(bundle) is not None

    def submit(self, bundle: Bundle) -> None:
        """Hand a bundle to the ready worker that holds least."""
        actor = self._find_room(bundle)
        assert actor is not None, "ask has_room first"
        actor.submit(bundle)

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """What happened within the timeout, at the latest when something did.

        Raises:
            DiffEditError: a worker reported an error that concerns the whole job.
            ClusterError: workers cannot be had or kept.
        """
        ready, _ = ray.wait(
            [ref for actor in self._actors for ref in actor.refs], num_returns=1, timeout=timeout_s
        )
        events: list[Done | Lost] = []
        for ref in ready:
            events += self._collect(ref)
        now = time.monotonic()
        if now - self._watched_at >= _WATCH_EVERY_S:
            # A driver that was held up itself has to ask before it judges.
            elapsed_s = min(now - self._watched_at, 2 * _WATCH_EVERY_S)
            self._watched_at = now
            events += self._watch(elapsed_s)
            self._resize()
            self._check_patience(elapsed_s)
        return events

    def close(self) -> None:
        """Stop all workers at once."""
        for actor in self._actors:
            actor.kill()

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

    def _start(self, num_failed_starts: int = 0) -> WorkerActor:
        num_threads = count_threads(self._config.cluster, self._num_wanted)
        return WorkerActor(self._config, self._worker, self._method, num_threads, num_failed_starts)

    def _count_wanted(self) -> int:
        num_wanted = count_wanted(self._config.cluster, self.num_bundles_left)
        return min(num_wanted, self._max_workers or num_wanted)

    def _resize(self) -> None:
        """Follow the cluster or the work. With `auto` a worker that has its place keeps it."""
        num_wanted = self._count_wanted()
        if num_wanted != self._num_wanted:
            logger.info("workers wanted: %d, before %d", num_wanted, self._num_wanted)
            self._num_wanted, self._num_given_up = num_wanted, 0
        num_wanted = max(1, num_wanted - self._num_given_up)
        keeps_placed = self._config.cluster.worker_range is None
        spare = [a for a in self._actors if not (a.bundles or (a.is_placed and keeps_placed))]
        spare.sort(key=lambda actor: (actor.info is not None, actor.is_placed))
        for actor in spare[: max(0, self.num_workers - num_wanted)]:
            actor.kill()
            self._actors.remove(actor)
        while self.num_workers < num_wanted:
            self._actors.append(self._start())

    def _find_room(self, bundle: Bundle) -> WorkerActor | None:
        limit = 1 if bundle.num_deaths > 0 else BUNDLES_IN_FLIGHT
        free = [
            actor
            for actor in self._actors
            if actor.info is not None
            and len(actor.bundles) < limit
            and not any(held.num_deaths for held in actor.bundles.values())
        ]
        return min(free, key=lambda actor: len(actor.bundles), default=None)

    def _collect(self, ref: Any) -> list[Done | Lost]:
        [actor] = [actor for actor in self._actors if ref in actor.refs]
        try:
            value = ray.get(ref)
        except DiffEditError as error:
            if isinstance(error, ModelError) and actor.info is None and self.num_ready:
                # Others could load it: something is wrong with this node, and not with the job.
                return self._replace(actor, describe_death(error), False)
            # Ray wraps it together with a remote traceback, which helps nobody here.
            raise getattr(error, "cause", error) from None
        except Exception as error:
            # Whatever a worker did not expect leaves its process in doubt (a CUDA fault, for one).
            return self._replace(actor, describe_death(error), is_node_loss(error))
        actor.silent_s = 0.0
        if actor.info is None:
            actor.info, actor.is_placed = value, True
            self.infos.append(value)
            return []
        return [Done(actor.bundles.pop(ref), value, actor.info)]

    def _watch(self, elapsed_s: float) -> list[Done | Lost]:
        """Replace workers that died with nothing to do, or make no progress with what they have."""
        events: list[Done | Lost] = []
        cluster = self._config.cluster
        for actor in list(self._actors):
            patience = cluster.start_timeout_s if actor.info is None else cluster.hang_timeout_s
            try:
                actor.watch(elapsed_s)
            except ray.exceptions.RayActorError as error:
                events += self._replace(actor, describe_death(error), is_node_loss(error))
            else:
                if actor.silent_s > patience:
                    events += self._replace(actor, f"no progress for {patience:g} s", False)
        return events

    def _replace(self, actor: WorkerActor, cause: str, is_node_lost: bool) -> list[Done | Lost]:
        name = actor.info.name if actor.info is not None else ""
        self.lost.append((name, cause))
        what = "was lost" if is_node_lost else "died"
        logger.warning("worker %s %s: %s", name or "that was starting", what, cause)
        actor.kill()
        place = self._actors.index(actor)
        if actor.info is not None or is_node_lost:
            self._actors[place] = self._start()
        elif actor.num_failed_starts + 1 < _MAX_FAILED_STARTS:
            self._actors[place] = self._start(actor.num_failed_starts + 1)
        elif self.num_workers > 1:
            # A bad GPU, say: the others go on without it.
            logger.warning("given up after %d failed starts", _MAX_FAILED_STARTS)
            self._num_given_up += 1
            self._actors.remove(actor)
        else:
            raise ClusterError(
                f"{_MAX_FAILED_STARTS} workers in a row died while starting: {cause}"
            )
        return [Lost(bundle, cause, is_node_lost) for bundle in actor.bundles.values()]

    def _check_patience(self, elapsed_s: float) -> None:
        """Say what is missing while no worker is ready, and stop waiting in the end."""
        cluster = self._config.cluster
        if self.num_ready:
            self._waited_s = self._warned_s = 0.0
            return
        self._waited_s += elapsed_s
        left_s = cluster.start_timeout_s - self._waited_s
        if left_s > 0 and self._waited_s - self._warned_s < _WARN_EVERY_S:
            return
        num_placed = sum(actor.is_placed for actor in self._actors)
        state = (
            f"{num_placed} are loading, {self.num_workers - num_placed} wait for a place."
            f" {describe_request(cluster)}"
        )
        if left_s <= 0:
            raise ClusterError(
                "no worker became ready within cluster.start_timeout_s"
                f" ({cluster.start_timeout_s:g} s): {state}"
            )
        logger.warning("no worker is ready, the job stops in %.0f s: %s", left_s, state)
        self._warned_s = self._waited_s
