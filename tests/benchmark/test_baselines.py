import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffedit_batch.benchmark import baselines
from diffedit_batch.benchmark.baselines import default_baselines, measure_baselines
from diffedit_batch.benchmark.guide import Guide
from diffedit_batch.benchmark.parity import compare
from diffedit_batch.benchmark.report import Report
from diffedit_batch.benchmark.subject import Subject, load_subject
from diffedit_batch.benchmark.timing import Spread
from diffedit_batch.config import EditConfig
from diffedit_batch.errors import ConfigError
from diffedit_batch.models.components import Components

STEPS = 5
EDIT = EditConfig(
    preset="diffusers", num_inference_steps=STEPS, mask_thresholding_ratio=2.0
).resolved()


def measure(**settings: object) -> Report:
    chosen = {
        "baselines": default_baselines("cpu"),
        "compile_modes": ["off"],
        "batch_size": 2,
        "num_edits": 2,
        "repeats": 2,
        "num_inference_steps": STEPS,
        **settings,
    }
    return measure_baselines("small", "cpu", **chosen)  # type: ignore[arg-type]


def test_every_speed_has_its_parity() -> None:
    [table] = measure().tables
    rows = {row["name"]: row for row in table.rows}
    assert list(rows) == ["resident", "batched", "ours", "ours-paper"]
    for row in rows.values():
        assert row["problem"] is None if "problem" in row else True
        assert isinstance(row["edits_per_s"], Spread)
        assert row["edits_per_s"].low > 0
        assert row["speed"] > 0
    # 4 of 5 steps are inverted. The reference: 40 for the mask, 8 there, 8 back.
    assert [row["evaluations_per_edit"] for row in rows.values()] == [56, 56, 36, 32]
    assert rows["batched"]["pictures_at_once"] == 2
    for name in ("resident", "ours"):
        assert 0.1 < rows[name]["mask_cells"] < 0.9
        assert rows[name]["differing_cells"] == 0
        assert rows[name]["latents_error"] < 1e-4
    # Its masks depend on what is beside them; under the same masks it edits the same.
    assert rows["batched"]["differing_cells"] > 0
    assert rows["batched"]["latents_error"] < 1e-4
    assert "latents_error" not in rows["ours-paper"]


@pytest.fixture(scope="module")
def small() -> Subject:
    return load_subject("small", "cpu", is_vae_half=True)


class WrongGuide(Guide):
    """Its masks are turned over, and its latents one part in a hundred too large."""

    def find_masks(self, *args: Tensor, **kwargs: object) -> NDArray[np.bool_]:  # type: ignore[override]
        return ~super().find_masks(*args, **kwargs)  # type: ignore[arg-type]

    def edit_latents(self, *args: Tensor, **kwargs: object) -> Tensor:  # type: ignore[override]
        return 1.01 * super().edit_latents(*args, **kwargs)  # type: ignore[arg-type]


def test_what_is_wrong_shows_in_the_parity(small: Subject) -> None:
    parity = compare(small, WrongGuide(small.pipeline), EDIT, 1, 4)
    assert parity.differing_cells == 1
    assert parity.latents_error == pytest.approx(0.01, rel=0.01)


def test_a_baseline_that_does_not_fit_is_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def does_not_fit(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr(Guide, "edit", does_not_fit)
    [table] = measure(baselines=["batched", "ours-paper"], repeats=1).tables
    batched, ours = table.rows
    assert batched["problem"] == "does not fit in memory"
    assert "edits_per_s" not in batched
    assert ours["speed"] == 1

    monkeypatch.setattr(Components, "predict", does_not_fit)
    [table] = measure(baselines=["ours"], repeats=1).tables
    assert table.rows[0]["problem"] == "does not fit in memory"


def test_baselines_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        measure(baselines=["guide", "faster", "ours"])
    first, second = caught.value.problems
    assert first.startswith("'faster' is none of guide, resident, batched, ours")
    assert second.startswith("'guide' moves the model between CPU and GPU")
    assert "guide" in default_baselines("cuda")
    assert set(default_baselines("cuda")) == set(baselines.BASELINES)
