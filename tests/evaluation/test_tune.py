from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diffedit_batch.config import EditConfig
from diffedit_batch.evaluation import mask_search
from diffedit_batch.evaluation import tune as module
from diffedit_batch.evaluation.mask_search import Rule
from diffedit_batch.evaluation.tune import DEFAULT, EDITS, tune


def test_both_searches_end_in_one_page(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEVELS", ((0.5,), (0.3, 0.7)))
    monkeypatch.setattr(mask_search, "STRENGTHS", (0.3, 0.5, 0.7))
    monkeypatch.setattr(mask_search, "NUM_DRAWS", 5)
    monkeypatch.setattr(module, "RULES", (Rule("minmax", 0.5), Rule("otsu")))
    monkeypatch.setattr(module, "EDITS", {"num_inference_steps": (3,)})
    quick = EditConfig(num_inference_steps=2, num_maps_per_mask=1).resolved()
    monkeypatch.setattr(module, "DEFAULT", quick)
    page = tune(str(tiny_model), tmp_path, num_per_kind=1).read_text()
    num_shapes, num_draws, num_guides = 2 * 4, 4 + 3, 2 * 4  # one draw is too few for two levels
    num_scores = 2 * ((num_shapes + num_draws) * 2 + num_guides)
    assert f"{num_scores} combinations" in page
    assert pq.ParquetFile(tmp_path / "masks.parquet").metadata.num_rows == num_scores
    assert "| num_inference_steps 3 |" in page
    assert "5 validation edits" in page


def test_every_edit_that_is_tried_is_a_valid_one() -> None:
    for name, values in EDITS.items():
        for value in values:
            assert getattr(DEFAULT.override({name: value}), name) == value
