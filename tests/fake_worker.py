"""Workers that cost nothing and die on request, for the driver's side of the job."""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffedit_batch.config import JobConfig
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import ModelError, RowError
from diffedit_batch.runtime.messages import BundleResult, Group, WorkerInfo
from diffedit_batch.runtime.records import error_columns
from diffedit_batch.schema import FILE_COLUMNS


def obey(order: str) -> None:
    """Do to this process what a target prompt orders; any other prompt orders nothing."""
    if order == "die":
        os._exit(1)
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "crash":
        ctypes.string_at(0)  # SIGSEGV
    if order == "raise":
        raise RuntimeError("device-side assert triggered")
    if order == "fill":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**26, hard))
        bytearray(2**30)  # MemoryError
    if order == "hang":
        time.sleep(3600)
    if order == "freeze":
        ctypes.PyDLL(None).sleep(3600)  # a native call that never gives the interpreter back
    if order == "slow":
        time.sleep(0.3)
    if order.startswith("wait for /"):
        while not Path(order.removeprefix("wait for ")).exists():
            time.sleep(0.05)


class FakeWorker:
    """Returns every row `unchanged`, but for what prompts order: see `obey`, and `fail` or
    `fail once` to have it fail.
    """

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self.config = config
        self.num_done = 0

    def load(self) -> WorkerInfo:
        return WorkerInfo(f"process {os.getpid()}", "cpu", 0.0)

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        rows: list[dict[str, Any]] = []
        for request in (request for group in groups for request in group):
            order = request.target_prompt[0]
            obey(order)
            if order == "fail" or (order == "fail once" and self._is_first_try(request.id)):
                error = RowError("edit", "OutOfMemory", "too large")
                rows.append({"id": request.id, **error_columns(error)})
            else:
                rows.append({"id": request.id, "status": "unchanged"})
            self.num_done += 1
        return BundleResult(rows, Counters(unet_evals=len(rows)), {"edit": 0.0})

    def progress(self) -> int:
        return self.num_done

    def _is_first_try(self, row_id: str) -> bool:
        try:
            (Path(self.config.output.uri) / f"tried-{row_id}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class PaintingWorker(FakeWorker):
    """Writes files for the rows that do not fail."""

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        result = super().edit(groups)
        storage = Storage(self.config.output.uri)
        requests = {request.id: request for group in groups for request in group}
        for row in result.rows:
            if row["status"] == "unchanged":
                names = file_names(row["id"], requests[row["id"]].fingerprint)
                for name in names:
                    storage.write(name, b"a picture")
                row |= zip(FILE_COLUMNS, names, strict=True)
        return result


class RoomyWorker(FakeWorker):
    """Says that it has a GPU of 8 GiB, of which 3 are in use."""

    def load(self) -> WorkerInfo:
        return replace(super().load(), gpu_memory_bytes=8 * 2**30)

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        return replace(super().edit(groups), gpu_memory_used_bytes=3 * 2**30)


class BrokenWorker(FakeWorker):
    """Cannot even be made."""

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        raise RuntimeError("no such library")


class StuckWorker(FakeWorker):
    """The first of a run hangs while loading, the others start."""

    def load(self) -> WorkerInfo:
        try:
            (Path(self.config.output.uri) / "one-is-stuck").touch(exist_ok=False)
        except FileExistsError:
            return super().load()
        time.sleep(3600)
        raise AssertionError("an hour is long enough")


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


class OneHasTheModelWorker(FakeWorker):
    """The first of a run loads its model, no other can."""

    def load(self) -> WorkerInfo:
        try:
            (Path(self.config.output.uri) / "one-has-started").touch(exist_ok=False)
        except FileExistsError:
            while not list(Path(self.config.output.uri).glob("results/*.parquet")):
                time.sleep(0.05)
            raise ModelError("cannot load model 'x'") from None
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
