"""The driver: plan what is to do, fan it out, commit what comes back, finish.

One run in order: manifest checked as a whole, rows already committed skipped, texts generated that
the others lack, workers started, bundles handed to whoever is free, every bundle that returns
committed as one part, parts merged, `_SUCCESS` written last. Killed at any moment, the same command
continues.

What imports Ray is imported where workers are started: most runs of a schedule have nothing to do,
and end before that.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import chain

from diffedit_batch.config import JobConfig
from diffedit_batch.data.finalize import finalize, remove_replaced
from diffedit_batch.data.lease import Lease, free_epoch, hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import InterruptedRunError, LeaseLostError, StorageError
from diffedit_batch.models.identity import ModelIdentity, identify
from diffedit_batch.runtime.edit_pass import EditPass
from diffedit_batch.runtime.records import RunState, run_record
from diffedit_batch.runtime.results import Results, check_failures
from diffedit_batch.runtime.selection import UNDONE, Selection
from diffedit_batch.runtime.survey import Survey
from diffedit_batch.runtime.wanted import Wanted
from diffedit_batch.runtime.worker import Worker


def run_job(
    config: JobConfig,
    *,
    selection: Selection = UNDONE,
    on_progress: Callable[[RunState], None] = lambda state: None,
) -> RunState:
    """Run a job to its end.

    Args:
        config: the job.
        selection: which rows are done beside those that have no result yet.
        on_progress: called whenever a phase begins or rows came back, and about once a second.

    Raises:
        DiffEditError: the job did not start, or did not finish; `exit_code` says which.
    """
    return _Run(config, selection, on_progress).execute()


def prepare_job(
    config: JobConfig,
    *,
    selection: Selection = UNDONE,
    on_progress: Callable[[RunState], None] = lambda state: None,
) -> RunState:
    """Only generate the prompts and captions that `run_job` would, for people to read and correct.

    Args and errors as of `run_job`; `state.counters` says how many were generated, `state.failures`
    of how many that failed.
    """
    return _Run(config, selection, on_progress).prepare()


class _Run:
    def __init__(
        self,
        config: JobConfig,
        selection: Selection,
        on_progress: Callable[[RunState], None],
    ) -> None:
        self._config = config = config.with_absolute_paths()
        self._selection = selection
        self._on_progress = on_progress
        now = datetime.now(UTC)
        self._state = RunState(f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}")
        self._started_at, self._started = now, time.perf_counter()
        self._model: ModelIdentity = identify(config.model)
        self._storage = Storage(config.output.uri)
        self._lease: Lease

    def prepare(self) -> RunState:
        self._begin("reading the manifest")
        self._open()  # what cannot be used must leave no trace
        with self._hold():
            self._open()  # somebody may have written meanwhile
            if self._survey.manifest.may_lack_texts:
                self._survey.generated.merge()  # what a killed pass left
            wanted = self._survey.find_wanted()
            if wanted:
                with self._session(wanted.sections) as (config, stop):
                    self._generate(config, wanted, stop)
        self._state.failures.update(self._survey.generated.failures())
        return self._state

    def execute(self) -> RunState:
        self._begin("reading the manifest")
        epoch = free_epoch(self._storage)
        wanted, rows = self._look()
        is_done = not wanted and rows is None and not self._survey.selector.num_to_prune()
        if is_done and self._storage.exists("_SUCCESS"):
            self._check_failures()
            return self._state
        with self._hold():
            # What was read is still true, unless somebody wrote meanwhile.
            if remove_replaced(self._ledger) or self._lease.holder.epoch != epoch:
                wanted, rows = self._look()
            if self._survey.manifest.may_lack_texts:
                self._survey.generated.merge()  # what a killed pass left
            return self._execute(wanted, self._edits.rows_to_edit(rows or iter(())))

    def _execute(self, wanted: Wanted, todo: Iterator[ManifestRow]) -> RunState:
        state = self._state
        outcome = "failed"
        try:
            first = None if wanted else next(todo, None)
            if wanted or first is not None:
                self._work(wanted, chain([first] if first else [], todo))
            self._begin("checking and merging the results")
            self._results.commit()
            num_to_prune = self._survey.selector.num_to_prune()
            if not state.counts and not num_to_prune and self._storage.exists("_SUCCESS"):
                self._check_failures()
                return state
            if num_to_prune:
                self._results.remove_success()
            balance = finalize(
                self._ledger, self._survey.selector.asked, prune=self._selection.prune
            )
            state.selected["pruned"] = balance.num_pruned
            self._check_failures()
            if self._survey.selector.is_whole:
                self._results.write_success(balance)
            outcome = "finished"
        except (InterruptedRunError, KeyboardInterrupt):
            outcome = "interrupted"
            raise
        except (LeaseLostError, StorageError):
            # Nothing more can be written, or may be: the next run does these rows again.
            self._results.drop_waiting()
            outcome = ""
            raise
        finally:
            self._results.commit()
            state.seconds["total"] = time.perf_counter() - self._started
            if outcome == "finished" or (state.counts and outcome):
                record = run_record(state, self._config, self._model, self._started_at, outcome)
                text = json.dumps(record, indent=2).encode()
                self._storage.write(f"runs/{state.run_id}.json", text)
        return state

    def _begin(self, phase: str) -> None:
        self._state.phase = phase
        self._on_progress(self._state)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """The output, held by this run alone."""
        with hold_lease(self._storage, self._state.run_id) as self._lease:
            self._ledger = Ledger(self._storage, self._lease)
            self._results = Results(self._ledger, self._model, self._state, self._config.thresholds)
            self._edits = EditPass(self._results, self._state, Worker)
            self._storage.remove_temporary()
            yield

    def _open(self) -> None:
        """Read what there is; writes nothing."""
        state = self._state
        self._survey = Survey(
            self._config,
            self._selection,
            self._storage,
            self._model,
            run_id=state.run_id,
            check_lease=lambda: self._lease.check(),
        )
        state.selected.clear()
        state.num_failed_before = 0
        state.num_rows = self._survey.selector.num_rows
        state.num_committed = self._survey.selector.num_committed

    def _look(self) -> tuple[Wanted, Iterator[ManifestRow] | None]:
        """Which texts are wanted, and the rows without a result; None where there is no such row.

        Where texts are wanted, rows are not looked at before these are there.
        """
        self._open()
        wanted, rows = self._survey.find_wanted(), self._rows_to_do()
        if wanted:
            return wanted, rows
        first = next(rows, None)
        return wanted, None if first is None else chain([first], rows)

    def _rows_to_do(self) -> Iterator[ManifestRow]:
        """Rows that are to be done; the others are only counted."""
        for row, verdict, has_failed in self._survey.selector.rows():
            self._state.selected[verdict] += 1
            if verdict == "unchanged":
                self._state.num_failed_before += has_failed
            else:
                yield row

    def _session(
        self, models: Sequence[str]
    ) -> AbstractContextManager[tuple[JobConfig, threading.Event]]:
        """Ray, for as long as workers are needed; see `worker_session`."""
        from diffedit_batch.runtime.session import worker_session

        self._begin("starting Ray")
        return worker_session(self._config, models, self._storage, self._lease, self._state)

    def _work(self, wanted: Wanted, rows: Iterator[ManifestRow]) -> None:
        """Generate what is wanted, then edit."""
        scores = ("scores",) if self._config.scores.clip is not None else ()
        with self._session(("model", *scores, *wanted.sections)) as (config, stop):
            if wanted:
                self._generate(config, wanted, stop)
            first = next(rows, None)
            if first is not None:
                self._edits.run(config, chain([first], rows), stop, self._on_progress)
        left = self._state.num_left
        if stop.is_set() and left:
            force = self._selection.force
            how = "the same command" if force is None else f"the same command with --force={force}"
            raise InterruptedRunError(f"stopped on request with {left} rows to go; {how} continues")

    def _generate(self, config: JobConfig, wanted: Wanted, stop: threading.Event) -> None:
        from diffedit_batch.runtime.preparation import generate

        started = time.perf_counter()

        def show(name: str, num_done: int, num_wanted: int) -> None:
            self._begin(f"{name}: {num_done}/{num_wanted}")

        self._state.counters += generate(config, wanted, self._survey.generated, stop, show)
        self._state.seconds["generate"] = time.perf_counter() - started

    def _check_failures(self) -> None:
        check_failures(self._state, self._config.output.max_failed_fraction, final=True)
