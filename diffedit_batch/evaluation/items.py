"""Test edits with known answers: a rendered scene, one change, and what the change truly gives."""

from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Literal

from diffedit_batch.config import fingerprint
from diffedit_batch.demo.scenes import (
    CHANGE_KINDS,
    TEST_SEEDS,
    VALIDATION_SEEDS,
    Change,
    ChangeKind,
    ImageArray,
    MaskArray,
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

Split = Literal["validation", "test"]
SPLITS: dict[Split, range] = {"validation": VALIDATION_SEEDS, "test": TEST_SEEDS}
"""Everything is chosen on validation scenes; test scenes are for the final measurement."""


@dataclass(frozen=True)
class Item:
    """One test edit; `seed` fixes its scene, its change and the noise of whoever edits it."""

    seed: int
    kind: ChangeKind
    scene: SceneSpec
    change: Change

    @property
    def id(self) -> str:
        """Name, unique among items."""
        return f"{self.kind}-{self.seed}"

    @cached_property
    def goal(self) -> SceneSpec:
        """The scene after the change."""
        return edit(self.scene, self.change)

    @cached_property
    def source(self) -> ImageArray:
        """The picture to edit, (128, 128, 3)."""
        return render(self.scene)

    @cached_property
    def counterfactual(self) -> ImageArray:
        """The picture a perfect edit gives, (128, 128, 3)."""
        return render(self.goal)

    @cached_property
    def mask(self) -> MaskArray:
        """The pixels that the change may touch, (128, 128)."""
        return true_mask(self.scene, self.goal)

    @property
    def source_prompt(self) -> str:
        """Caption of the scene."""
        return caption(self.scene)

    @property
    def target_prompt(self) -> str:
        """Caption of the goal."""
        return caption(self.goal)

    @property
    def is_local(self) -> bool:
        """Whether one object changes, rather than all that is around the objects."""
        return self.kind != "background"

    @property
    def bystanders(self) -> list[SceneObject]:
        """The objects that a local edit has no business with."""
        if not self.is_local:
            return []
        return [one for number, one in enumerate(self.scene.objects) if number != self.change.index]

    @property
    def bystander_supports(self) -> list[MaskArray]:
        """The pixels of each bystander, (128, 128)."""
        supports = zip(self.scene.objects, render_masks(self.scene), strict=True)
        return [support for one, support in supports if one in self.bystanders]


def sample_items(split: Split, num_per_kind: int, *, with_empty_goals: bool) -> list[Item]:
    """Items of every kind in equal numbers, half of them of one object, no scene used twice.

    Args:
        split: which seeds.
        num_per_kind: items of each kind.
        with_empty_goals: whether to remove the only object of a scene too; otherwise "remove" is
            asked of scenes with two objects only.
    """
    single, double = num_per_kind // 2, num_per_kind - num_per_kind // 2
    wanted = {(kind, count): single for kind in CHANGE_KINDS for count in (1, 2)}
    wanted |= {(kind, 2): double for kind in CHANGE_KINDS}
    turns: dict[int, list[ChangeKind]] = {1: list(CHANGE_KINDS), 2: list(CHANGE_KINDS)}
    if not with_empty_goals:
        wanted |= {("remove", 1): 0, ("remove", 2): num_per_kind}
        turns = {1: turns[1][:-1], 2: [*turns[2], "remove"]}
    # Kinds take turns whether they still need items or not: a scene has the same kind in any
    # number of items, and few items are some of many.
    next_kind = {count: cycle(kinds) for count, kinds in turns.items()}
    items: list[Item] = []
    for seed in SPLITS[split]:
        if not any(wanted.values()):
            break
        scene = sample_scene(seed)
        count = len(scene.objects)
        if count:
            kind = next(next_kind[count])
            if wanted[kind, count]:
                wanted[kind, count] -= 1
                items.append(Item(seed, kind, scene, sample_change(scene, kind, seed)))
    return items


def digest(items: list[Item]) -> str:
    """32 hex digits that change when any scene or change does."""
    return fingerprint([[item.id, repr(item.scene), repr(item.change)] for item in items])


def knows_empty_scenes(model_folder: Path) -> bool:
    """Whether a model's card lists the caption of an empty scene ("nothing on ...") as learnt."""
    card = model_folder / "README.md"
    return card.is_file() and '"nothing on ' in card.read_text("utf-8")
