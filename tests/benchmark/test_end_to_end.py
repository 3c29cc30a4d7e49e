import pytest

from diffedit_batch.benchmark.end_to_end import measure_end_to_end
from diffedit_batch.config import EditConfig
from diffedit_batch.errors import ConfigError

EDIT = EditConfig(num_inference_steps=4)


@pytest.mark.ray
def test_a_job_beside_the_engine_and_the_loop(ray_here: None) -> None:
    report = measure_end_to_end("demo", "cpu", num_rows=6, batch_size=2, repeats=1, edit=EDIT)
    table, phases = report.tables
    rows = {row["what"]: row for row in table.rows}
    assert list(rows) == [
        *("engine alone", "job, once loaded", "job, whole"),
        *("reference loop, once loaded", "reference loop, whole"),
    ]
    for row in rows.values():
        assert row.get("problem") is None
        assert row["edits_per_s"].median > 0
        assert row["of_engine"] > 0
        assert row["of_loop"] > 0
    assert rows["engine alone"]["of_engine"] == 1
    assert rows["reference loop, once loaded"]["of_loop"] == 1
    assert rows["reference loop, whole"]["of_loop"] == 1
    whole = rows["job, whole"]
    assert sum(whole["statuses"].values()) == 6
    assert whole["counters"]["vae_encodes"] == 6
    assert whole["edits_per_s"].median == pytest.approx(6 / whole["seconds"].median)
    loaded = rows["job, once loaded"]
    assert loaded["seconds"].median < whole["seconds"].median
    assert loaded["driver_ms_per_row"].median > 0
    assert {"read", "edit", "write", "total"} <= {row["phase"] for row in phases.rows}


def test_settings_that_measure_nothing_are_refused() -> None:
    for wrong in ({"num_rows": 0}, {"batch_size": 0}, {"repeats": 0}):
        settings = {"num_rows": 1, "batch_size": 1, "repeats": 1, **wrong}
        with pytest.raises(ConfigError, match="at least 1"):
            measure_end_to_end("demo", "cpu", **settings)  # type: ignore[arg-type]
