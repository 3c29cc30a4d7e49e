"""What an output folder holds."""

from typing import Any

from diffedit_batch.data.ledger import Ledger, read_json
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import StorageError


def read_status(uri: str) -> dict[str, Any]:
    """State, rows by status, rows that are not good enough, and the last run of an output folder.

    `state` is `complete` where the last run finished (`_SUCCESS` is there), else `incomplete`. A
    caller that waits for one run compares `success.run_id` too: yesterday's success says nothing
    about today.

    Raises:
        StorageError: there is no output of this job.
    """
    storage = Storage(uri)
    runs = storage.names("runs", ".json")
    ledger = Ledger(storage)
    parts = ledger.parts()
    if not runs and not parts:
        raise StorageError(f"{uri} holds no output of this job (no runs/, no results/)")
    success = read_json(storage, "_SUCCESS")
    num_filtered, filter_reasons = ledger.filter_reasons()
    return {
        "state": "complete" if success else "incomplete",
        "counts": ledger.counts(),
        "num_filtered": num_filtered,
        "filter_reasons": filter_reasons,
        "num_parts": len(parts),
        "success": success,
        "last_run": read_json(storage, f"runs/{runs[-1]}") if runs else None,
    }
