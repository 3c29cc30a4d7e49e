from pathlib import Path

import numpy as np
import pytest

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.errors import ConfigError
from diffedit_batch.evaluation.arms import ARMS, Arm, Studio, arm_named
from diffedit_batch.evaluation.items import sample_items

ITEMS = sample_items("validation", 1, with_empty_goals=False)[:2]
QUICK = {"num_inference_steps": 5, "num_maps_per_mask": 2}
NUM_LEVELS = 4  # 0.8 of 5 steps


def quick(name: str) -> Arm:
    arm = ARMS[name]
    assert arm.edit is not None
    return Arm(arm.name, arm.title, arm.edit.override(QUICK), arm.mask, arm.start)


@pytest.fixture(scope="module")
def studio(tiny_model: Path) -> Studio:
    return Studio(ModelConfig(id=str(tiny_model)))


def test_all_arms_of_the_protocol_are_there() -> None:
    assert list(ARMS) == [
        *("copy", "vae", "reference", "diffusers", "paper", "default", "true-mask"),
        *("no-mask", "no-inversion", "sdedit", "text-to-image"),
    ]
    assert ARMS["default"].edit == EditConfig().resolved()


def test_an_unknown_arm_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown arm 'nonsense'(.|\n)*text-to-image"):
        arm_named("nonsense")


def test_an_arm_at_another_strength() -> None:
    arm = arm_named("sdedit@0.6")
    assert arm.edit is not None
    assert (arm.name, arm.edit.inpaint_strength) == ("sdedit@0.6", 0.6)
    assert arm_named("sdedit") is ARMS["sdedit"]


@pytest.mark.parametrize("name", ["copy@0.5", "sdedit@", "sdedit@much", "sdedit@2"])
def test_a_wrong_strength_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        arm_named(name)


def test_copy_and_round_trip(studio: Studio) -> None:
    copies, num_evals = studio.edit(ARMS["copy"], ITEMS)
    assert num_evals == 0
    for item, outcome in zip(ITEMS, copies, strict=True):
        assert np.array_equal(outcome.picture, item.source)
        assert outcome.mask is None
        assert outcome.difference is None
    [trip, _], num_evals = studio.edit(ARMS["vae"], ITEMS)
    assert num_evals == 0
    assert trip.picture.shape == ITEMS[0].source.shape
    assert not np.array_equal(trip.picture, ITEMS[0].source)


@pytest.mark.parametrize(
    ("name", "num_evals"),
    [
        ("default", 2 * 2 + NUM_LEVELS + 2 * NUM_LEVELS),
        ("diffusers", 2 * 2 + 4 * NUM_LEVELS),
        # The reference asks for unconditional estimates in the mask that cancel.
        ("reference", 4 * 2 + 4 * NUM_LEVELS),
        ("true-mask", NUM_LEVELS + 2 * NUM_LEVELS),
        ("no-mask", NUM_LEVELS + 2 * NUM_LEVELS),
        ("no-inversion", 2 * 2 + 2 * NUM_LEVELS),
        ("sdedit", 2 * NUM_LEVELS),
        ("text-to-image", 2 * 5),
    ],
)
def test_arms_do_the_work_they_are_said_to(studio: Studio, name: str, num_evals: int) -> None:
    outcomes, evals = studio.edit(quick(name), ITEMS)
    assert evals == num_evals * len(ITEMS)
    for item, outcome in zip(ITEMS, outcomes, strict=True):
        assert outcome.picture.shape == item.source.shape
        assert outcome.picture.dtype == np.uint8
        assert outcome.mask is not None
        assert outcome.mask.shape == item.mask.shape
        assert (outcome.difference is None) == (
            name not in ("default", "diffusers", "no-inversion")
        )


def test_given_masks_are_the_ones_used(studio: Studio) -> None:
    [outcome, _], _ = studio.edit(quick("true-mask"), ITEMS)
    [full, _], _ = studio.edit(quick("no-mask"), ITEMS)
    assert outcome.mask is not None and full.mask is not None
    # The tiny model works at half the size of the scenes.
    assert (outcome.mask == ITEMS[0].mask).mean() > 0.98
    assert full.mask.all()


def test_an_arm_repeats_itself(studio: Studio) -> None:
    for name in ("default", "reference", "sdedit"):
        [first, _], _ = studio.edit(quick(name), ITEMS)
        [_, again], _ = studio.edit(quick(name), list(reversed(ITEMS)))
        assert np.abs(first.picture.astype(int) - again.picture).max() <= 1
