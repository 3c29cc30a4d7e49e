"""What a run leaves in writing: result rows, and the record of the run itself."""

import platform
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from diffedit_batch.config import JobConfig
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import RowError
from diffedit_batch.models.identity import ModelIdentity, identify_clip, identify_lpips
from diffedit_batch.redact import redact_tree
from diffedit_batch.runtime.messages import BundleResult, WorkerInfo
from diffedit_batch.runtime.selection import VERDICTS
from diffedit_batch.runtime.worker_state import WorkerState
from diffedit_batch.schema import FILE_COLUMNS, RESULT_SCHEMA, STATUSES

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "ray", "pyarrow", "pillow")
_NEVER_NULL = (
    *("error_stage", "error_type", "error_message"),
    *FILE_COLUMNS,
    *("edited_sha256", "mask_sha256", "map_sha256", "digital_source_type"),
)


@dataclass
class RunState:
    """A run as it stands; handed to `on_progress` and returned in the end.

    Attributes:
        run_id: names its parts and its record; begins with the UTC time.
        num_rows: rows of the manifest (of the limit, if there is one).
        selected: rows by what the run makes of them, see `runtime.selection.VERDICTS`.
        counts: rows of this run by status.
        num_failed_before: failed rows among those that keep their result.
        failures: rows of this run that failed, by `stage/type`.
        num_filtered: rows of this run that are edited, but not good enough.
        filter_reasons: why not, each with its number of rows.
        num_flagged: rows of this run that the safety checker flagged.
        num_truncated_rows: rows with a prompt the text encoder could not read to the end.
        counters: work done.
        seconds: by phase, summed over workers, and `total` on the clock.
        workers: each worker that became ready, those since lost included.
        num_workers: workers that are ready now.
        lost_workers: name of each worker that was lost (empty: before it was ready), and why.
        commits: of the hub models that were loaded, by section of the config.
        logs: folder of Ray's log files, on every node; empty before Ray has started.
        phase: what goes on before and after the edit, and how far it is; empty while editing.
        num_committed: results of earlier runs that rows may keep, before any row is looked at.
    """

    run_id: str
    num_rows: int = 0
    selected: Counter[str] = field(default_factory=Counter)
    num_failed_before: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    num_filtered: int = 0
    filter_reasons: Counter[str] = field(default_factory=Counter)
    num_flagged: int = 0
    num_truncated_rows: int = 0
    counters: Counters = field(default_factory=Counters)
    seconds: dict[str, float] = field(default_factory=dict)
    workers: list[WorkerState] = field(default_factory=list)
    num_workers: int = 0
    commits: dict[str, str] = field(default_factory=dict)
    lost_workers: list[tuple[str, str]] = field(default_factory=list)
    logs: str = ""
    phase: str = ""
    num_committed: int = 0

    @property
    def num_skipped(self) -> int:
        """Rows that keep the result they have."""
        return self.selected["unchanged"]

    @property
    def num_done(self) -> int:
        """Rows with a result, earlier runs included."""
        return self.num_skipped + self.counts.total()

    @property
    def num_left(self) -> int:
        """Rows this run still has to do; an estimate until it has looked at every row.

        Rows not looked at are expected to keep the results there are for them as often as those
        before them did.
        """
        num_to_do = sum(self.selected[verdict] for verdict in ("new", "changed", "retried"))
        num_unseen = self.num_rows - self.num_skipped - num_to_do
        num_met = num_to_do - self.selected["new"] + self.num_skipped
        share = self.num_skipped / num_met if num_met else 1.0
        num_kept = min(num_unseen, share * max(0, self.num_committed - num_met))
        return num_to_do - self.counts.total() + round(num_unseen - num_kept)

    @property
    def rows_per_s(self) -> float:
        """What the workers deliver now, all together."""
        return sum(worker.rows_per_s for worker in self.workers)

    @property
    def eta_s(self) -> float | None:
        """Seconds until no row is left at this rate; None while nothing comes."""
        rate = self.rows_per_s
        return self.num_left / rate if rate else None

    def count(self, columns: dict[str, Any]) -> None:
        """Count one result by its columns."""
        self.counts[columns["status"]] += 1
        if columns["status"] == "failed":
            self.failures[f"{columns['error_stage']}/{columns['error_type']}"] += 1
        reasons = columns.get("filter_reasons") or ()
        self.num_filtered += bool(reasons)
        self.filter_reasons.update(reasons)
        self.num_flagged += bool(columns.get("is_flagged"))
        self.num_truncated_rows += bool(columns.get("num_truncated_prompts"))

    def see(
        self,
        workers: Sequence[WorkerInfo],
        ready: Sequence[WorkerInfo],
        lost: Sequence[tuple[str, str]],
    ) -> None:
        """Take over which workers there were, which of them are ready, and which were lost."""
        self.workers += [WorkerState(info) for info in workers[len(self.workers) :]]
        for worker in self.workers:
            worker.is_ready = worker.info in ready
        self.num_workers, self.lost_workers = len(ready), list(lost)

    def deliver(self, worker: WorkerInfo, result: BundleResult) -> None:
        """Count the work behind a bundle; its rows are counted where they are committed."""
        self.counters += result.counters
        for phase, seconds in result.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        next(one for one in self.workers if one.info == worker).deliver(result)

    def as_dict(self) -> dict[str, Any]:
        """What a record and a summary say of it."""
        return {
            "run_id": self.run_id,
            "num_rows": self.num_rows,
            "selected": {verdict: self.selected[verdict] for verdict in VERDICTS},
            "counts": {status: self.counts[status] for status in STATUSES},
            "failures": dict(self.failures),
            "num_filtered": self.num_filtered,
            "filter_reasons": dict(self.filter_reasons.most_common()),
            "num_flagged": self.num_flagged,
            "num_truncated_rows": self.num_truncated_rows,
            "counters": self.counters.as_dict(),
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "workers": [worker.as_dict(self.logs) for worker in self.workers],
            "lost_workers": [{"worker": name, "cause": cause} for name, cause in self.lost_workers],
            "logs": self.logs,
        }


