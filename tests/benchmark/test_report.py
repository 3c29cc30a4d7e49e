import json
from pathlib import Path

import pytest

from diffedit_batch.benchmark.curve import draw_curves
from diffedit_batch.benchmark.report import Column, Report, Table, shown
from diffedit_batch.benchmark.timing import Spread


@pytest.mark.parametrize(
    ("value", "is_share", "text"),
    [
        (None, False, "-"),
        (1234567, False, "1,234,567"),
        (0.012345, False, "0.0123"),
        (12345.6, False, "12,346"),
        (0.4567, True, "45.7 %"),
        (Spread(0.5, 0.4, 0.6), True, "50.0 % [40.0 %, 60.0 %]"),
        ("does not fit in memory", False, "does not fit in memory"),
    ],
)
def test_values_are_shown_briefly(value: object, is_share: bool, text: str) -> None:
    assert shown(value, is_share=is_share) == text


def test_json_and_markdown_hold_the_same_rows(tmp_path: Path) -> None:
    table = Table(
        "Speed",
        [Column("name", ""), Column("rate", "edits/s"), Column("share", "part", is_share=True)],
        [{"name": "a", "rate": Spread(2.0, 1.0, 3.0), "share": 0.25}, {"name": "b", "extra": [1]}],
    )
    report = Report("x", "A title", "cpu", {"model": "small"}, [table], ["a note"])
    page = report.write(tmp_path).read_text("utf-8")
    assert page.startswith("# A title\n")
    assert "| a | 2 [1, 3] | 25.0 % |" in page
    assert "| b | - | - |" in page
    assert "- a note" in page
    assert "- model: small" in page
    tree = json.loads((tmp_path / "report.json").read_text("utf-8"))
    first, second = tree["tables"]["Speed"]
    assert first["rate"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert second == {"name": "b", "extra": [1]}
    assert tree["hardware"]["device"] == "cpu"
    assert tree["hardware"]["cores"] >= 1
    assert len(tree["hardware"]["load_average"]) == 3
    assert tree["versions"]["torch"]
    assert tree["commit"]
    assert not (tmp_path / "figure.png").exists()


def test_curves_are_drawn_where_there_are_points() -> None:
    point = Spread(2.0, 1.0, 3.0)
    assert draw_curves({"off": []}, "nothing") is None
    one = draw_curves({"off": [(1, point)], "full": []}, "one point")
    two = draw_curves({"off": [(1, point), (16, point)]}, "a line")
    assert one is not None
    assert two is not None
    assert one != two
