import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs_and_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "examples" / "edit.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in cells:
        capsys.readouterr()
        exec("".join(cell["source"]), names)
        shown = "".join(
            line
            for output in cell["outputs"]
            for line in output.get("text", [])
            if "text" in output
        )
        assert capsys.readouterr().out == shown
    assert [result.status for result in names["results"]] == ["edited"] * 3
    assert cells[-1]["outputs"][0]["data"]["image/png"]
