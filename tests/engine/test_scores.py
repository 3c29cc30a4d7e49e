"""The best of several candidates of a row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_edits import SOURCE, TARGETS, box, picture, request

from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import Candidate, EditResult, ImageEdits
from diffedit_batch.engine.reviewing import Reviewer
from diffedit_batch.engine.scores import best_of
from diffedit_batch.errors import RowError
from diffedit_batch.models.clip import Clip
from diffedit_batch.models.components import Components
from diffedit_batch.schema import candidate_seed


def candidate(
    seed: int,
    clip_text: float | None = None,
    status: str = "edited",
    is_flagged: bool | None = None,
) -> EditResult:
    error = RowError("edit", "OutOfMemory", "too large") if status == "failed" else None
    working = picture() if status == "edited" else None
    one = replace(request(), seed=seed)
    mask = np.zeros((64, 64), bool)
    return EditResult(
        one,
        picture(),
        error,
        working,
        mask,
        clip_text=clip_text,
        is_flagged=is_flagged,
        seconds=seed,
    )


@pytest.mark.parametrize(
    ("results", "kept"),
    [
        ([candidate(1, 0.3), candidate(2, 0.5), candidate(3, 0.4)], 2),
        ([candidate(1, 0.3), candidate(2, 0.30004)], 1),
        ([candidate(1, 0.3), candidate(2, 0.3002)], 2),
        ([candidate(1), candidate(2, -0.5)], 2),
        ([candidate(1, 0.9, "unchanged"), candidate(2, -0.5)], 2),
        ([candidate(1, 0.9, is_flagged=True), candidate(2, 0.1, is_flagged=False)], 2),
        ([candidate(1, 0.9, "unchanged", False), candidate(2, 0.1, is_flagged=True)], 2),
        ([candidate(1, status="failed"), candidate(2, 0.1, "unchanged")], 2),
        ([candidate(1, status="failed"), candidate(2, status="failed")], 1),
    ],
)
def test_the_best_is_edited_and_scores_highest(results: list[EditResult], kept: int) -> None:
    best = best_of(results, "clip_text")
    assert best.request.seed == kept
    assert best.candidates == tuple(Candidate(one.request.seed, one.clip_text) for one in results)
    assert best.seconds == len(results)


def test_seeds_of_candidates_follow_from_that_of_the_row() -> None:
    seeds = [candidate_seed(7, number) for number in range(64)]
    assert seeds[0] == 7
    assert seeds[1] == candidate_seed(7, 1) != candidate_seed(8, 1)
    assert len(set(seeds)) == 64
    assert all(0 <= seed < 2**53 for seed in seeds), "numbers that JavaScript does not round"


@pytest.mark.parametrize(
    "score", ["map_contrast", "background_psnr", "clip_text", "clip_direction", "clip_image"]
)
def test_the_kept_edit_is_that_of_its_seed_alone(tiny: Components, clip: Clip, score: Any) -> None:
    asked = request(num_seeds=4, keep_best=score, paste_background=False)
    [best] = DiffEditor(tiny, reviewer=Reviewer(clip)).edit([ImageEdits(picture(), [asked])])
    seeds = [candidate_seed(0, number) for number in range(4)]
    edit = asked.edit.override({"num_seeds": 1})
    alone = {
        seed: DiffEditor(tiny, reviewer=Reviewer(clip)).edit(
            [ImageEdits(picture(), [replace(asked, seed=seed, edit=edit)])]
        )[0]
        for seed in seeds
    }
    assert [one.seed for one in best.candidates] == seeds
    scores = [getattr(alone[seed], score) for seed in seeds]
    assert [one.score for one in best.candidates] == pytest.approx(scores, abs=0.01)
    assert max(scores) - min(scores) > 0.02
    assert best.request.seed == seeds[int(np.argmax(scores))]
    same = alone[best.request.seed]
    assert np.array_equal(best.mask, same.mask)
    assert np.abs(best.image.astype(int) - same.image).max() <= 1


def test_where_no_mask_is_searched_one_seed_stands_for_all(tiny: Components) -> None:
    editor = DiffEditor(tiny)
    edits = ImageEdits(
        picture(), [request(0, num_seeds=3), request(1, SOURCE, num_seeds=3)], {"0": box(64, 64)}
    )
    own, same = editor.edit([edits])
    assert (own.status, same.status) == ("edited", "unchanged")
    assert own.candidates == same.candidates == ()
    assert editor.counters.vae_decodes == 1


def test_the_reference_preset_samples_by_seed_even_under_an_own_mask(tiny: Components) -> None:
    asked = request(num_seeds=2, preset="diffusers", keep_best="background_psnr")
    edits = ImageEdits(picture(), [asked], {"0": box(64, 64)})
    [result] = DiffEditor(tiny).edit([edits])
    assert len({one.score for one in result.candidates}) == 2


def test_a_seed_that_fails_leaves_the_others(
    tiny: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = DiffEditor(tiny)
    start, bad = editor._leave, candidate_seed(0, 1)

    def leave(row: Any, edit: Any, image: Any) -> None:
        start(row, edit, image * float("nan") if row.request.seed == bad else image)

    monkeypatch.setattr(editor, "_leave", leave)
    [result] = editor.edit([ImageEdits(picture(), [request(num_seeds=3)])])
    assert result.status == "edited"
    scores = {one.seed: one.score for one in result.candidates}
    assert scores[bad] is None
    assert len([score for score in scores.values() if score is not None]) == 2


def test_rows_with_seeds_of_their_own_come_back_once_each(tiny: Components) -> None:
    rows = [request(i, TARGETS[i], num_seeds=1 + i) for i in range(3)]
    rows = [replace(row, seed=10 + i) for i, row in enumerate(rows)]
    results = DiffEditor(tiny).edit([ImageEdits(picture(), rows)])
    assert [result.request.id for result in results] == ["0", "1", "2"]
    assert [len(result.candidates) for result in results] == [0, 2, 3]
    assert [one.seed for result in results for one in result.candidates[:1]] == [11, 12]


def test_a_best_edit_known_to_clip_alone_needs_one(tiny: Components) -> None:
    asked = request(num_seeds=2, keep_best="clip_direction")
    with pytest.raises(ValueError, match="'clip_direction' needs a CLIP model"):
        DiffEditor(tiny).edit([ImageEdits(picture(), [asked])])
