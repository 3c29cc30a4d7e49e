"""A worker as the driver sees it: what it delivered, how fast, whether it is still there."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from diffedit_batch.runtime.messages import BundleResult, WorkerInfo

_RECENT_BUNDLES = 8


@dataclass
class WorkerState:
    """A worker that became ready.

    Attributes:
        info: where it runs and with what.
        is_ready: whether it still is.
        counts: rows it delivered, by status.
        gpu_memory_used_bytes: of its GPU, by whomever, when its last bundle came back; 0 on a CPU.
    """

    info: WorkerInfo
    is_ready: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    gpu_memory_used_bytes: int = 0

    def __post_init__(self) -> None:
        self._ready_at = time.monotonic()
        self._deliveries = deque([(self._ready_at, 0)], maxlen=_RECENT_BUNDLES + 1)

    @property
    def num_rows(self) -> int:
        """Rows it delivered."""
        return self.counts.total()

    @property
    def rows_per_s(self) -> float:
        """What it delivers now: its last eight bundles over the time since they were begun, which
        goes on while nothing comes. 0 once it is gone.
        """
        since, num_before = self._deliveries[0]
        elapsed = time.monotonic() - since
        return (self.num_rows - num_before) / elapsed if self.is_ready and elapsed > 0 else 0.0

    def deliver(self, result: BundleResult) -> None:
        """Count a bundle that it gave back."""
        self.counts.update(row["status"] for row in result.rows)
        self.gpu_memory_used_bytes = result.gpu_memory_used_bytes
        self._deliveries.append((time.monotonic(), self.num_rows))

    def as_dict(self, logs: str) -> dict[str, Any]:
        """What a record keeps of it: its rate from its start to its last bundle, and the names of
        its log files in the folder `logs` of its host.
        """
        elapsed = self._deliveries[-1][0] - self._ready_at
        return {
            **vars(self.info),
            "counts": dict(self.counts),
            "rows_per_s": round(self.num_rows / elapsed, 3) if elapsed > 0 else 0.0,
            "gpu_memory_used_bytes": self.gpu_memory_used_bytes,
            "log_files": f"{logs}/worker-*-{self.info.pid}.*",
        }
