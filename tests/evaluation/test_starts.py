import numpy as np
import pytest

from diffedit_batch.config import EditConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.pixels import Mask
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.evaluation.starts import FIND_LEVELS, Start
from diffedit_batch.models.components import Components
from diffedit_batch.schema import EditRequest

STEPS = 10
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
FULL = {"1": np.ones((64, 64), bool)}


def edits(strength: float = 0.8, masks: dict[str, Mask] | None = None) -> ImageEdits:
    edit = EditConfig(num_inference_steps=STEPS, num_maps_per_mask=2, inpaint_strength=strength)
    request = EditRequest("1", ("a red circle",), ("a blue star",), edit=edit.resolved(), seed=3)
    return ImageEdits(PICTURE, [request], masks or {})


def run(model: Components, start: Start, one: ImageEdits) -> tuple[EditResult, DiffEditor]:
    editor = DiffEditor(model, find_levels=FIND_LEVELS[start])
    [result] = editor.edit([one])
    assert result.error is None
    return result, editor


def test_inverted_is_the_editor_as_it_is(tiny: Components) -> None:
    result, _ = run(tiny, "inverted", edits())
    [plain] = DiffEditor(tiny).edit([edits()])
    assert np.array_equal(result.image, plain.image)


def test_noised_has_the_same_mask_and_no_inversion(tiny: Components) -> None:
    inverted, _ = run(tiny, "inverted", edits())
    noised, editor = run(tiny, "noised", edits())
    assert np.array_equal(noised.mask, inverted.mask)
    assert noised.difference is not None
    assert noised.difference.shape == noised.mask.shape
    assert not np.array_equal(noised.image, inverted.image)
    assert editor.counters.unet_evals == 2 * 2 + 2 * 8
    outside = (noised.weights == 0).numpy()
    assert np.array_equal(noised.image[outside], PICTURE[outside])


def test_text_to_image_knows_nothing_of_the_picture(tiny: Components) -> None:
    one, _ = run(tiny, "noise", edits(1.0, FULL))
    noised, editor = run(tiny, "noised", edits(1.0, FULL))
    assert editor.counters.unet_evals == 2 * STEPS
    assert not np.array_equal(one.image, noised.image)


@pytest.mark.parametrize("start", ["noised", "noise"])
def test_the_same_seed_gives_the_same_picture(tiny: Components, start: Start) -> None:
    first, _ = run(tiny, start, edits(masks=FULL))
    again, _ = run(tiny, start, edits(masks=FULL))
    assert np.array_equal(first.image, again.image)
