"""What happens before an editor is needed; the rest of the pass is in test_driver.py."""

from pathlib import Path

import pytest
from jobs_on_disk import edits_of, job, results, write_manifest, write_pictures

from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.storage import Storage
from diffedit_batch.models.identity import identify
from diffedit_batch.runtime import edit_pass
from diffedit_batch.runtime.edit_pass import EditPass
from diffedit_batch.runtime.records import RunState
from diffedit_batch.runtime.results import Results
from diffedit_batch.runtime.worker import Worker


def test_rows_that_are_refused_are_committed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit_pass, "_COMMIT_ROWS", 3)
    rows = edits_of(write_pictures(tmp_path, 7))
    for row in rows[1:6]:
        row["image"] = "nowhere.png"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo")).with_absolute_paths()
    model, storage, state = identify(config.model), Storage(config.output.uri), RunState("run")
    with hold_lease(storage, "run") as lease:
        kept = Results(Ledger(storage, lease), model, state, {})
        edits = EditPass(kept, state, Worker)
        found = edits.rows_to_edit(Manifest(config, "model").rows())
        assert next(found).id == "000-0"
        assert state.counts.total() == 0, "rows are looked at when they are asked for"
        assert [row.id for row in found] == ["006-0"]
        assert state.counts == {"failed": 5}
        assert [row["id"] for row in results(tmp_path)] == ["001-0", "002-0", "003-0"]
        assert kept.num_waiting == 2
    for row in results(tmp_path):
        assert (row["error_stage"], row["error_type"]) == ("load", "ImageNotFound")
        assert row["attempts"] == 0
