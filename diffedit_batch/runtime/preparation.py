"""The passes before editing: prompts for concepts, captions for images.

One look at the manifest says which texts rows that are not committed lack; each pass generates its
share on actors of its own, which are gone before the next begins. A run that lacks nothing starts
none.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from diffedit_batch.config import JobConfig, fingerprint
from diffedit_batch.data.generated import CAPTIONS, PROMPTS, Generated, Key, TextTable
from diffedit_batch.data.manifest import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import InterruptedRunError, RowError
from diffedit_batch.models.identity import ModelIdentity, identify_captioner, identify_prompt_writer
from diffedit_batch.runtime.backlog import Backlog
from diffedit_batch.runtime.fan_out import fan_out
from diffedit_batch.runtime.pool import Done, WorkerPool
from diffedit_batch.runtime.text_workers import CaptionsWorker, PromptsWorker, TextRequest

FLUSH_TEXTS = 256
FLUSH_SECONDS = 10.0
"""What a killed pass loses at most: so many texts, or those of so many seconds."""


@dataclass
class Wanted:
    """Texts to generate, each once, however many rows ask for it."""

    prompts: dict[Key, TextRequest] = field(default_factory=dict)
    captions: dict[Key, TextRequest] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.prompts or self.captions)

    def add(self, row: ManifestRow) -> None:
        """Add what a row lacks."""
        for name, key in row.missing:
            assert row.request is not None
            if name == PROMPTS.name:
                self.prompts.setdefault(key, TextRequest(key))
            else:
                self.captions.setdefault(key, TextRequest(key, row.request.image))


def open_generated(
    config: JobConfig,
    storage: Storage,
    run_id: str = "",
    check_lease: Callable[[], object] = lambda: None,
) -> Generated:
    """The texts under a job's output folder, and what would generate the missing ones; other
    arguments as of `TextTable`.
    """
    writing = (run_id, check_lease)
    return Generated(
        prompts=TextTable(storage, PROMPTS, lambda: _prompts_generator(config), *writing),
        captions=TextTable(storage, CAPTIONS, lambda: _captions_generator(config), *writing),
    )


def find_wanted(rows: Iterable[ManifestRow]) -> Wanted:
    """What rows lack that are still to be edited. Raises ModelError where a model is missing."""
    wanted = Wanted()
    for row in rows:
        wanted.add(row)
    return wanted


def generate(
    config: JobConfig,
    wanted: Wanted,
    generated: Generated,
    stop: threading.Event,
    on_progress: Callable[[str, int, int], None],
) -> Counters:
    """Run the passes that are needed; use inside `ray_session`.

    Args:
        config: the job.
        wanted: what to generate.
        generated: where texts are kept.
        stop: asks for an early end; what came back by then is kept.
        on_progress: called with what is generated (`prompts`, `captions`), how many came back and
            how many there are.

    Returns:
        The work done.

    Raises:
        DiffEditError: a model could not be loaded, workers could not be had or kept.
        InterruptedRunError: `stop` was set before all was done.
    """
    counters = Counters()
    passes = (
        (generated.prompts, wanted.prompts, PromptsWorker, 1),
        (generated.captions, wanted.captions, CaptionsWorker, config.captions.batch_size),
    )
    for table, requests, worker, bundle_size in passes:
        if requests:
            one_pass = _Pass(table, len(requests), on_progress)
            counters += one_pass.run(config, list(requests.values()), worker, bundle_size, stop)
    return counters


class _Pass:
    def __init__(
        self, table: TextTable, num_wanted: int, on_progress: Callable[[str, int, int], None]
    ) -> None:
        self._table = table
        self._num_wanted, self._num_done = num_wanted, 0
        self._on_progress = on_progress
        self._counters = Counters()
        self._flushed = time.monotonic()

    def run(
        self,
        config: JobConfig,
        requests: list[TextRequest],
        worker: type,
        bundle_size: int,
        stop: threading.Event,
    ) -> Counters:
        num_bundles = -(-len(requests) // bundle_size)
        pool = WorkerPool(config, worker, "generate", max_workers=num_bundles)
        backlog = Backlog(
            ((str(n), request) for n, request in enumerate(requests)), bundle_size, pool.num_workers
        )
        try:
            fan_out(
                backlog,
                pool,
                stop,
                take=self._take,
                give_up=self._give_up,
                on_wait=self._keep,
            )
        finally:
            pool.close()
            self._table.merge()
        if self._num_done < self._num_wanted:
            raise InterruptedRunError(
                f"stopped on request after {self._num_done} of {self._num_wanted}"
                f" {self._table.kind.name}; the same command continues"
            )
        pool.wait_until_gone()
        return self._counters

    def _take(self, event: Done) -> None:
        result = event.result
        self._table.add(result.texts)
        for key, error in result.failures.items():
            self._table.fail(key, error)
        self._counters += result.counters
        self._num_done += len(result.texts) + len(result.failures)

    def _give_up(self, request: TextRequest, error: RowError, num_deaths: int) -> None:
        self._table.fail(request.key, error)
        self._num_done += 1

    def _keep(self) -> None:
        waited = time.monotonic() - self._flushed
        if self._table.num_pending >= FLUSH_TEXTS or waited > FLUSH_SECONDS:
            self._table.flush()
            self._flushed = time.monotonic()
        self._on_progress(self._table.kind.name, self._num_done, self._num_wanted)


def _prompts_generator(config: JobConfig) -> str:
    prompts = config.prompts
    sampling = prompts.model_dump(exclude={"id", "revision", "dtype", "local_files_only"})
    return _name(
        identify_prompt_writer(prompts), [sampling, prompts.dtype or config.device, config.seed]
    )


def _captions_generator(config: JobConfig) -> str:
    captions = config.captions
    return _name(
        identify_captioner(captions),
        [captions.prefix, captions.max_new_tokens, captions.dtype or config.device],
    )


def _name(model: ModelIdentity, parameters: list[object]) -> str:
    """For people to recognise, and different wherever texts may be."""
    return f"{model.id}@{model.revision} {fingerprint(parameters)[:12]}"
