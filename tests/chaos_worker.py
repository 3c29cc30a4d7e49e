"""A worker whose network costs milliseconds, all else of it being real; it keeps a journal."""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from diffedit_batch.config import JobConfig, ModelConfig
from diffedit_batch.engine.counters import Counters
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.runtime.messages import WorkerInfo
from diffedit_batch.runtime.worker import Worker
from diffedit_batch.schema import EditRequest

SECONDS_A_ROW = 0.02


class ChaosEditor:
    """Edits like a DiffEditor, with noise that depends on id and fingerprint alone.

    A target prompt of `kill` is an order. Every row begun is a line of `journal`, every process one
    of `pids`.
    """

    folder: Path
    batch_size = 1
    components = SimpleNamespace(
        network=SimpleNamespace(is_compiled=False), attention_kernels=(), start_seconds={}
    )

    def __init__(self) -> None:
        self.counters = Counters()
        self._rows: list[tuple[EditRequest, ImageEdits]] = []

    @classmethod
    def load(cls, config: ModelConfig, **settings: object) -> "ChaosEditor":
        return cls()

    @property
    def num_active(self) -> int:
        return len(self._rows)

    def prepare(self, edits: ImageEdits) -> Any:
        return SimpleNamespace(edits=edits)

    def submit(self, prepared: Any) -> None:
        self._rows += [(request, prepared.edits) for request in prepared.edits.requests]

    def step(self) -> list[EditResult]:
        request, edits = self._rows.pop(0)
        append(self.folder / "journal", request.id)
        time.sleep(SECONDS_A_ROW)
        if request.target_prompt == ("kill",):
            os.kill(os.getpid(), signal.SIGKILL)
        self.counters.unet_evals += 1
        digest = hashlib.sha256(f"{request.id} {request.fingerprint}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        shape = edits.picture.shape
        return [
            EditResult(
                request,
                edits.picture,
                working=rng.integers(0, 256, shape, dtype=np.uint8),
                working_mask=rng.random(shape[:2]) < 0.5,
            )
        ]


class ChaosWorker(Worker):
    """The worker of the job, with a `ChaosEditor`."""

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        super().__init__(config, num_threads)
        ChaosEditor.folder = Path(config.output.uri).parent

    def load(self) -> WorkerInfo:
        # Instead of the module, whose import costs more than all that these workers do.
        sys.modules["diffedit_batch.engine.editor"] = SimpleNamespace(DiffEditor=ChaosEditor)  # type: ignore[assignment]
        append(ChaosEditor.folder / "pids", str(os.getpid()))
        return super().load()


def append(path: Path, line: str) -> None:
    """Add a line, whole, whoever else does at the same moment."""
    with path.open("a") as file:
        file.write(f"{line}\n")


def lines(path: Path) -> list[str]:
    """The lines of a journal; none where it was not begun."""
    return path.read_text().split() if path.exists() else []
