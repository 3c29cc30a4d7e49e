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
from diffedit_batch.models.identity import ModelIdentity, identify_clip
from diffedit_batch.redact import redact_tree
from diffedit_batch.runtime.selection import VERDICTS
from diffedit_batch.schema import RESULT_SCHEMA, STATUSES

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "ray", "pyarrow", "pillow")
_NEVER_NULL = (
    *("error_stage", "error_type", "error_message"),
    *("edited_file_name", "mask_file_name", "edited_sha256", "mask_sha256"),
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
        workers: host, device and load time of each worker that became ready.
        num_workers: workers that are ready now.
        phase: what is generated before the edit and how far that is; empty while editing.
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
    workers: list[dict[str, Any]] = field(default_factory=list)
    num_workers: int = 0
    phase: str = ""

    @property
    def num_skipped(self) -> int:
        """Rows that keep the result they have."""
        return self.selected["unchanged"]

    @property
    def num_done(self) -> int:
        """Rows with a result, earlier runs included."""
        return self.num_skipped + self.counts.total()

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
    record = {
        "run_id": state.run_id,
        "outcome": outcome,
        "started_at": started_at.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "num_rows": state.num_rows,
        "selected": {verdict: state.selected[verdict] for verdict in VERDICTS},
        "counts": {status: state.counts[status] for status in STATUSES},
        "failures": dict(state.failures),
        "num_filtered": state.num_filtered,
        "filter_reasons": dict(state.filter_reasons),
        "num_flagged": state.num_flagged,
        "num_truncated_rows": state.num_truncated_rows,
        "counters": state.counters.as_dict(),
        "seconds": {phase: round(seconds, 3) for phase, seconds in state.seconds.items()},
        "workers": state.workers,
        "model": {"id": model.id, "revision": model.revision},
        "clip": clip and {"id": clip.id, "revision": clip.revision},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("diffedit_batch", *_LIBRARIES)},
        },
        "config": config.model_dump(),
        "effective_edit": config.edit.resolved().model_dump(),
    }
    return {key: redact_tree(value) for key, value in record.items()}
