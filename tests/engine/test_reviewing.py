"""Scores of finished edits, against transformers called by hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_safety_checker
from small_edits import SOURCE, TARGETS, picture, request
from torch.nn.functional import cosine_similarity
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffedit_batch.config import ModelConfig, ScoresConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.pixels import Picture
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.engine.reviewing import Reviewer
from diffedit_batch.engine.scores import clip_cosines
from diffedit_batch.models.clip import Clip
from diffedit_batch.models.components import Components
from diffedit_batch.models.lpips import Lpips

NAMES = ("clip_text", "clip_direction", "clip_image")


def scores(result: EditResult) -> list[float | None]:
    return [getattr(result, name) for name in NAMES]


def groups(num_pictures: int = 3) -> list[ImageEdits]:
    sizes = [(64, 64), (96, 40), (64, 64)]
    return [
        ImageEdits(
            picture(*sizes[i % 3], seed=i), [request(2 * i + j, TARGETS[j]) for j in range(2)]
        )
        for i in range(num_pictures)
    ]


def by_hand(folder: Path, source: Picture, edited: Picture, target: str) -> list[float]:
    model = CLIPModel.from_pretrained(folder).eval()
    inputs = CLIPImageProcessorPil.from_pretrained(folder)([source, edited], return_tensors="pt")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer([SOURCE, target], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens, **inputs)
    (before, after), (text_before, text_after) = found.image_embeds, found.text_embeds
    pairs = [(after, text_after), (after - before, text_after - text_before), (before, after)]
    return [float(cosine_similarity(one, other, dim=0)) for one, other in pairs]


def test_scores_are_those_of_transformers(tiny: Components, clip: Clip, tiny_clip: Path) -> None:
    edits = groups()
    results = DiffEditor(tiny, reviewer=Reviewer(clip)).edit(edits)
    assert [result.status for result in results] == ["edited"] * 6
    originals = [one.picture for one in edits for _ in one.requests]
    for result, original in zip(results, originals, strict=True):
        target = result.request.target_prompt[0]
        expected = by_hand(tiny_clip, original, result.image, target)
        assert scores(result) == pytest.approx(expected, abs=1e-4)
        assert abs(expected[1]) > 0.01


def test_scores_are_the_same_in_any_batch(tiny: Components, clip: Clip) -> None:
    together = DiffEditor(tiny, reviewer=Reviewer(clip)).edit(groups())
    alone = [
        DiffEditor(tiny, reviewer=Reviewer(clip)).edit([ImageEdits(one.picture, [row])])[0]
        for one in groups()
        for row in one.requests
    ]
    for result, other in zip(together, alone, strict=True):
        # The pictures themselves may differ by 1 of 255.
        assert scores(result) == pytest.approx(scores(other), abs=0.01)


def test_each_picture_is_looked_at_once(tiny: Components, clip: Clip) -> None:
    """However many rows edit it, and more of them than are looked at in one call."""
    edits = [
        ImageEdits(picture(seed=i), [request(100 * i + j, TARGETS[j % 4]) for j in range(12)])
        for i in range(2)
    ]
    editor = DiffEditor(tiny, reviewer=Reviewer(clip))
    results = editor.edit(edits)
    assert editor.counters.clip_encodes == 2 + 24
    for i in range(2):
        of_one = results[12 * i : 12 * i + 12]
        for j, result in enumerate(of_one):
            assert scores(result) == pytest.approx(scores(of_one[j % 4]), abs=0.01)


def test_an_unchanged_picture_has_no_direction(tiny: Components, clip: Clip) -> None:
    edits = ImageEdits(picture(), [request(0, SOURCE), request(1)])
    same, other = DiffEditor(tiny, reviewer=Reviewer(clip)).edit([edits])
    assert (same.status, other.status) == ("unchanged", "edited")
    assert same.clip_direction == 0
    assert same.clip_image == pytest.approx(1, abs=1e-6)
    assert same.clip_text == pytest.approx(
        float(clip.encode(clip.prepare(picture())[None])[0] @ clip.text((SOURCE,))), abs=1e-6
    )


def test_an_edit_that_comes_to_the_source_again_has_none_either(clip: Clip) -> None:
    torch.manual_seed(0)
    vector, other = torch.nn.functional.normalize(torch.randn(2, 8))
    noisy = torch.nn.functional.normalize(vector + 1e-7 * torch.randn(8), dim=0)
    found = clip_cosines(vector[None], noisy[None], vector[None], other[None])
    assert abs(found[0, 1]) < 0.01


def test_without_clip_there_are_no_such_scores(tiny: Components) -> None:
    [result] = DiffEditor(tiny).edit([ImageEdits(picture(), [request()])])
    assert scores(result) == [None] * 3


def test_failed_rows_are_not_looked_at(tiny: Components, clip: Clip) -> None:
    editor = DiffEditor(tiny, reviewer=Reviewer(clip))
    steps = request().edit.model_copy(update={"num_inference_steps": 1001})
    [failed] = editor.edit([ImageEdits(picture(), [replace(request(), edit=steps)])])
    assert failed.status == "failed"
    assert scores(failed) == [None] * 3
    assert editor.counters.clip_encodes == 0


def test_out_of_memory_halves_the_batch_and_fails_what_does_not_fit_alone(
    tiny: Components, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = clip.encode

    def limited(pixels: torch.Tensor, most: int = 3) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    expected = DiffEditor(tiny, reviewer=Reviewer(clip)).edit(groups())
    monkeypatch.setattr(clip, "encode", limited)
    editor = DiffEditor(tiny, reviewer=Reviewer(clip))
    found = editor.edit(groups())
    assert editor.counters.batch_halvings > 0
    assert max(size for size in sizes if size <= 3) > 1
    for result, other in zip(found, expected, strict=True):
        assert scores(result) == pytest.approx(scores(other), abs=1e-4)
    monkeypatch.setattr(clip, "encode", lambda pixels: limited(pixels, most=0))
    [failed] = DiffEditor(tiny, reviewer=Reviewer(clip)).edit([ImageEdits(picture(), [request()])])
    assert failed.error is not None
    assert (failed.status, failed.error.kind) == ("failed", "OutOfMemory")


def test_scores_fill_no_memory_with_pictures_looked_at(tiny: Components, clip: Clip) -> None:
    reviewer = Reviewer(clip)
    DiffEditor(tiny, reviewer=reviewer).edit(groups())
    assert not reviewer._rows
    assert not reviewer._looking


def test_what_was_restored_is_not_restored_again() -> None:
    result = EditResult(request(), picture(), working_mask=np.ones((64, 64), bool))
    image, mask = result.image, result.mask
    copy = result.with_found(clip_text=0.5)
    assert copy.clip_text == 0.5
    assert copy.image is image
    assert copy.mask is mask


def test_flagged_are_those_the_checker_flags_unchanged_ones_too(
    tiny: Components, clip: Clip, lpips: Lpips, tiny_model: Path, tmp_path: Path
) -> None:
    edits = [*groups(), ImageEdits(picture(seed=9), [request(9, SOURCE)])]
    plain = DiffEditor(tiny).edit(edits)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    save_tiny_safety_checker(folder, [plain[1].image, plain[4].image, plain[6].image])
    reviewer = Reviewer.load(
        ScoresConfig(), ModelConfig(id=str(folder)), device="cpu", num_threads=1
    )
    editor = DiffEditor(tiny, reviewer=reviewer)
    results = editor.edit(edits)
    assert results[6].status == "unchanged"
    flagged = [number for number, result in enumerate(results) if result.is_flagged]
    assert flagged == [1, 4, 6]
    assert editor.counters.safety_checks == 7
    assert {result.is_flagged for result in plain} == {None}
    everything = Reviewer(clip, reviewer._checker, lpips)
    again = DiffEditor(tiny, reviewer=everything).edit(edits)
    assert [number for number, result in enumerate(again) if result.is_flagged] == [1, 4, 6]
    assert all(result.clip_text is not None for result in again)
    assert [number for number, result in enumerate(again) if not result.lpips] == [6]


def test_distances_are_those_of_lpips_and_0_where_nothing_was_changed(
    tiny: Components, lpips: Lpips
) -> None:
    edits = [*groups(), ImageEdits(picture(seed=9), [request(8, SOURCE), request(9)])]
    editor = DiffEditor(tiny, reviewer=Reviewer(lpips=lpips))
    results = editor.edit(edits)
    assert [result.status for result in results] == [*["edited"] * 6, "unchanged", "edited"]
    for result in results:
        pair = lpips.prepare(result.original, result.image)
        expected = float(lpips.distances(pair[None]))
        assert result.lpips == result.measured()["lpips"] == pytest.approx(expected, rel=1e-5)
        assert (result.lpips == 0) == (result.status == "unchanged")
        assert scores(result) == [None] * 3
    assert editor.counters.lpips_distances == 7
    assert {result.lpips for result in DiffEditor(tiny).edit(edits)} == {None}


def test_where_nothing_was_changed_lpips_is_not_asked(tiny: Components, lpips: Lpips) -> None:
    editor = DiffEditor(tiny, reviewer=Reviewer(lpips=lpips))
    [result] = editor.edit([ImageEdits(picture(), [request(0, SOURCE)])])
    assert (result.status, result.lpips) == ("unchanged", 0)
    assert editor.counters.lpips_distances == 0


def test_out_of_memory_of_lpips_halves_the_batch_too(
    tiny: Components, clip: Clip, lpips: Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = lpips.distances

    def limited(pairs: torch.Tensor) -> torch.Tensor:
        if len(pairs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return distances(pairs)

    expected = DiffEditor(tiny, reviewer=Reviewer(clip, lpips=lpips)).edit(groups())
    monkeypatch.setattr(lpips, "distances", limited)
    editor = DiffEditor(tiny, reviewer=Reviewer(clip, lpips=lpips))
    for result, other in zip(editor.edit(groups()), expected, strict=True):
        assert result.lpips == pytest.approx(other.lpips, rel=1e-4)
        assert scores(result) == pytest.approx(scores(other), abs=1e-4)
    assert editor.counters.batch_halvings > 0
    assert editor.counters.lpips_distances == 6
