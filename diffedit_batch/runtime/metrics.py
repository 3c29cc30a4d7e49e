"""What Ray's own metrics say of a run, for Prometheus and the dashboard.

Every node of a Ray with `ray[default]` exports them at its metrics port, with the prefix `ray_`;
other installations drop them.
"""

from collections import Counter

from ray.util import metrics

from diffedit_batch.runtime.records import RunState

_OF_A_WORKER = ("run_id", "worker")


class RunMetrics:
    """The metrics of one run; use inside `ray_session`."""

    def __init__(self, run_id: str) -> None:
        self._tags = {"run_id": run_id}
        self._rows = metrics.Counter(
            "diffedit_rows", "Rows that workers delivered.", (*_OF_A_WORKER, "status")
        )
        self._rows_per_s = metrics.Gauge(
            "diffedit_rows_per_second", "What a worker delivers now.", _OF_A_WORKER
        )
        self._gpu_memory_used = metrics.Gauge(
            "diffedit_gpu_memory_used_bytes", "Of the GPU of a worker, by whomever.", _OF_A_WORKER
        )
        self._gpu_memory = metrics.Gauge(
            "diffedit_gpu_memory_bytes", "All of the GPU of a worker.", _OF_A_WORKER
        )
        self._workers = metrics.Gauge("diffedit_workers", "Workers that are ready.", ("run_id",))
        self._rows_left = metrics.Gauge("diffedit_rows_left", "Rows still to do.", ("run_id",))
        self._lost = metrics.Counter(
            "diffedit_workers_lost", "Workers that were lost.", ("run_id",)
        )
        self._num_told: Counter[tuple[str, str]] = Counter()
        self._num_lost_told = 0

    def show(self, state: RunState) -> None:
        """Bring them up to date."""
        for worker in state.workers:
            tags = {**self._tags, "worker": worker.info.name}
            for status, number in worker.counts.items():
                new = number - self._num_told[worker.info.name, status]
                if new:
                    self._rows.inc(new, {**tags, "status": status})
                    self._num_told[worker.info.name, status] = number
            self._rows_per_s.set(worker.rows_per_s, tags)
            used = worker.gpu_memory_used_bytes if worker.is_ready else 0
            self._gpu_memory_used.set(used, tags)
            self._gpu_memory.set(worker.info.gpu_memory_bytes, tags)
        self._workers.set(state.num_workers, self._tags)
        self._rows_left.set(state.num_left, self._tags)
        if len(state.lost_workers) > self._num_lost_told:
            self._lost.inc(len(state.lost_workers) - self._num_lost_told, self._tags)
            self._num_lost_told = len(state.lost_workers)
