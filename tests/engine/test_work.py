"""Work done by an editor is the least there can be: counted, never timed."""

from dataclasses import replace
from typing import Any

import pytest
from small_edits import SOURCE, TARGETS, box, picture, request

from diffedit_batch.config import ModelConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import ImageEdits
from diffedit_batch.models.architectures import SD15, SD21, SD21_BASE, Architecture
from diffedit_batch.models.components import Components
from diffedit_batch.models.flops import count_flops
from diffedit_batch.schema import EditRequest


def counters_of(model: Components, requests: list[EditRequest]) -> dict[str, int]:
    editor = DiffEditor(model)
    results = editor.edit([ImageEdits(picture(), requests)])
    assert {result.status for result in results} == {"edited"}
    return editor.counters.as_dict()


DEFAULTS: dict[str, Any] = {"num_inference_steps": 50, "num_maps_per_mask": 10}


@pytest.mark.parametrize("preset", ["tuned", "paper"])
def test_one_edit_takes_140_evaluations_one_encode_one_decode(
    tiny: Components, preset: str
) -> None:
    counters = counters_of(tiny, [request(preset=preset, **DEFAULTS)])
    assert counters["unet_evals"] == 140
    assert counters["vae_encodes"] == counters["vae_decodes"] == counters["inversions"] == 1


def test_guidance_in_the_inversion_takes_180_evaluations(tiny: Components) -> None:
    one = request(inversion_guidance_scale=7.5, **DEFAULTS)
    assert counters_of(tiny, [one])["unet_evals"] == 180


def test_four_edits_of_one_image_take_410_evaluations(tiny: Components) -> None:
    requests = [request(i, target, **DEFAULTS) for i, target in enumerate(TARGETS)]
    counters = counters_of(tiny, requests)
    assert counters["unet_evals"] == 410
    assert counters["vae_encodes"] == counters["inversions"] == 1
    assert counters["vae_decodes"] == 4


def test_each_further_seed_takes_its_mask_and_its_edit(tiny: Components) -> None:
    counters = counters_of(tiny, [request(num_seeds=4, **DEFAULTS)])
    assert counters["unet_evals"] == 140 + 3 * 100
    assert counters["vae_encodes"] == counters["inversions"] == 1
    assert counters["vae_decodes"] == 4


def test_edits_of_one_image_share_what_each_seed_has_in_common(tiny: Components) -> None:
    requests = [request(i, TARGETS[i], num_seeds=2, **DEFAULTS) for i in range(2)]
    assert counters_of(tiny, requests)["unet_evals"] == 140 + 100 + 2 * 90


def test_the_reference_preset_takes_180_evaluations_instead_of_200(tiny: Components) -> None:
    counters = counters_of(tiny, [request(preset="diffusers", **DEFAULTS)])
    assert counters["unet_evals"] == 180


def test_different_negatives_take_all_four_mask_evaluations(tiny: Components) -> None:
    one = replace(request(**DEFAULTS), negative_prompt=("sand",), source_negative_prompt=("sky",))
    assert counters_of(tiny, [one])["unet_evals"] == 140 + 20


def test_guidance_1_needs_no_negative(tiny: Components) -> None:
    assert counters_of(tiny, [request(guidance_scale=1.0, **DEFAULTS)])["unet_evals"] == 100


def test_an_own_mask_needs_no_mask_evaluations(tiny: Components) -> None:
    editor = DiffEditor(tiny)
    editor.edit([ImageEdits(picture(), [request(**DEFAULTS)], {"0": box(64, 64)})])
    assert editor.counters.unet_evals == 120


