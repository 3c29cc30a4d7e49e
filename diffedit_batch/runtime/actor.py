"""One worker as a Ray actor: what it holds, and for how long nothing has come of it."""

from typing import Any

import ray

from diffedit_batch.config import JobConfig
from diffedit_batch.runtime.backlog import Bundle
from diffedit_batch.runtime.messages import WorkerInfo

BUNDLES_IN_FLIGHT = 2
"""Per worker: while one is finished, the other keeps network calls full."""

_PROGRESS = "progress"


class WorkerActor:
    """A worker that Ray starts as soon as there is a place for it.

    Args:
        config: the job.
        worker: its class, made with (config, number of CPU threads or None); `load()` returns a
            WorkerInfo, and `progress()` a number that changes while work is done.
        method: name of the method that takes the groups of a bundle.
        num_threads: what `worker` is made with.
        num_failed_starts: of those before it that died while starting.

    Attributes:
        info: of the worker once its model is loaded; None before.
        bundles: what it holds, by the reference under which Ray returns the result.
        is_placed: whether it has the resources it asked for and its process answers.
        silent_s: for how long it has had something to do and made no progress.
    """

    def __init__(
        self,
        config: JobConfig,
        worker: type,
        method: str,
        num_threads: int | None,
        num_failed_starts: int = 0,
    ) -> None:
        self._handle = ray.remote(
            num_gpus=config.cluster.gpus_per_worker,
            num_cpus=config.cluster.cpus_per_worker,
            max_concurrency=BUNDLES_IN_FLIGHT,
            # Of its own, to be asked for while all other calls are busy. A process that is stuck
            # as a whole does not answer, which is an answer too.
            concurrency_groups={_PROGRESS: 1},
            # A restart by Ray would be one we do not learn of in time to charge the right rows.
            max_restarts=0,
            max_task_retries=0,
            label_selector=config.cluster.label_selector,
            scheduling_strategy="SPREAD",
        )(worker).remote(config, num_threads)
        self._method = method
        self._loading = self._handle.load.remote()
        self._question: Any = None
        self._progress: int | None = None
        self.num_failed_starts = num_failed_starts
        self.info: WorkerInfo | None = None
        self.bundles: dict[Any, Bundle] = {}
        self.is_placed = False
        self.silent_s = 0.0

    @property
    def refs(self) -> list[Any]:
        """What it owes: results of bundles, or the end of its start."""
        return list(self.bundles) if self.info is not None else [self._loading]

    def submit(self, bundle: Bundle) -> None:
        """Hand it a bundle."""
        self.bundles[getattr(self._handle, self._method).remote(bundle.groups)] = bundle

    def watch(self, elapsed_s: float) -> None:
        """Take the answer to the last question for its progress, and ask again.

        Raises:
            RayActorError: it is dead.
        """
        has_work = bool(self.bundles) if self.info is not None else self.is_placed
        self.silent_s = self.silent_s + elapsed_s if has_work else 0.0
        if self._question is None:
            self._ask()
        elif ray.wait([self._question], timeout=0)[0]:
            progress = ray.get(self._question)
            self.is_placed = True
            if progress != self._progress:
                self._progress, self.silent_s = progress, 0.0
            self._ask()

    def kill(self) -> None:
        """End its process."""
        ray.kill(self._handle)

    def _ask(self) -> None:
        self._question = self._handle.progress.options(concurrency_group=_PROGRESS).remote()
