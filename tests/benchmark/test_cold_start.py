import sys

import pytest

from diffedit_batch.benchmark.cold_start import measure_cold_start
from diffedit_batch.config import EditConfig
from diffedit_batch.errors import ClusterError


@pytest.mark.ray
def test_phases_make_up_the_whole_start() -> None:
    edit = EditConfig(num_inference_steps=2)
    report = measure_cold_start("demo", "cpu", num_rows=1, batch_size=1, repeats=1, edit=edit)
    [table] = report.tables
    seconds = {row["phase"]: row["seconds"].median for row in table.rows}
    *phases, total = seconds
    assert phases == [
        *("interpreter", "imports of the driver", "Ray", "worker", "imports of the worker"),
        *("download", "model", "warm-up", "first batch"),
    ]
    assert total == "total"
    assert all(value > 0 for phase, value in seconds.items() if phase != "download")
    assert sum(seconds[phase] for phase in phases) == pytest.approx(seconds["total"])


def test_a_process_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ClusterError, match="ended with 1"):
        measure_cold_start("demo", "cpu", num_rows=1, batch_size=1, repeats=1)
