from datetime import UTC, datetime
from pathlib import Path

import pytest
from results_on_disk import commit, edited

from diffedit_batch.benchmark.end_to_end import measure_end_to_end, steady_rate
from diffedit_batch.config import EditConfig
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError

EDIT = EditConfig(num_inference_steps=4)


@pytest.mark.ray
def test_a_job_beside_the_engine_and_the_loop(ray_here: None) -> None:
    report = measure_end_to_end("demo", "cpu", num_rows=6, batch_size=2, repeats=1, edit=EDIT)
    table, phases = report.tables
    rows = {row["what"]: row for row in table.rows}
    assert list(rows) == [
        *("engine alone", "job, steady", "job, whole"),
        *("reference loop, steady", "reference loop, whole"),
    ]
    for row in rows.values():
        assert row.get("problem") is None
        assert row["edits_per_s"].median > 0
        assert row["of_engine"] > 0
        assert row["of_loop"] > 0
    assert rows["engine alone"]["of_engine"] == 1
    assert rows["reference loop, steady"]["of_loop"] == 1
    assert rows["reference loop, whole"]["of_loop"] == 1
    whole = rows["job, whole"]
    assert sum(whole["statuses"].values()) == 6
    assert whole["counters"]["vae_encodes"] == 6
    assert whole["edits_per_s"].median == pytest.approx(6 / whole["seconds"].median)
    assert {"read", "edit", "write", "total"} <= {row["phase"] for row in phases.rows}


def test_the_first_bundles_are_not_steady(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))

    def rows(first: int, count: int, finished_ms: int) -> list[dict[str, object]]:
        moment = datetime.fromtimestamp(finished_ms / 1000, UTC)
        return [edited(str(n), finished_at=moment) for n in range(first, first + count)]

    commit(storage, rows(0, 4, 9_000), rows(4, 4, 10_000))
    assert steady_rate(Ledger(storage)) is None
    commit(storage, rows(8, 3, 11_500), rows(11, 5, 12_000))
    assert steady_rate(Ledger(storage)) == 8 / 2


def test_settings_that_measure_nothing_are_refused() -> None:
    for wrong in ({"num_rows": 0}, {"batch_size": 0}, {"repeats": 0}):
        settings = {"num_rows": 1, "batch_size": 1, "repeats": 1, **wrong}
        with pytest.raises(ConfigError, match="at least 1"):
            measure_end_to_end("demo", "cpu", **settings)  # type: ignore[arg-type]
