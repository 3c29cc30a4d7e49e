from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from diffedit_batch.demo.scenes import (
    CHANGE_KINDS,
    COLORS,
    JUDGE_SEEDS,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Change,
    ChangeKind,
    SceneObject,
    SceneSpec,
    caption,
    edit,
    render,
    render_masks,
    sample_change,
    sample_scene,
    true_mask,
)

SEEDS = range(VALIDATION_SEEDS.start, VALIDATION_SEEDS.start + 40)


def test_a_seed_is_a_picture() -> None:
    first, again = sample_scene(7), sample_scene(7)
    assert first == again
    assert np.array_equal(render(first), render(again))
    assert render(first).shape == (128, 128, 3)
    assert not np.array_equal(render(first), render(sample_scene(8)))


def test_the_splits_do_not_overlap() -> None:
    ranges = [TRAIN_SEEDS, JUDGE_SEEDS, VALIDATION_SEEDS, TEST_SEEDS]
    for one, other in pairwise(ranges):
        assert one.stop <= other.start


def test_scenes_have_up_to_two_objects_that_differ_and_do_not_touch() -> None:
    counts = set()
    for seed in SEEDS:
        scene = sample_scene(seed)
        counts.add(len(scene.objects))
        assert len({item.color for item in scene.objects}) == len(scene.objects)
        assert len({item.shape for item in scene.objects}) == len(scene.objects)
        assert sorted(scene.objects, key=lambda item: item.x) == list(scene.objects)
        masks = render_masks(scene)
        assert not np.logical_and.reduce([np.zeros((128, 128), bool), *masks]).any()
        if len(masks) == 2:
            assert not (masks[0] & masks[1]).any()
    assert counts == {0, 1, 2}


def test_captions() -> None:
    orange = SceneObject("orange", "star", 40, 40, 20, 0)
    black = SceneObject("black", "square", 90, 90, 20, 0)
    scene = SceneSpec((orange, black), "brick", 1, 4.0)
    assert caption(scene) == "an orange star and a black square on brick"
    assert caption(replace(scene, objects=(black,))) == "a black square on brick"


@pytest.mark.parametrize("kind", CHANGE_KINDS)
def test_a_change_changes_what_it_says_and_its_true_mask_is_where(kind: ChangeKind) -> None:
    changed = 0
    for seed in SEEDS:
        scene = sample_scene(seed)
        if not scene.objects:
            continue
        change = sample_change(scene, kind, seed)
        after = edit(scene, change)
        assert after != scene
        mask = true_mask(scene, after)
        same = render(scene).astype(int) - render(after).astype(int)
        assert np.abs(same[~mask]).max() <= 2
        if kind != "background":
            before = render_masks(scene)[change.index]
            assert (mask & before).sum() == before.sum()
            assert mask.mean() < 0.4
        else:
            assert mask.mean() > 0.6
        changed += 1
    assert changed > 30


def test_an_empty_scene_has_nothing_to_recolour() -> None:
    with pytest.raises(ValueError, match="nothing to recolour"):
        sample_change(SceneSpec((), "sand", 0, 4.0), "recolour", 0)


def test_objects_have_their_colour_in_the_middle() -> None:
    for color, rgb in COLORS.items():
        scene = SceneSpec((SceneObject(color, "circle", 64, 64, 30, 0),), "stone", 0, 4.0)
        assert np.abs(render(scene)[64, 64].astype(int) - rgb).max() <= 2


def test_replacing_gives_both_attributes() -> None:
    scene = SceneSpec((SceneObject("red", "circle", 64, 64, 30, 0),), "stone", 0, 4.0)
    after = edit(scene, Change("replace", color="blue", shape="star"))
    assert caption(after) == "a blue star on stone"
