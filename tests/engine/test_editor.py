from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from acts import drive
from small_edits import SOURCE, TARGETS, box, picture, request
from torch import Tensor

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.core.acts import Recipe, Texts
from diffedit_batch.core.diffedit import edit_masked, invert
from diffedit_batch.core.mask import grow
from diffedit_batch.demo import scenes
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.pixels import Mask, Picture, to_picture, to_tensor
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.models.components import Components
from diffedit_batch.schema import EditRequest


def edit_one(model: Components, one: EditRequest, image: Picture, **masks: Mask) -> EditResult:
    [result] = DiffEditor(model).edit([ImageEdits(image, [one], masks)])
    return result


SIZES = [(64, 64), (101, 67), (33, 200), (500, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_an_empty_mask_returns_the_input_pixels(tiny: Components, size: tuple[int, int]) -> None:
    image = picture(*size)
    masks = {"0": np.zeros(size[::-1], bool)}
    [result] = DiffEditor(tiny).edit([ImageEdits(image, [request()], masks)])
    assert result.status == "unchanged"
    assert np.array_equal(result.image, image)
    assert not result.mask.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("feather", [0, 8])
def test_outside_the_feathered_mask_pixels_are_identical(
    tiny: Components, size: tuple[int, int], feather: int
) -> None:
    image = picture(*size)
    edits = ImageEdits(image, [request(feather=feather)], {"0": box(*size)})
    [result] = DiffEditor(tiny).edit([edits])
    assert result.status == "edited"
    assert result.image.shape == image.shape
    assert result.mask.shape == image.shape[:2]
    outside = (result.weights == 0).numpy()
    assert 0.3 < outside.mean() < 1
    assert np.array_equal(result.image[outside], image[outside])
    assert not np.array_equal(result.image[result.mask], image[result.mask])


@pytest.mark.parametrize("is_own", [True, False])
def test_masks_found_and_own_grow_and_shrink_at_working_size(
    tiny: Components, is_own: bool
) -> None:
    image, masks = picture(), {"0": box(64, 64)} if is_own else {}
    plain = edit_one(tiny, request(), image, **masks)
    large = edit_one(tiny, request(mask_grow=3), image, **masks)
    small = edit_one(tiny, request(mask_grow=-1), image, **masks)
    assert np.array_equal(large.mask, grow(torch.from_numpy(plain.mask), 3).numpy())
    assert np.array_equal(small.mask, grow(torch.from_numpy(plain.mask), -1).numpy())
    assert small.coverage < plain.coverage < large.coverage
    assert not np.array_equal(
        large.image[large.mask & ~plain.mask], image[large.mask & ~plain.mask]
    )


def test_a_mask_that_shrinks_to_nothing_changes_nothing(tiny: Components) -> None:
    image = picture()
    result = edit_one(tiny, request(mask_grow=-40), image, **{"0": box(64, 64)})
    assert result.status == "unchanged"
    assert np.array_equal(result.image, image)


def test_without_paste_the_background_is_what_the_vae_makes_of_it(tiny: Components) -> None:
    image = picture()
    edits = ImageEdits(image, [request(paste_background=False)], {"0": box(64, 64)})
    [result] = DiffEditor(tiny).edit([edits])
    assert not np.array_equal(result.image[48:, 48:], image[48:, 48:])


def test_a_thin_mask_does_not_get_lost(tiny: Components) -> None:
    mask = np.zeros((1024, 1024), bool)
    mask[100:102, 50:900] = True
    result = edit_one(tiny, request(), picture(1024, 1024), **{"0": mask})
    assert result.status == "edited"
    assert result.mask[mask].all()


def test_equal_prompts_change_nothing_under_an_own_mask_either(tiny: Components) -> None:
    image = picture()
    result = edit_one(tiny, request(target=SOURCE), image, **{"0": box(64, 64)})
    assert result.status == "unchanged"
    assert np.array_equal(result.image, image)


@pytest.mark.parametrize("preset", ["tuned", "paper", "diffusers"])
def test_equal_prompts_change_nothing(tiny: Components, preset: str) -> None:
    image = picture(70, 50)
    result = edit_one(tiny, request(target=SOURCE, preset=preset), image)
    assert result.status == "unchanged"
    assert np.array_equal(result.image, image)
    assert result.coverage == 0
    assert result.map_mean is result.map_max is result.map_contrast is None
    assert result.map is None


@pytest.mark.parametrize("preset", ["paper", "diffusers"])
def test_map_statistics_describe_the_map_on_its_grid(tiny: Components, preset: str) -> None:
    result = edit_one(tiny, request(preset=preset), picture())
    assert result.difference is not None
    assert result.difference.shape == ((64, 64) if preset == "paper" else (8, 8))
    assert result.map_mean is not None
    assert result.map_max is not None
    assert result.map_contrast is not None
    assert 0 < result.map_mean < result.map_max
    assert 1 < result.map_contrast < 100


@pytest.mark.parametrize(
    ("preset", "threshold"), [("tuned", 0.45), ("paper", 0.5), ("diffusers", 0.5)]
)
def test_the_soft_map_is_on_the_scale_of_the_threshold(
    tiny: Components, preset: str, threshold: float
) -> None:
    result = edit_one(tiny, request(preset=preset), picture())
    assert result.map is not None
    assert result.map.dtype == np.uint8
    is_clear = np.abs(result.map - 255 * threshold) > 1
    assert is_clear.mean() > 0.9
    assert np.array_equal((result.map > 255 * threshold)[is_clear], result.mask[is_clear])
    again = edit_one(tiny, request(preset=preset), picture()).map
    assert again is not None
    assert np.array_equal(result.map, again)


def test_a_mask_that_shrank_to_nothing_leaves_its_map(tiny: Components) -> None:
    found, shrunk = (edit_one(tiny, request(mask_grow=by), picture()) for by in (0, -256))
    assert (found.status, shrunk.status) == ("edited", "unchanged")
    assert found.map is not None
    assert shrunk.map is not None
    assert np.array_equal(found.map, shrunk.map)


@pytest.mark.parametrize("size", SIZES)
def test_the_soft_map_has_the_size_of_the_picture(tiny: Components, size: tuple[int, int]) -> None:
    soft = edit_one(tiny, request(), picture(*size)).map
    assert soft is not None
    assert soft.shape == size[::-1]
    assert soft.max() > 200


def test_there_is_no_soft_map_of_an_own_mask_and_a_flat_one_is_black(tiny: Components) -> None:
    own = edit_one(tiny, request(), picture(), **{"0": box(64, 64)})
    assert (own.status, own.map) == ("edited", None)
    noise = np.random.default_rng(0).random((64, 64), np.float32) * 1e-5
    nothing = np.zeros((64, 64), bool)
    flat = EditResult(request(), picture(), working_mask=nothing, difference=noise)
    assert flat.status == "unchanged"
    assert flat.map is not None
    assert not flat.map.any()


def all_rows(model: Components, batch_size: int, order: int = 1) -> dict[str, EditResult]:
    """Six edits of three pictures of two sizes, in one order or the other."""
    groups = [
        ImageEdits(picture(64, 64, seed=1), [request(0), request(1, TARGETS[1])]),
        ImageEdits(picture(96, 40, seed=2), [request(2), request(3, num_inference_steps=7)]),
        ImageEdits(picture(64, 64, seed=3), [request(4, TARGETS[3]), request(5)]),
    ]
    groups = [replace(group, requests=group.requests[::order]) for group in groups[::order]]
    results = DiffEditor(model, batch_size=batch_size).edit(groups)
    return {result.request.id: result for result in results}


@pytest.mark.parametrize(("batch_size", "order"), [(1, 1), (3, 1), (16, -1), (64, 1)])
def test_a_row_is_the_same_in_any_batch_and_order(
    tiny: Components, batch_size: int, order: int
) -> None:
    """Kernels of other sizes round other last bits: a pixel may move by 1 of 255, and none of the
    masks'."""
    expected, found = all_rows(tiny, 16), all_rows(tiny, batch_size, order)
    assert {result.status for result in expected.values()} == {"edited"}
    for number, result in expected.items():
        other = found[number]
        assert np.array_equal(other.mask, result.mask)
        assert np.abs(other.image.astype(int) - result.image.astype(int)).max() <= 1
        assert other.map_max == pytest.approx(result.map_max, rel=1e-4)


def test_a_row_is_the_same_alone(tiny: Components) -> None:
    together = all_rows(tiny, 16)
    for number, seed, size in [("1", 1, (64, 64)), ("4", 3, (64, 64)), ("2", 2, (96, 40))]:
        alone = edit_one(tiny, together[number].request, picture(*size, seed=seed))
        assert np.array_equal(alone.mask, together[number].mask)
        difference = alone.image.astype(int) - together[number].image.astype(int)
        assert np.abs(difference).max() <= 1


def test_rows_of_one_image_share_their_noise_and_other_seeds_do_not(tiny: Components) -> None:
    one = edit_one(tiny, request(), picture())
    same = edit_one(tiny, replace(request(), id="another"), picture())
    other = edit_one(tiny, replace(request(), seed=1), picture())
    assert one.map_max == same.map_max
    assert one.map_max != other.map_max


def test_averaged_prompts_edit(tiny: Components) -> None:
    many = replace(request(), target_prompt=("a blue circle", "a blue star"))
    one = edit_one(tiny, request(), picture())
    both = edit_one(tiny, many, picture())
    assert both.status == "edited"
    assert both.map_max != one.map_max


def test_too_many_steps_fail_their_row_alone(tiny: Components) -> None:
    steps = EditConfig(num_inference_steps=1000).resolved()
    bad = replace(request(0), edit=steps.model_copy(update={"num_inference_steps": 1001}))
    results = DiffEditor(tiny).edit([ImageEdits(picture(), [bad, request(1)])])
    assert [result.status for result in results] == ["failed", "edited"]
    error = results[0].error
    assert error is not None
    assert (error.stage, error.kind) == ("edit", "InvalidParameter")
    assert "1001" in str(error)


def test_cut_prompts_are_counted_not_silent(tiny: Components) -> None:
    long = replace(request(), target_prompt=("a blue circle " * 30,))
    assert edit_one(tiny, long, picture()).num_truncated_prompts == 1
    assert edit_one(tiny, request(), picture()).num_truncated_prompts == 0


def test_v_prediction_edits(tiny_v: Components) -> None:
    result = edit_one(tiny_v, request(), picture())
    assert result.status == "edited"


def test_a_non_finite_result_is_redone_in_full_precision(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(id=str(tiny_model), dtype="bfloat16")
    model = Components.load(config, "cpu")
    monkeypatch.setattr(model, "predict", lambda x, t, s: torch.full_like(x, float("nan")))
    editor = DiffEditor(model)
    [result] = editor.edit([ImageEdits(picture(), [request()])])
    assert result.status == "edited"
    assert editor.counters.full_precision_retries == 1
    assert editor.num_active == 0


def test_what_is_not_finite_in_full_precision_either_fails(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    monkeypatch.setattr(model, "predict", lambda x, t, s: torch.full_like(x, float("nan")))
    result = edit_one(model, request(), picture())
    assert result.error is not None
    assert result.error.kind == "NonFiniteResult"


def test_a_non_finite_picture_is_noticed_too(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    monkeypatch.setattr(model, "decode", lambda x: torch.full((1, 3, 64, 64), float("inf")))
    result = edit_one(model, request(), picture())
    assert result.error is not None
    assert result.error.kind == "NonFiniteResult"


def test_a_picture_too_large_for_the_vae_fails_its_rows(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Components.load(ModelConfig(id=str(tiny_model)), "cpu")

    def encode(image: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model, "encode", encode)
    result = edit_one(model, request(), picture())
    assert result.error is not None
    assert (result.error.stage, result.error.kind) == ("edit", "OutOfMemory")


def test_an_editor_goes_on_after_an_exception(tiny_model: Any) -> None:
    model = Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    editor = DiffEditor(model)
    predict = model.predict

    def interrupted(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        raise KeyboardInterrupt

    editor._batcher._noise_model = interrupted
    with pytest.raises(KeyboardInterrupt):
        editor.edit([ImageEdits(picture(), [request(1)])])
    assert model.predict == predict
    [result] = editor.edit([ImageEdits(picture(), [request(2)])])
    assert (result.request.id, result.status) == ("2", "edited")


def test_parameters_left_to_the_preset_are_filled_in() -> None:
    one = EditRequest("1", ("a",), ("b",), edit=EditConfig(guidance_scale=5.0))
    assert one.edit == EditConfig(guidance_scale=5.0).resolved()


def test_no_room_for_full_precision_fails_the_row(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Components.load(ModelConfig(id=str(tiny_model), dtype="bfloat16"), "cpu")
    monkeypatch.setattr(model, "predict", lambda x, t, s: torch.full_like(x, float("nan")))

    def no_room() -> Components:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(model, "in_full_precision", no_room)
    result = edit_one(model, request(), picture())
    assert result.error is not None
    assert result.error.kind == "NonFiniteResult"


def test_two_requests_of_one_id_are_refused(tiny: Components) -> None:
    with pytest.raises(ValueError, match="two requests have the id '0'"):
        DiffEditor(tiny).edit([ImageEdits(picture(), [request(0), request(0)])])


def test_a_size_multiple_must_suit_the_vae(tiny: Components) -> None:
    with pytest.raises(ValueError, match="no multiple of the VAE factor 8"):
        DiffEditor(tiny, size_multiple=12)


@pytest.fixture(scope="module")
def demo() -> Components:
    return Components.load(ModelConfig(id="demo"), "cpu")


def psnr(one: Picture, other: Picture) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_inverting_and_decoding_the_same_text_returns_the_picture(demo: Components) -> None:
    """Guidance 1, everywhere, 50 steps: on average 44 dB from the VAE's own round trip, or
    better."""
    found = []
    recipe, schedule = Recipe(guidance_scale=1.0), demo.schedule(50)
    for seed in range(4):
        scene = scenes.sample_scene(scenes.VALIDATION_SEEDS.start + seed)
        [latents], _ = demo.encode(to_tensor(scenes.render(scene), (128, 128))[None])
        text, empty = demo.text((scenes.caption(scene),)), demo.text(("",))
        texts = Texts(text, text, text, empty, empty, empty, empty)
        kind = demo.prediction_type
        levels = drive(invert(latents, texts, recipe, schedule, kind), demo.predict)
        everywhere = torch.ones(16, 16, dtype=torch.bool)
        back = drive(edit_masked(levels, everywhere, texts, recipe, schedule, kind), demo.predict)
        trip, result = (to_picture(demo.decode(one[None])[0]) for one in (latents, back))
        found.append(psnr(result, trip))
    assert np.mean(found) > 44


def test_the_embedded_model_removes_an_object_and_nothing_else(demo: Components) -> None:
    scene = scenes.SceneSpec(
        (scenes.SceneObject("red", "circle", 64, 64, 30, 0),), "grass", 1, np.radians(225)
    )
    after = scenes.edit(scene, scenes.Change("remove"))
    one = EditRequest("0", (scenes.caption(scene),), (scenes.caption(after),))
    [result] = DiffEditor(demo).edit([ImageEdits(scenes.render(scene), [one])])
    true = scenes.true_mask(scene, after)
    overlap = (result.mask & true).sum() / (result.mask | true).sum()
    assert overlap > 0.7
    inside = np.median(result.image[result.mask & true].astype(int), axis=0)
    assert np.abs(inside - scenes.GROUNDS["grass"]).max() < 30
    untouched = (result.weights == 0).numpy()
    assert np.array_equal(result.image[untouched], scenes.render(scene)[untouched])
    assert result.map_contrast is not None
    assert result.map_contrast > 2
