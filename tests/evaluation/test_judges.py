"""The admission of the judges: they must know true edits from sources and from half an edit."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from diffedit_batch.demo.scenes import (
    CHANGE_KINDS,
    COLORS,
    GROUNDS,
    JUDGE_SEEDS,
    SHAPES,
    Change,
    SceneObject,
    SceneSpec,
    edit,
    render,
    render_masks,
)
from diffedit_batch.evaluation.items import Item, sample_items
from diffedit_batch.evaluation.judges import Verdict, judge, judge_anywhere
from diffedit_batch.evaluation.reading import (
    is_bare,
    palette_of,
    read_colour,
    read_ground,
    read_shape,
    to_lab,
)

ITEMS = sample_items("validation", 10, with_empty_goals=True)
RED = SceneObject("red", "square", 40, 44, 22, 0.3)
BLUE = SceneObject("blue", "circle", 92, 88, 22, 0.0)
PAIR = SceneSpec((RED, BLUE), "stone", 5, 4.0)


def item(change: Change) -> Item:
    return Item(0, change.kind, PAIR, change)


Verdicts = list[tuple[Item, Verdict, Verdict]]


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    """What is said of sources and of true edits."""
    return [(one, judge(one, one.source), judge(one, one.counterfactual)) for one in ITEMS]


@pytest.mark.parametrize("kind", CHANGE_KINDS)
def test_untouched_sources_fail_and_true_edits_succeed(kind: str, verdicts: Verdicts) -> None:
    for item, of_source, of_edit in verdicts:
        if item.kind == kind:
            assert not of_source.is_success, item.id
            assert of_edit.by_rules, item.id
            assert of_edit.by_network, item.id
            assert of_edit.is_bystander_intact in ((True,) if item.bystanders else (None,))


def test_the_judges_agree_on_sources_and_true_edits(verdicts: Verdicts) -> None:
    both = [one for _, *pair in verdicts for one in pair]
    assert sum(one.by_rules == one.by_network for one in both) >= 0.97 * len(both)


def test_a_scene_is_recognised_wherever_its_objects_are() -> None:
    moved = replace(PAIR, objects=(replace(RED, x=90.0, y=40.0), replace(BLUE, x=36.0, y=90.0)))
    assert judge_anywhere(PAIR, render(moved)).is_success
    for other in (
        replace(PAIR, ground="brick"),
        replace(PAIR, objects=(RED,)),
        edit(PAIR, Change("recolour", 0, color="green")),
        edit(PAIR, Change("reshape", 1, shape="star")),
    ):
        assert not judge_anywhere(PAIR, render(other)).is_success


def test_what_is_not_named_should_not_be_there() -> None:
    alone, empty = replace(PAIR, objects=(RED,)), replace(PAIR, objects=())
    assert judge_anywhere(alone, render(alone)).is_success
    assert judge_anywhere(empty, render(empty)).is_success
    assert not judge_anywhere(alone, render(PAIR)).is_success
    assert not judge_anywhere(empty, render(alone)).is_success


def test_slightly_blurred_true_edits_succeed() -> None:
    blurred = [
        np.asarray(ndimage.gaussian_filter(one.counterfactual, (0.8, 0.8, 0))) for one in ITEMS
    ]
    said = [judge(one, shown) for one, shown in zip(ITEMS, blurred, strict=True)]
    assert sum(verdict.is_success for verdict in said) >= 0.95 * len(ITEMS)


def test_every_colour_shape_and_ground_is_read_as_what_it_is() -> None:
    rng = np.random.default_rng(JUDGE_SEEDS.start)
    names = [(color, shape) for color in COLORS for shape in SHAPES]
    for number, (color, shape) in enumerate(names):
        ground = list(GROUNDS)[number % len(GROUNDS)]
        x, y = rng.uniform(45, 83, 2)
        one = SceneObject(color, shape, x, y, rng.uniform(18, 34), rng.uniform(0, 6))
        scene = SceneSpec((one,), ground, number, 4.0)
        lab, [support] = to_lab(render(scene)), render_masks(scene)
        assert read_colour(lab, support) == color
        assert read_shape(lab, one, palette_of(scene), []) == shape, (color, ground)
        assert read_ground(lab, ~support) == ground
        assert not is_bare(lab, support, palette_of(scene))


def test_the_wrong_colour_is_not_enough() -> None:
    asked = item(Change("recolour", 0, color="green"))
    orange = edit(PAIR, Change("recolour", 0, color="orange"))
    assert not judge(asked, render(orange)).is_success
    assert judge(asked, render(orange)).is_bystander_intact


def test_replacing_needs_both_attributes() -> None:
    asked = item(Change("replace", 0, color="green", shape="star"))
    for change in (Change("recolour", 0, color="green"), Change("reshape", 0, shape="star")):
        assert not judge(asked, render(edit(PAIR, change))).is_success


def test_a_changed_bystander_is_noticed() -> None:
    asked = item(Change("recolour", 0, color="green"))
    both = edit(asked.goal, Change("recolour", 1, color="yellow"))
    verdict = judge(asked, render(both))
    assert verdict.is_success
    assert verdict.is_bystander_intact is False


def test_removing_both_objects_is_no_removal_of_one() -> None:
    asked = item(Change("remove", 0))
    verdict = judge(asked, render(replace(PAIR, objects=())))
    assert not verdict.is_success
    assert verdict.is_bystander_intact is False


def test_another_object_in_its_place_is_no_removal() -> None:
    asked = item(Change("remove", 0))
    assert not judge(asked, render(edit(PAIR, Change("recolour", 0, color="white")))).is_success


def test_half_a_ground_or_flat_paint_is_no_ground() -> None:
    asked = item(Change("background", ground="grass"))
    half = asked.counterfactual.copy()
    half[:, :64] = asked.source[:, :64]
    painted = asked.counterfactual.copy()
    covered = np.logical_or.reduce(render_masks(PAIR))
    painted[~covered] = GROUNDS["grass"]
    assert judge(asked, asked.counterfactual).is_success
    assert not judge(asked, half).is_success
    assert not judge(asked, painted).is_success


def test_a_new_ground_over_an_object_is_no_success() -> None:
    asked = item(Change("background", ground="grass"))
    assert not judge(asked, render(edit(asked.goal, Change("remove", 0)))).is_success


def test_noise_is_nothing_at_all() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert not any(judge(one, noise).is_success for one in ITEMS[:10])
