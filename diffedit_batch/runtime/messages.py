"""What a driver and its workers send each other: requests one way, result columns the other, no
pixels.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from diffedit_batch.engine.counters import Counters
from diffedit_batch.schema import EditRequest

Group = tuple[EditRequest, ...]
"""Requests that edit one image."""


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs, how long its model took to load, and how it calls the network.

    Attributes:
        host: its name.
        device: name of the GPU, or `cpu`.
        load_seconds: until it could edit.
        batch_size: network evaluations in a full call.
        is_compiled: whether full calls are.
        attention: kernels that ran when the model was tried out.
        start_seconds: of the start by phase: `imports`, `download`, `load` (with all there is to
            models that score and check edits), `warm_up`, `compile`.
        gpu_memory_bytes: of its GPU; 0 on a CPU.
        pid: of its process; its log files end in it.
    """

    host: str
    device: str
    load_seconds: float
    batch_size: int = 0
    is_compiled: bool = False
    attention: tuple[str, ...] = ()
    start_seconds: dict[str, float] = field(default_factory=dict)
    gpu_memory_bytes: int = 0
    pid: int = field(default_factory=os.getpid)

    @property
    def name(self) -> str:
        """What it is called where people look: `host:pid`."""
        return f"{self.host}:{self.pid}"


@dataclass(frozen=True)
class BundleResult:
    """Result columns of the rows of one `edit` call, the work done since the last one ended, and
    the memory of the GPU that is in use.
    """

    rows: list[dict[str, Any]]
    counters: Counters
    seconds: dict[str, float]
    gpu_memory_used_bytes: int = 0
