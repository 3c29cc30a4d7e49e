from pathlib import Path

from diffedit_batch.benchmark.planning import measure_planning


def test_planning_finds_what_is_left(tmp_path: Path) -> None:
    cost = measure_planning(tmp_path, num_rows=120, num_done=90, num_images=7)
    assert (cost.num_rows, cost.num_done, cost.num_images, cost.num_to_do) == (120, 90, 7, 30)
    assert cost.seconds.keys() == cost.cpu_seconds.keys() == {"check", "ledger", "select"}
    assert cost.peak_rss_mb >= cost.start_rss_mb > 0
    assert "120 rows, 90 done, 7 image files; 30 to do" in cost.as_markdown()
    assert "| total |" in cost.as_markdown()
