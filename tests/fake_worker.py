"""Workers that cost nothing and die on request, for the driver's side of the job."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffedit_batch.config import JobConfig
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import ModelError
from diffedit_batch.runtime.worker import BundleResult, Group, WorkerInfo


class FakeWorker:
    """Returns every row `unchanged`; a target prompt of `die`, `raise` or `slow` is an order."""

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self.config = config

    def load(self) -> WorkerInfo:
        return WorkerInfo("test", "cpu", 0.0)

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        rows: list[dict[str, Any]] = []
        for request in (request for group in groups for request in group):
            order = request.target_prompt[0]
            if order == "die":
                os._exit(1)
            if order == "raise":
                raise RuntimeError("device-side assert triggered")
            if order == "slow":
                time.sleep(0.3)
            rows.append({"id": request.id, "status": "unchanged"})
        return BundleResult(rows, Counters(unet_evals=len(rows)), {"edit": 0.0})


class DyingWorker(FakeWorker):
    """Dies while loading."""

    def load(self) -> WorkerInfo:
        os._exit(1)


class OneStartsWorker(FakeWorker):
    """The first of a run starts, all others die while loading."""

    def load(self) -> WorkerInfo:
        try:
            (Path(self.config.output.uri) / "one-has-started").touch(exist_ok=False)
        except FileExistsError:
            os._exit(1)
        return super().load()


class NoModelWorker(FakeWorker):
    """Cannot load its model."""

    def load(self) -> WorkerInfo:
        raise ModelError("cannot load model 'x'")


class LosingWorker(FakeWorker):
    """Forgets a row."""

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        result = super().edit(groups)
        return BundleResult(result.rows[1:], result.counters, result.seconds)
