"""The worker: one process, one device, one editor kept busy.

A plain class, usable without Ray. Threads around the thread that drives the device read pictures
ahead and write finished ones behind, so that the network never waits for a disk; several `edit`
calls may run at once and share network calls.
"""

import logging
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import read_mask, read_picture
from diffedit_batch.data.storage import PROBE, Storage
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import RowError, StorageError
from diffedit_batch.models.identity import ModelIdentity, identify
from diffedit_batch.runtime.compile_cache import shared_compiling
from diffedit_batch.runtime.device import gpu_memory, prepare_device
from diffedit_batch.runtime.messages import BundleResult, Group, WorkerInfo
from diffedit_batch.runtime.writing import failed_row, write_result
from diffedit_batch.schema import EditRequest

if TYPE_CHECKING:
    # The driver imports this module too and has no use for torch, which takes seconds to import.
    from diffedit_batch.engine.editor import DiffEditor
    from diffedit_batch.engine.preparing import PreparedEdits
    from diffedit_batch.engine.requests import EditResult

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Bundle:
    num_missing: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: Future[None] = field(default_factory=Future)


class Worker:
    """Loads the configured model and edits groups of rows.

    Args:
        config: the job.
        num_threads: CPU threads of the network; None leaves torch's choice.
    """

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self._config = config
        self._num_threads = num_threads
        self._storage = Storage(config.output.uri)
        self._editor: DiffEditor
        self._model: ModelIdentity
        self._inbox: queue.SimpleQueue[tuple[_Bundle, PreparedEdits]] = queue.SimpleQueue()
        self._owners: dict[str, _Bundle] = {}
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._num_steps = 0
        self._reported = Counters()
        self._loaders = ThreadPoolExecutor(config.engine.loader_threads, "load")
        self._writers = ThreadPoolExecutor(config.engine.writer_threads, "write")
        self._crash: BaseException | None = None

    def load(self) -> WorkerInfo:
        """Load the model and start.

        Raises:
            ModelError: it cannot be loaded or used.
            StorageError: this worker does not see the output folder the driver sees.
        """
        started = time.perf_counter()

        from diffedit_batch.engine.editor import DiffEditor
        from diffedit_batch.engine.reviewing import Reviewer
        from diffedit_batch.models.loading import timed

        seconds = {"imports": time.perf_counter() - started}
        started = time.perf_counter()
        if not self._storage.exists(PROBE):
            raise StorageError(
                f"the worker on {socket.gethostname()} does not see what the driver wrote to"
                f" {self._config.output.uri}; output.uri must be on storage that all nodes share"
            )
        self._model = identify(self._config.model)
        device = self._config.device
        name = prepare_device(self._config, self._num_threads)
        reviewing: dict[str, float] = {}
        with timed(reviewing, "load"):
            reviewer = Reviewer.load(
                self._config.scores,
                self._config.checked_model,
                device=device,
                num_threads=self._config.engine.writer_threads,
            )
        self._editor = DiffEditor.load(
            self._config.model,
            device=device,
            batch_size=self._config.engine.batch_size,
            vae_batch_size=self._config.engine.vae_batch_size,
            size_multiple=self._config.input.size_multiple,
            reviewer=reviewer,
        )
        model = self._editor.components
        seconds |= model.start_seconds
        seconds["load"] = seconds.get("load", 0.0) + reviewing["load"]
        if self._config.engine.compile != "off":
            with timed(seconds, "compile"), shared_compiling(self._storage, name):
                self._editor.compile(self._config.engine.compile)
        threading.Thread(target=self._drive, name="drive", daemon=True).start()
        return WorkerInfo(
            socket.gethostname(),
            name,
            time.perf_counter() - started,
            self._editor.batch_size,
            model.network.is_compiled,
            model.attention_kernels,
            {phase: round(value, 3) for phase, value in seconds.items()},
            gpu_memory_bytes=gpu_memory(device)[1],
        )

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        """Edit groups of rows and write their pictures; one row of result columns for each request.

        A row that cannot be edited is a `failed` row. Anything else that goes wrong is raised: the
        process is then not to be trusted any more.
        """
        bundle = _Bundle(sum(len(group) for group in groups))
        for group in groups:
            self._guard(bundle, self._loaders.submit(self._read, bundle, group))
        bundle.done.result()
        with self._lock:
            counters = self._editor.counters
            new, self._reported = counters - self._reported, counters
            seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return BundleResult(bundle.rows, new, seconds, gpu_memory(self._config.device)[0])

    def progress(self) -> int:
        """Pictures read, network calls and pictures written so far."""
        return self._num_steps

    def _read(self, bundle: _Bundle, group: Group) -> None:
        from diffedit_batch.engine.requests import ImageEdits

        started = time.perf_counter()
        limits = {
            "max_bytes": self._config.input.max_bytes,
            "max_pixels": self._config.input.max_pixels,
        }
        good: list[EditRequest] = []
        masks = {}
        try:
            assert group[0].image is not None
            picture = read_picture(group[0].image, **limits)
        except RowError as error:
            self._add(bundle, [failed_row(request, error) for request in group])
            return
        for request in group:
            try:
                if request.mask is not None:
                    masks[request.id] = read_mask(request.mask, **limits)
                good.append(request)
            except RowError as error:
                self._add(bundle, [failed_row(request, error)])
        prepared = self._editor.prepare(ImageEdits(picture, good, masks)) if good else None
        self._count_seconds("read", started)
        if prepared is not None:
            self._inbox.put((bundle, prepared))
        if self._crash is not None:
            raise self._crash  # nobody takes from the inbox any more

    def _drive(self) -> None:
        """Run the editor for ever; the only thread that touches the device."""
        try:
            while True:
                if self._editor.num_active == 0:
                    started = time.perf_counter()
                    first = self._inbox.get()
                    self._count_seconds("wait", started)
                    self._admit(*first)
                while not self._inbox.empty():
                    self._admit(*self._inbox.get())
                started = time.perf_counter()
                results = self._editor.step()
                self._count_seconds("edit", started)
                for result in results:
                    bundle = self._owners.pop(result.request.id)
                    self._guard(bundle, self._writers.submit(self._write, bundle, result))
        except BaseException as error:
            logger.exception("the editor broke")
            self._crash = error
            for bundle in set(self._owners.values()):
                _fail(bundle, error)
            while not self._inbox.empty():
                _fail(self._inbox.get()[0], error)

    def _admit(self, bundle: _Bundle, prepared: "PreparedEdits") -> None:
        for request in prepared.edits.requests:
            self._owners[request.id] = bundle
        self._editor.submit(prepared)

    def _write(self, bundle: _Bundle, result: "EditResult") -> None:
        started = time.perf_counter()
        columns = write_result(result, self._storage, self._model, self._config.safety.policy)
        self._add(bundle, [columns])
        if columns["status"] != "failed":
            self._count_seconds("write", started)

    def _add(self, bundle: _Bundle, rows: list[dict[str, Any]]) -> None:
        with self._lock:
            self._num_steps += 1
            bundle.rows += rows
            bundle.num_missing -= len(rows)
            is_done = bundle.num_missing == 0
        if is_done and not bundle.done.done():
            bundle.done.set_result(None)

    def _guard(self, bundle: _Bundle, future: Future[None]) -> None:
        """Let an exception of a helper thread end the bundle instead of leaving it waiting."""

        def check(done: Future[None]) -> None:
            error = done.exception()
            if error is not None:
                _fail(bundle, error)

        future.add_done_callback(check)

    def _count_seconds(self, phase: str, started: float) -> None:
        with self._lock:
            self._num_steps += 1
            self._seconds[phase] += time.perf_counter() - started


def _fail(bundle: _Bundle, error: BaseException) -> None:
    if not bundle.done.done():
        bundle.done.set_exception(error)
