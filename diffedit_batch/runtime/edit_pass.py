"""The pass that edits: rows that need an editor go out, what comes back is committed."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from diffedit_batch.config import JobConfig
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.errors import RowError
from diffedit_batch.runtime.backlog import Backlog
from diffedit_batch.runtime.records import RunState, error_columns
from diffedit_batch.runtime.results import Results, check_failures
from diffedit_batch.schema import EditRequest

# What imports Ray is imported where workers are started: rows are looked at before that, and those
# that are refused need none.
if TYPE_CHECKING:
    from diffedit_batch.runtime.pool import Done

_COMMIT_ROWS = 256


class EditPass:
    """The rows of a run on their way to their results.

    Args:
        results: what takes these.
        state: of the run.
        worker: class of those that edit, see `WorkerActor`.
    """

    def __init__(self, results: Results, state: RunState, worker: type) -> None:
        self._results, self._state, self._worker = results, state, worker
        self._in_flight: dict[str, ManifestRow] = {}

    def rows_to_edit(self, rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
        """Rows that need an editor; those refused are committed."""
        for row in rows:
            if row.request is None:
                assert row.error is not None
                self._results.add([(row, error_columns(row.error))], attempts=0)
                if self._results.num_waiting >= _COMMIT_ROWS:
                    self._results.commit()
            else:
                self._in_flight[row.id] = row
                yield row

    def run(
        self,
        config: JobConfig,
        rows: Iterator[ManifestRow],
        stop: threading.Event,
        on_progress: Callable[[RunState], None],
    ) -> None:
        """Edit rows of `rows_to_edit`; use inside `ray_session`.

        Args:
            config: the job.
            rows: what to edit.
            stop: asks for an early end; what was handed out by then is finished.
            on_progress: called at the start, whenever rows came back, and about once a second.

        Raises:
            TooManyFailuresError: more rows failed than may.
            DiffEditError: a model could not be loaded, workers could not be had or kept, results
                could not be committed.
        """
        from diffedit_batch.runtime.fan_out import fan_out
        from diffedit_batch.runtime.metrics import RunMetrics
        from diffedit_batch.runtime.places import count_wanted
        from diffedit_batch.runtime.pool import WorkerPool

        num_rows = self._state.num_left
        num_bundles = math.ceil(num_rows / config.bundle_rows)
        num_workers = count_wanted(config.cluster, num_bundles)
        config = config.with_compile_decided(num_rows, num_workers)
        pool = WorkerPool(config, self._worker, "edit")
        requests = ((row.group, row.request) for row in rows)
        backlog = Backlog(requests, config.bundle_rows, pool.num_workers)
        metrics = RunMetrics(self._state.run_id)

        def show() -> None:
            self._state.see(pool.infos, pool.ready, pool.lost)
            metrics.show(self._state)
            check_failures(self._state, config.output.max_failed_fraction, final=False)
            on_progress(self._state)

        self._state.phase = ""
        on_progress(self._state)
        try:
            fan_out(backlog, pool, stop, take=self._take, give_up=self._give_up, on_wait=show)
        finally:
            self._state.see(pool.infos, pool.ready, pool.lost)
            pool.close()

    def _take(self, event: "Done") -> None:
        result = event.result
        rows = [(self._in_flight.pop(columns["id"]), columns) for columns in result.rows]
        self._state.deliver(event.worker, result)
        if rows:
            causes = event.bundle.causes
            self._results.add(rows, attempts=len(causes) + 1, attempt_errors=causes)
            self._results.commit()

    def _give_up(self, request: EditRequest, error: RowError, causes: tuple[str, ...]) -> None:
        """Fail a row that killed too many workers."""
        row = self._in_flight.pop(request.id)
        self._results.add(
            [(row, error_columns(error))], attempts=len(causes), attempt_errors=causes
        )
        self._results.commit()