def error_columns(error: RowError) -> dict[str, Any]:
    """The columns that say why a row failed."""
    return {
        "status": "failed",
        "error_stage": error.stage,
        "error_type": error.kind,
        "error_message": str(error),
    }


def result_table(
    rows: list[tuple[ManifestRow, dict[str, Any]]],
    model: ModelIdentity,
    *,
    run_id: str,
    attempts: int,
    attempt_errors: Sequence[str] = (),
) -> pa.Table:
    """Results as they are committed: what the worker said, what was asked, what was carried."""
    now = datetime.now(UTC)
    complete = [
        {
            **dict.fromkeys(_NEVER_NULL, ""),
            **row.asked,
            **columns,
            "id": row.id,
            "image": row.image,
            "attempts": attempts,
            "attempt_errors": attempt_errors,
            "model_id": model.id,
            "model_revision": model.revision,
            "fingerprint": row.fingerprint,
            "run_id": run_id,
            "finished_at": now,
        }
        for row, columns in rows
    ]
    table = pa.Table.from_pylist(complete, schema=RESULT_SCHEMA)
    carried = pa.Table.from_batches([row.carried for row, _ in rows])
    for name in carried.column_names:
        table = table.append_column(carried.schema.field(name), carried.column(name))
    return table


def run_record(
    state: RunState, config: JobConfig, model: ModelIdentity, started_at: datetime, outcome: str
) -> dict[str, Any]:
    """The content of `runs/<run_id>.json`, without secrets."""
    clip = None if config.scores.clip is None else identify_clip(config.scores)
    lpips = None if config.scores.lpips is None else identify_lpips(config.scores)
    record = {
        **state.as_dict(),
        "outcome": outcome,
        "started_at": started_at.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "model": {"id": model.id, "revision": model.revision},
        "clip": clip and {"id": clip.id, "revision": clip.revision},
        "lpips": lpips and {"id": lpips.id, "revision": lpips.revision},
        "commits": state.commits,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("diffedit_batch", *_LIBRARIES)},
        },
        "config": config.model_dump(),
        "effective_edit": config.edit.resolved().model_dump(),
    }
    return {key: redact_tree(value) for key, value in record.items()}
