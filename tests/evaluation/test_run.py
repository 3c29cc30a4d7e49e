"""The evaluation from start to end, on few items with the embedded model."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffedit_batch.evaluation.run import evaluate
from jobs.evaluate import main


def test_a_small_evaluation_end_to_end(tmp_path: Path) -> None:
    def run() -> str:
        report = evaluate(
            tier="smoke",
            split="validation",
            arms=["copy", "vae", "default"],
            model="demo",
            output=tmp_path,
            num_per_kind=1,
        )
        return report.read_text("utf-8")

    page = run()
    assert "5 edits of validation scenes" in page
    assert "Judges admitted" in page
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.format == "PNG"
    arms = {
        name: pq.ParquetFile(tmp_path / "arms" / f"{name}.parquet").read()
        for name in ("copy", "vae", "default")
    }
    column = {name: table.column("background_identical") for name, table in arms.items()}
    assert column["copy"].to_pylist() == [1] * 5
    assert max(column["vae"].to_pylist()) < 0.5
    # Loose floors that any working model passes: masks better than the whole picture would be, and
    # backgrounds kept.
    local = [kind != "background" for kind in arms["default"].column("kind").to_pylist()]
    assert arms["default"].column("average_precision").to_numpy()[local].mean() > 0.4
    assert np.median(column["default"].to_numpy()) > 0.5
    written = (tmp_path / "arms" / "default.parquet").stat().st_mtime_ns
    assert run() == page
    assert (tmp_path / "arms" / "default.parquet").stat().st_mtime_ns == written


def test_an_unknown_arm_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arms", "copy,nonsense", "--output", str(tmp_path)]) == 2
    assert "unknown arm 'nonsense'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "output")
    for model in (tmp_path / "nowhere", tmp_path):
        assert main(["--arms", "copy", "--model", str(model), "--output", output]) == 2
    first, second = capsys.readouterr().err.strip().split("\n")
    assert "no such folder" in first
    assert "no model_index.json" in second


def test_stale_results_are_bad_usage(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tier", "smoke", "--arms", "copy", "--output", str(tmp_path), "--model"]
    assert main([*arguments, "demo"]) == 0
    assert "Edit quality" in capsys.readouterr().out
    assert main([*arguments, str(tiny_model)]) == 2
    assert "stale" in capsys.readouterr().err


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "python jobs/evaluate.py --tier ci" in capsys.readouterr().out
