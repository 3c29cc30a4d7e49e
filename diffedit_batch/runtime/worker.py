"""The worker: one process, one device, one editor kept busy.

A plain class, usable without Ray. Threads around the thread that drives the device read pictures
ahead and write finished ones behind, so that the network never waits for a disk; several `edit`
calls may run at once and share network calls.
"""

import hashlib
import logging
import os
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
from diffedit_batch.data.images import blur, encode_png, read_mask, read_picture
from diffedit_batch.data.provenance import COMPOSITE, describe
from diffedit_batch.data.storage import PROBE, Storage, file_names
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import RowError, StorageError
from diffedit_batch.models.identity import ModelIdentity, identify
from diffedit_batch.runtime.compile_cache import shared_compiling
from diffedit_batch.runtime.records import error_columns
from diffedit_batch.schema import EditRequest

if TYPE_CHECKING:
    # The driver imports this module too and has no use for torch, which takes seconds to import.
    from diffedit_batch.engine.editor import DiffEditor
    from diffedit_batch.engine.preparing import PreparedEdits
    from diffedit_batch.engine.requests import EditResult

logger = logging.getLogger(__name__)

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
            gpu_memory_bytes=_gpu_memory(device)[1],
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
        return BundleResult(bundle.rows, new, seconds, _gpu_memory(self._config.device)[0])

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
            self._add(bundle, [_failed_row(request, error) for request in group])
            return
        for request in group:
            try:
                if request.mask is not None:
                    masks[request.id] = read_mask(request.mask, **limits)
                good.append(request)
            except RowError as error:
                self._add(bundle, [_failed_row(request, error)])
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
        if result.error is not None:
            self._add(bundle, [_failed_row(result.request, result.error)])
            return
        policy = self._config.safety.policy
        if result.is_flagged and policy == "drop":
            refused = RowError("safety", "Flagged", "the safety checker flags the edited picture")
            self._add(bundle, [{**_failed_row(result.request, refused), "is_flagged": True}])
            return
        picture = blur(result.image) if result.is_flagged and policy == "blur" else result.image
        width, height = result.size
        assert result.working_mask is not None
        working_height, working_width = result.working_mask.shape
        texts = {}
        if result.status == "edited":
            model = self._model
            texts = describe(
                result.request, (working_width, working_height), model.name, model.revision
            )
        pictures = {"edited": encode_png(picture, texts), "mask": encode_png(result.mask)}
        if result.map is not None:
            pictures["map"] = encode_png(result.map)
        names = file_names(result.request.id, result.request.fingerprint)._asdict()
        files = {}
        for kind, data in pictures.items():
            self._storage.write(names[kind], data)
            files[f"{kind}_file_name"] = names[kind]
            files[f"{kind}_sha256"] = hashlib.sha256(data).hexdigest()
        self._add(
            bundle,
            [
                {
                    "id": result.request.id,
                    "status": result.status,
                    **files,
                    "digital_source_type": COMPOSITE if texts else "",
                    "kept_seed": result.request.seed,
                    "candidates": [one._asdict() for one in result.candidates] or None,
                    **result.measured(),
                    "is_flagged": result.is_flagged,
                    "width": width,
                    "height": height,
                    "working_width": working_width,
                    "working_height": working_height,
                }
            ],
        )
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


def prepare_device(config: JobConfig, num_threads: int | None) -> str:
    """Name the device this process computes on, and keep to its share of it.

    Args:
        config: the job.
        num_threads: CPU threads; None leaves torch's choice.
    """
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if config.device == "cpu":
        return "cpu"
    if config.cluster.gpus_per_worker < 1:
        # Else the first worker on a GPU takes the memory of the others when it sizes its calls.
        torch.cuda.set_per_process_memory_fraction(config.cluster.gpus_per_worker)
    return torch.cuda.get_device_name()


def _gpu_memory(device: str) -> tuple[int, int]:
    """Bytes of the GPU that are in use, and all of them; 0 and 0 on a CPU."""
    import torch

    if device == "cpu":
        return 0, 0
    free, total = torch.cuda.mem_get_info()
    return total - free, total


def _fail(bundle: _Bundle, error: BaseException) -> None:
    if not bundle.done.done():
        bundle.done.set_exception(error)


def _failed_row(request: EditRequest, error: RowError) -> dict[str, Any]:
    return {"id": request.id, **error_columns(error)}
