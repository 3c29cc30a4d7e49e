import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffedit_batch.evaluation.admission import Admission
from diffedit_batch.evaluation.arms import ARMS, Arm, Outcome, arm_named
from diffedit_batch.evaluation.figure import draw_figure
from diffedit_batch.evaluation.items import sample_items
from diffedit_batch.evaluation.measure import MEASURES, describe
from diffedit_batch.evaluation.report import write_report
from diffedit_batch.evaluation.study import ArmResult

ITEMS = sample_items("validation", 8, with_empty_goals=True)
ADMISSION = Admission(0.0, 1.0, 0.97, 0.99, 40)


def result(arm: Arm, **columns: object) -> ArmResult:
    """An arm with these values of measures, one or one per item, and 0.5 elsewhere."""
    rows = pa.Table.from_pylist([describe(item) for item in ITEMS])
    for name in MEASURES:
        values = np.broadcast_to(np.asarray(columns.get(name, 0.5), float), len(ITEMS))
        rows = rows.append_column(name, pa.array(values))
    shown = {item.id: Outcome(item.source, item.mask) for item in ITEMS[:10]}
    return ArmResult(arm, rows, shown, num_evals=140 * len(ITEMS), measured="today")


WINS = np.array([0.0] * 30 + [1.0] * 10)
NAN = float("nan")
REFERENCE = result(ARMS["reference"], success=0.0, clean=0.0, iou=0.25, average_precision=NAN)
DEFAULT = result(ARMS["default"], success=WINS, clean=WINS, background_error=0.0)


def cells(page: str, section: str, title: str) -> list[str]:
    """The cells of the row of an arm in a section."""
    text = page.split(f"## {section}")[1].split("\n## ")[0]
    [line] = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_come_with_intervals_and_costs() -> None:
    page = write_report([REFERENCE, DEFAULT], ADMISSION, "Measured today.")
    assert page.startswith("# Edit quality\n\nMeasured today.")
    row = cells(page, "Arms", "default")
    assert row[1] == "25.0% [14.2, 40.2]"
    assert row[-1] == "140"
    assert cells(page, "Masks", "default")[6] == "identical"


def test_scenes_are_told_apart_by_objects_and_new_pairs() -> None:
    is_new = np.array([describe(item)["has_held_out_pair"] for item in ITEMS], float)
    assert 0 < is_new.sum() < len(ITEMS)
    page = write_report([result(ARMS["default"], success=is_new)], ADMISSION, "")
    _, _, _, known, new = cells(page, "By scene", "default")
    assert known.startswith("0.0%")
    assert new.startswith("100.0%")


def test_the_comparison_is_paired() -> None:
    page = write_report([REFERENCE, DEFAULT], ADMISSION, "")
    row = cells(page, "Against the reference", "default")
    assert row[1].startswith("25.0% [")
    assert row[3] == "0.002"  # ten of ten coins
    assert row[5].startswith("0.250 [0.250, 0.250]")
    assert "Against the reference" not in write_report([DEFAULT], ADMISSION, "")


def test_undefined_values_are_counted_not_averaged() -> None:
    half = np.where(np.arange(len(ITEMS)) % 2, 0.8, NAN)
    page = write_report([REFERENCE, result(ARMS["paper"], iou=half)], ADMISSION, "")
    assert cells(page, "Arms", ARMS["paper"].title)[4] == "0.800 [0.800, 0.800]"
    header = cells(page, "Undefined", f"of {len(ITEMS)} items")
    counts = dict(zip(header, cells(page, "Undefined", ARMS["paper"].title), strict=True))
    assert counts["iou"] == str(len(ITEMS) // 2)
    assert cells(page, "Masks", REFERENCE.arm.title)[5] == "-"


@pytest.mark.parametrize(
    "admission",
    [Admission(0.01, 1, 1, 1, 99), Admission(0, 0.99, 1, 1, 99), Admission(0, 1, 1, 0.96, 99)],
)
def test_judges_that_fail_are_called_so(admission: Admission) -> None:
    assert "NOT ADMITTED" in write_report([REFERENCE], admission, "")
    assert "NOT ADMITTED" not in write_report([REFERENCE], ADMISSION, "")


def test_the_figure_is_a_picture_with_a_panel_more_for_curves() -> None:
    curves = [result(arm_named(f"sdedit@{strength}")) for strength in (0.4, 0.8)]
    plain = Image.open(io.BytesIO(draw_figure([REFERENCE, DEFAULT], [], ITEMS, "title")))
    curved = Image.open(io.BytesIO(draw_figure([REFERENCE, DEFAULT], curves, ITEMS, "title")))
    assert plain.format == "PNG"
    assert curved.width == plain.width
    assert curved.height > plain.height
