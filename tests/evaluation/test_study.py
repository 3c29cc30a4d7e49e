from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffedit_batch.config import ModelConfig
from diffedit_batch.errors import ConfigError
from diffedit_batch.evaluation.admission import admit
from diffedit_batch.evaluation.arms import ARMS, Arm, Outcome, Studio
from diffedit_batch.evaluation.items import Item, sample_items
from diffedit_batch.evaluation.measure import MEASURES
from diffedit_batch.evaluation.study import Study

ITEMS = sample_items("validation", 2, with_empty_goals=True)
COPY, TRUTH = ARMS["copy"], Arm("truth", "true edits")


class FakeStudio(Studio):
    """Copies sources, or knows the true edits; breaks down when asked for "vae"."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def edit(self, arm: Arm, items: Sequence[Item]) -> tuple[list[Outcome], int]:
        self.asked.append(arm.name)
        if arm.name == "vae":
            raise KeyboardInterrupt
        pictures = [item.source if arm is COPY else item.counterfactual for item in items]
        return [
            Outcome(picture, item.mask, item.mask.astype(np.float32))
            for item, picture in zip(items, pictures, strict=True)
        ], 7 * len(items)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(FakeStudio(), "abc", tmp_path / "arms")


def asked(study: Study) -> list[str]:
    assert isinstance(study.studio, FakeStudio)
    return study.studio.asked


def test_true_edits_are_clean_and_copies_are_not(study: Study) -> None:
    copy, truth = study.run([(COPY, ITEMS), (TRUTH, ITEMS)])
    assert copy.column("success").sum() == copy.column("clean").sum() == 0
    assert truth.column("success").all()
    assert truth.column("clean").all()
    assert truth.column("iou").min() == truth.column("average_precision").min() == 1
    assert np.nanmax(truth.column("leakage")) == 0
    assert truth.column("background_psnr").min() > 40
    assert truth.column("id").tolist() == [item.id for item in ITEMS]
    assert truth.num_evals == 7 * len(ITEMS)


def test_undefined_is_not_zero(study: Study) -> None:
    [copy] = study.run([(COPY, ITEMS)])
    alone = [not item.bystanders for item in ITEMS]
    assert np.isnan(copy.column("leakage")).tolist() == alone
    assert 0 < sum(alone) < len(ITEMS)
    assert not np.isnan(copy.column("success")).any()


def test_an_arm_is_measured_once(study: Study) -> None:
    [first] = study.run([(COPY, ITEMS)])
    [again] = study.run([(COPY, ITEMS)])
    assert asked(study) == ["copy"]
    for name in MEASURES:
        assert np.array_equal(again.column(name), first.column(name), equal_nan=True)
    assert again.num_evals == first.num_evals
    assert len(again.shown) == len(ITEMS)
    table = pq.ParquetFile(study.folder / "copy.parquet").read()
    assert set(MEASURES) < set(table.column_names)


def test_an_interrupted_run_keeps_what_was_finished(study: Study) -> None:
    plan = [(COPY, ITEMS), (ARMS["vae"], ITEMS), (TRUTH, ITEMS)]
    with pytest.raises(KeyboardInterrupt):
        study.run(plan)
    assert [path.name for path in study.folder.iterdir()] == ["copy.parquet"]
    study.run([(COPY, ITEMS), (TRUTH, ITEMS)])
    assert asked(study) == ["copy", "vae", "truth"]


def test_results_of_something_else_are_refused_before_any_work(study: Study) -> None:
    study.run([(COPY, ITEMS)])
    other_weights = Study(study.studio, "other", study.folder)
    for one, items in ((other_weights, ITEMS), (study, ITEMS[:5])):
        with pytest.raises(ConfigError, match=r"copy\.parquet is stale(.|\n)*--output"):
            one.run([(TRUTH, items), (COPY, items)])
    assert asked(study) == ["copy"]


def test_a_file_of_someone_else_is_stale(study: Study) -> None:
    study.run([(COPY, ITEMS)])
    path = study.folder / "copy.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ConfigError, match="stale"):
        study.run([(COPY, ITEMS)])


def test_admission_of_the_judges_on_a_bad_autoencoder(tiny_model: Path) -> None:
    admission = admit(Studio(ModelConfig(id=str(tiny_model))), ITEMS)
    assert admission.is_granted
    assert (admission.source, admission.counterfactual) == (0, 1)
    assert admission.round_trip < 0.5
    assert admission.num_items == len(ITEMS)