@pytest.mark.parametrize(
    ("first", "second", "inversions"),
    [
        ({}, {"guidance_scale": 3.0}, 1),
        ({}, {"inpaint_strength": 0.5}, 2),
        ({}, {"num_inference_steps": 8}, 2),
        ({}, {"inversion_guidance_scale": 2.0}, 2),
        ({"invert_with": "empty"}, {"invert_with": "caption"}, 2),
    ],
)
def test_inversions_are_shared_exactly_when_they_are_the_same(
    tiny: Components, first: dict[str, Any], second: dict[str, Any], inversions: int
) -> None:
    requests = [request(0, **first), request(1, TARGETS[1], **second)]
    assert counters_of(tiny, requests)["inversions"] == inversions


def test_captions_tell_inversions_apart_unless_the_inversion_is_empty(tiny: Components) -> None:
    rows = [replace(request(i, TARGETS[i]), caption=(f"a star on {i}",)) for i in range(2)]
    assert counters_of(tiny, rows)["inversions"] == 2
    rows = [replace(row, edit=row.edit.override({"invert_with": "empty"})) for row in rows]
    assert counters_of(tiny, rows)["inversions"] == 1


def test_encodes_are_distinct_pictures_decodes_edits_and_texts_distinct_strings(
    tiny_model: Any,
) -> None:
    editor = DiffEditor(
        Components.load(ModelConfig(id=str(tiny_model)), "cpu"), batch_size=16, vae_batch_size=4
    )
    groups = [
        ImageEdits(picture(seed=i), [request(10 * i + j, TARGETS[j]) for j in range(3)])
        for i in range(6)
    ]
    results = editor.edit(groups)
    assert {result.status for result in results} == {"edited"}
    counters = editor.counters
    assert counters.vae_encodes == 6
    assert counters.vae_decodes == 18
    assert counters.text_encodes == len({SOURCE, "", *TARGETS[:3]})


SIZES = [(64, 64), (96, 64), (64, 96)]


@pytest.mark.parametrize(("edits_per_picture", "num_sizes"), [(1, 1), (1, 3), (4, 3)])
def test_a_job_of_256_rows_fills_up_few_calls(
    tiny: Components, edits_per_picture: int, num_sizes: int
) -> None:
    """Short rows, of which a larger share is beginning and end than of real ones."""
    groups = []
    for i in range(256 // edits_per_picture):
        rows = [request(4 * i + j, TARGETS[j]) for j in range(edits_per_picture)]
        groups.append(ImageEdits(picture(*SIZES[i % num_sizes], seed=i), rows))
    editor = DiffEditor(tiny, batch_size=16)
    assert len(editor.edit(groups)) == 256
    counters = editor.counters
    assert counters.padding_evals < 0.02 * counters.unet_evals
    assert counters.unet_evals / counters.unet_calls > 13.5


# 10^12 operations of one edit, as planned: model, pixels, guidance of the inversion, edits of a
# picture.
PLANNED: list[tuple[Architecture, float, int, float]] = [
    (SD21_BASE, 1.0, 1, 116.3),
    (SD21_BASE, 7.5, 1, 148.5),
    (SD21_BASE, 1.0, 4, 85.3),
    (SD21_BASE, 7.5, 4, 93.3),
    (SD21, 1.0, 1, 309.3),
    (SD21, 7.5, 1, 395.3),
    (SD15, 1.0, 1, 116.1),
    (SD15, 7.5, 1, 148.2),
]


@pytest.mark.parametrize(("model", "guidance", "num_edits", "planned"), PLANNED)
def test_operations_of_an_edit_are_as_planned(
    tiny_model: Any, model: Architecture, guidance: float, num_edits: int, planned: float
) -> None:
    """The work counted on a tiny model, done by the parts of a true one."""
    tiny = Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    rows = [
        request(i, target, inversion_guidance_scale=guidance, **DEFAULTS)
        for i, target in enumerate(TARGETS[:num_edits])
    ]
    work = counters_of(tiny, rows)
    kinds = ("unet_evals", "vae_encodes", "vae_decodes", "text_encodes")
    flops = count_flops(model).of(**{kind: work[kind] for kind in kinds}) / num_edits
    assert flops / 1e12 == pytest.approx(planned, rel=0.01)
