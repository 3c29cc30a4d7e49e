from dataclasses import replace

import numpy as np
import pytest

from diffedit_batch.benchmark.subject import (
    MODELS,
    Subject,
    done,
    load_subject,
    make_edits,
    with_mask_area,
)
from diffedit_batch.config import EditConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.errors import ConfigError, RowError

EDIT = EditConfig(preset="paper", num_inference_steps=2).resolved()


@pytest.fixture(scope="module")
def small() -> Subject:
    return load_subject("small", "cpu")


def test_masks_cover_a_quarter_whatever_the_network_finds(small: Subject) -> None:
    editor = DiffEditor(small.components, batch_size=4)
    edits = with_mask_area(editor, make_edits(small, 2, 2, EDIT))
    assert [len(one.requests) for one in edits] == [2, 2]
    results = done(editor.edit(edits))
    assert [result.coverage for result in results] == pytest.approx([0.25] * 4, abs=0.01)
    assert len({result.request.target_prompt for result in results}) == 3
    assert len({result.original.tobytes() for result in results}) == 2


def test_edits_that_were_not_done_are_no_measurement(small: Subject) -> None:
    editor = DiffEditor(small.components, batch_size=4)
    [edits] = make_edits(small, 1, 1, EDIT)
    nothing = {"0-0": np.zeros((128, 128), bool)}
    with pytest.raises(RowError, match="0-0: no mask"):
        done(editor.edit([replace(edits, masks=nothing)]))


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"choose from sd15, .*demo"):
        load_subject("sd3", "cpu")
    assert "demo" in MODELS


def test_the_embedded_model_has_its_own_weights_and_its_own_work() -> None:
    demo = load_subject("demo", "cpu")
    assert demo.components.resolution == 128
    assert demo.components.prediction_type == "v_prediction"
    assert demo.flops.unet_eval == pytest.approx(0.67e9, rel=0.01)
