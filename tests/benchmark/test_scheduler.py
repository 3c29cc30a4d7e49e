import pytest

from diffedit_batch.benchmark.scheduler import measure_scheduler
from diffedit_batch.benchmark.timing import Spread
from diffedit_batch.errors import ConfigError


@pytest.mark.ray
def test_sleep_and_what_is_lost_beside_it(ray_here: None) -> None:
    report = measure_scheduler(
        worker_counts=[1, 2], num_groups=12, rows_per_group=3, group_s=0.02, repeats=2
    )
    [table] = report.tables
    assert [row["num_workers"] for row in table.rows] == [1, 2]
    for row in table.rows:
        spreads = {key: value for key, value in row.items() if isinstance(value, Spread)}
        assert spreads.keys() == {
            *("seconds", "efficiency", "overhead_per_group_ms", "overhead_per_row_ms"),
            *("driver_ms_per_row", "tail_s", "start_s"),
        }
        assert all(spread.low > 0 for spread in spreads.values())
        assert spreads["efficiency"].high <= 1
        # 12 groups of 0.02 s were slept for, by as many workers: no less than that has passed.
        assert spreads["seconds"].low >= 0.24 / row["num_workers"]
        per_group, per_row = spreads["overhead_per_group_ms"], spreads["overhead_per_row_ms"]
        assert per_group.median == pytest.approx(3 * per_row.median)
    assert "| 2 | 12 |" in report.as_markdown()


@pytest.mark.parametrize(
    "wrong", [{"worker_counts": [0]}, {"num_groups": 0}, {"group_s": 0.0}, {"repeats": 0}]
)
def test_settings_that_measure_nothing_are_refused(wrong: dict[str, object]) -> None:
    settings = {"worker_counts": [1], "num_groups": 1, "rows_per_group": 1, "group_s": 0.1}
    with pytest.raises(ConfigError, match="must be positive"):
        measure_scheduler(**{**settings, **wrong})  # type: ignore[arg-type]
