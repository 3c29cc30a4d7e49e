from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diffedit_batch.demo.scenes import CHANGE_KINDS, TEST_SEEDS, VALIDATION_SEEDS
from diffedit_batch.evaluation.items import digest, knows_empty_scenes, sample_items


def test_kinds_and_numbers_of_objects_are_balanced() -> None:
    items = sample_items("validation", 6, with_empty_goals=True)
    counts = Counter((item.kind, len(item.scene.objects)) for item in items)
    assert counts == {(kind, count): 3 for kind in CHANGE_KINDS for count in (1, 2)}


def test_without_empty_goals_something_always_remains() -> None:
    items = sample_items("validation", 5, with_empty_goals=False)
    assert Counter(item.kind for item in items) == dict.fromkeys(CHANGE_KINDS, 5)
    assert all(item.goal.objects for item in items)
    assert "nothing" not in " ".join(item.target_prompt for item in items)


def test_scenes_are_of_their_split_and_used_once() -> None:
    for split, seeds in (("validation", VALIDATION_SEEDS), ("test", TEST_SEEDS)):
        items = sample_items(split, 4, with_empty_goals=True)  # type: ignore[arg-type]
        assert all(item.seed in seeds for item in items)
        assert len({item.seed for item in items}) == len(items)


def test_few_items_are_some_of_many_and_digests_tell_them_apart() -> None:
    few = sample_items("test", 2, with_empty_goals=True)
    many = sample_items("test", 7, with_empty_goals=True)
    assert {item.id for item in few} < {item.id for item in many}
    assert digest(few) == digest(sample_items("test", 2, with_empty_goals=True))
    assert digest(few) != digest(many) != digest(list(reversed(many)))


@pytest.mark.parametrize("kind", CHANGE_KINDS)
def test_pictures_differ_only_within_the_mask(kind: str) -> None:
    items = sample_items("validation", 2, with_empty_goals=True)
    for item in items:
        if item.kind == kind:
            difference = np.abs(item.source.astype(int) - item.counterfactual)
            assert difference[item.mask].any()
            assert difference[~item.mask].max() <= 2
            assert item.source_prompt != item.target_prompt
            assert len(item.bystanders) == (len(item.scene.objects) - 1 if item.is_local else 0)
            assert not any((support & item.mask).any() for support in item.bystander_supports)


def test_a_model_card_tells_whether_the_model_knows_empty_scenes(tmp_path: Path) -> None:
    assert not knows_empty_scenes(tmp_path)
    card = tmp_path / "README.md"
    card.write_text('It knows nothing but scenes. Captions: "a red circle on grass".')
    assert not knows_empty_scenes(tmp_path)
    card.write_text('Captions: "a red circle on grass", "nothing on sand".')
    assert knows_empty_scenes(tmp_path)
