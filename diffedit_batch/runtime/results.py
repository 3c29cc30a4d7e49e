"""The results of a run: counted as they come, committed as parts, declared whole in the end."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from diffedit_batch.data.finalize import Balance
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.errors import TooManyFailuresError
from diffedit_batch.models.identity import ModelIdentity
from diffedit_batch.runtime.filtering import filter_reasons
from diffedit_batch.runtime.records import RunState, result_table


class Results:
    """What a run adds to its output.

    Args:
        ledger: the output, held by this run.
        model: what edits.
        state: counts the results.
        thresholds: which edits are good enough, see `filter_reasons`.
    """

    def __init__(
        self,
        ledger: Ledger,
        model: ModelIdentity,
        state: RunState,
        thresholds: Mapping[str, float],
    ) -> None:
        self._ledger, self._model, self._state = ledger, model, state
        self._thresholds = thresholds
        self._waiting: list[pa.Table] = []

    @property
    def num_waiting(self) -> int:
        """Rows that are not committed yet."""
        return sum(table.num_rows for table in self._waiting)

    def add(
        self,
        rows: list[tuple[ManifestRow, dict[str, Any]]],
        attempts: int,
        attempt_errors: tuple[str, ...] = (),
    ) -> None:
        """Count rows with their result columns, and keep them for the next part."""
        for _, columns in rows:
            columns["filter_reasons"] = filter_reasons(columns, self._thresholds)
            self._state.count(columns)
        self._waiting.append(
            result_table(
                rows,
                self._model,
                run_id=self._state.run_id,
                attempts=attempts,
                attempt_errors=attempt_errors,
            )
        )

    def commit(self) -> None:
        """Write what waits as one part.

        Raises:
            LeaseLostError: another run has taken over.
            StorageError: it could not be written.
        """
        if self._waiting:
            self.remove_success()
            tables, self._waiting = self._waiting, []
            self._ledger.commit(pa.concat_tables(tables, promote_options="permissive"))

    def drop_waiting(self) -> None:
        """Forget what waits: the next run does these rows again."""
        self._waiting = []

    def write_success(self, balance: Balance) -> None:
        """Say that the output is whole. Errors as of `commit`."""
        document = {
            "run_id": self._state.run_id,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "num_rows": sum(balance.counts.values()),
            "counts": balance.counts,
            "parts": balance.parts,
        }
        self._ledger.check_lease()
        self._ledger.storage.write("_SUCCESS", json.dumps(document, indent=2).encode())

    def remove_success(self) -> None:
        """Unsay it, which comes before any change: it must not outlive its truth. Errors as of
        `commit`.
        """
        self._ledger.check_lease()
        self._ledger.storage.remove(["_SUCCESS"])


def check_failures(state: RunState, max_failed_fraction: float, *, final: bool) -> None:
    """Stop as soon as more rows failed than may, whatever the rest brings.

    Raises:
        TooManyFailuresError: more did.
    """
    num_failed = state.num_failed_before + state.counts["failed"]
    if num_failed > max_failed_fraction * state.num_rows:
        common = ", ".join(f"{kind} ({n})" for kind, n in state.failures.most_common(3))
        outcome = "every row was tried" if final else "the job stops early"
        raise TooManyFailuresError(
            f"{num_failed} of {state.num_rows} rows failed, more than"
            f" output.max_failed_fraction {max_failed_fraction} allows; {outcome}."
            + (f" Most often: {common}." if common else " (see --retry-failed)")
        )
