import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffedit_batch.benchmark.engine import measure_engine
from diffedit_batch.benchmark.report import Report
from diffedit_batch.benchmark.timing import Spread
from diffedit_batch.errors import ConfigError
from diffedit_batch.models.components import Components


def measure(**settings: object) -> Report:
    chosen = {
        "sizes": [1, 2],
        "compile_modes": ["off"],
        "num_edits": 4,
        "repeats": 2,
        "num_inference_steps": 4,
        "matmul_size": 64,
        **settings,
    }
    return measure_engine("small", "cpu", **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report() -> Report:
    return measure()


def rows(report: Report, title: str) -> list[dict[str, Any]]:
    [table] = [table for table in report.tables if table.title == title]
    return [dict(row) for row in table.rows]


def test_every_size_has_a_row_of_calls(report: Report) -> None:
    calls = rows(report, "Network calls")
    assert [(row["compile"], row["call_size"]) for row in calls] == [("off", 1), ("off", 2)]
    for row in calls:
        assert row["problem"] is None
        for key in ("ms_per_evaluation", "tflops", "mfu"):
            spread = row[key]
            assert isinstance(spread, Spread)
            assert 0 < spread.low <= spread.median <= spread.high


def test_edits_do_the_work_of_the_paper_and_no_other(report: Report) -> None:
    single, shared = rows(report, "Edits")
    assert (single["edits_per_image"], shared["edits_per_image"]) == (1, 4)
    # Of 4 steps 3 are inverted: 20 for the mask, 3 there, 6 back.
    assert single["evaluations_per_edit"] == 29
    # Four edits share the source half of their masks, and the inversion.
    assert shared["evaluations_per_edit"] == (10 + 4 * 10 + 3 + 4 * 6) / 4
    for row in (single, shared):
        assert row["problem"] is None
        assert row["mask_area"] == pytest.approx(0.25, abs=0.01)
        algorithmic, executed = row["algorithmic_mfu"], row["executed_mfu"]
        assert isinstance(algorithmic, Spread)
        assert isinstance(executed, Spread)
        assert 0 < algorithmic.median <= executed.median
    assert single["counters"]["vae_encodes"] == single["counters"]["vae_decodes"] == 4
    assert shared["counters"]["vae_encodes"] == 1


def test_kinds_of_kernels_make_up_all_of_the_time(report: Report) -> None:
    [row] = rows(report, "Time of network calls by kind of kernel")
    shares = [row[k] for k in ("convolution", "GEMM", "attention", "elementwise", "idle")]
    assert sum(shares) == pytest.approx(1)
    assert all(share > 0 for share in shares[:4])
    assert row["longest_kernels"]


def test_the_report_is_whole(report: Report, tmp_path: Path) -> None:
    page = report.write(tmp_path / "engine").read_text("utf-8")
    tree = json.loads((tmp_path / "engine" / "report.json").read_text("utf-8"))
    assert tree["settings"]["model"] == "small"
    assert tree["settings"]["resolution"] == 128
    assert {"measured_at", "commit", "hardware", "versions", "tables"} <= tree.keys()
    assert tree["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    [ceilings] = tree["tables"]["Ceilings"]
    assert ceilings["matmul_size"] == 64
    assert ceilings["matmul_tflops"]["median"] > 0
    assert ceilings["copy_gb_per_s"]["median"] > 0
    assert (tmp_path / "engine" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "## Network calls" in page
    assert "![Figure](figure.png)" in page


def test_a_size_that_does_not_fit_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Components.predict

    def fits_two(self: Components, latents: Tensor, times: Tensor, states: Tensor) -> Tensor:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return predict(self, latents, times, states)

    monkeypatch.setattr(Components, "predict", fits_two)
    report = measure(sizes=[2, 4], repeats=1)
    fits, does_not = rows(report, "Network calls")
    assert fits["problem"] is None
    assert does_not["problem"] == "does not fit in memory"
    assert "ms_per_evaluation" not in does_not
    assert all(row["call_size"] == 2 for row in rows(report, "Edits"))
    report = measure(sizes=[4], repeats=1)
    assert rows(report, "Edits") == []
    assert "does not fit in memory" in report.as_markdown()


def test_it_runs_where_ray_is_not_installed() -> None:
    code = """
import sys
sys.modules["ray"] = None  # importing it fails
import jobs.benchmark
from diffedit_batch.benchmark.engine import measure_engine
settings = {"compile_modes": ["off"], "num_edits": 4, "repeats": 1, "matmul_size": 64}
measure_engine("small", "cpu", sizes=[1], num_inference_steps=2, **settings)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "settings", [{"sizes": [0]}, {"num_edits": 3}, {"repeats": 0}, {"compile_modes": ["quick"]}]
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        measure(**settings)
