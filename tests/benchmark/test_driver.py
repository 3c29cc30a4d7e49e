import pytest

from diffedit_batch.benchmark.driver import measure_driver
from diffedit_batch.errors import ConfigError


@pytest.mark.ray
def test_rows_that_change_nothing_are_timed_after_the_first(ray_here: None) -> None:
    report = measure_driver(num_rows=300, rows_per_image=4, repeats=1)
    ((row,),) = (table.rows for table in report.tables)
    assert row["num_rows"] == 300
    assert row["driver_ms_per_row"].median > 0


@pytest.mark.parametrize("wrong", [{"num_rows": 256}, {"rows_per_image": 0}, {"repeats": 0}])
def test_jobs_too_small_to_measure_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        measure_driver(**{"num_rows": 300, "rows_per_image": 4, "repeats": 1, **wrong})
