"""Did the edit happen, and only that edit? Two judges, one by rules and one that learnt.

The first reads colours, shapes and grounds without any learning (`reading`), the second is a small
network (`learned`). What both grant counts; grounds are the first one's alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffedit_batch.demo.scenes import ImageArray, SceneObject, SceneSpec, render_masks
from diffedit_batch.evaluation.items import Item
from diffedit_batch.evaluation.learned import read_objects
from diffedit_batch.evaluation.reading import (
    Floats,
    ground_palette,
    has_patch,
    is_bare,
    locate,
    palette_of,
    read_colour,
    read_ground,
    read_shape,
    to_lab,
)


@dataclass(frozen=True)
class Verdict:
    """What the judges say of one edited picture.

    Attributes:
        by_rules: the first judge sees what was asked for, where it was asked for.
        by_network: so does the second.
        is_bystander_intact: the other object is what it was, to both; None where there is none.
    """

    by_rules: bool
    by_network: bool
    is_bystander_intact: bool | None

    @property
    def is_success(self) -> bool:
        """Whether both judges see what was asked for."""
        return self.by_rules and self.by_network


def judge(item: Item, picture: ImageArray) -> Verdict:
    """The verdict on a picture (128, 128, 3) offered as the edit of `item`.

    Success means, by kind: *recolour, reshape, replace*: the object has the goal's colour and
    shape; *background*: the ground is the goal's and every object kept colour and shape; *remove*:
    nothing but ground is left where the object was, and the other object is intact.
    """
    lab = to_lab(picture)
    if item.kind == "background":
        visible = ~np.logical_or.reduce(render_masks(item.goal))
        if read_ground(lab, visible) != item.goal.ground:
            return Verdict(False, False, None)
    by_rules, intact_by_rules = _judge_by_rules(item, lab)
    by_network, intact_by_network = _judge_by_network(item, picture)
    intact = None if intact_by_rules is None else intact_by_rules and bool(intact_by_network)
    return Verdict(by_rules, by_network, intact)


def judge_anywhere(goal: SceneSpec, picture: ImageArray) -> Verdict:
    """The verdict on a picture that was drawn from the caption of `goal`, which names no places.

    Success means: the ground and every object that is named are there, wherever they are, and
    nothing else.
    """
    lab = to_lab(picture)
    palette = ground_palette(goal.ground)
    names = {one.color for one in goal.objects}
    found: list[SceneObject] = []
    for one in goal.objects:
        rivals = sorted(names - {one.color})
        place = locate(lab, one, palette, rivals)
        if place is None:
            return Verdict(False, False, None)
        found.append(place)
    rows, columns = np.indices(lab.shape[:2])
    visible = np.ones(lab.shape[:2], bool)
    are_right = []
    for place in found:
        distance = np.hypot(columns - place.x, rows - place.y) / place.radius
        visible &= distance > 1.2
        are_right.append(
            # Half a radius around its centre lies within any shape.
            read_colour(lab, distance < 0.5) == place.color
            and read_shape(lab, place, palette, sorted(names - {place.color})) == place.shape
        )
    is_ground = (
        bool(visible.any())
        and read_ground(lab, visible) == goal.ground
        and not has_patch(lab, visible, palette)
    )
    seen = read_objects(picture, found)
    return Verdict(
        is_ground and all(are_right),
        is_ground and seen == [(place.color, place.shape) for place in found],
        None,
    )


def _judge_by_rules(item: Item, lab: Floats) -> tuple[bool, bool | None]:
    palette = palette_of(item.goal)
    supports = dict(zip(item.goal.objects, render_masks(item.goal), strict=True))
    # An old colour that was left over must not pass for the new one.
    names = {one.color for spec in (item.scene, item.goal) for one in spec.objects}

    def shows(one: SceneObject) -> bool:
        rivals = sorted(names - {one.color})
        return (
            read_colour(lab, supports[one]) == one.color
            and read_shape(lab, one, palette, rivals) == one.shape
        )

    def is_gone() -> bool:
        return is_bare(lab, render_masks(item.scene)[item.change.index], palette)

    return _conclude(item, shows, is_gone)


def _judge_by_network(item: Item, picture: ImageArray) -> tuple[bool, bool | None]:
    places = [*item.goal.objects, *item.scene.objects]
    seen = dict(zip(places, read_objects(picture, places), strict=True))

    def shows(one: SceneObject) -> bool:
        return seen[one] == (one.color, one.shape)

    def is_gone() -> bool:
        return seen[item.scene.objects[item.change.index]] == ("", "")

    return _conclude(item, shows, is_gone)


def _conclude(
    item: Item, shows: Callable[[SceneObject], bool], is_gone: Callable[[], bool]
) -> tuple[bool, bool | None]:
    """Success, and whether the bystander is intact, of one judge where the ground is as asked.

    Args:
        item: what was asked.
        shows: whether the judge sees an object in its place with its colour and shape.
        is_gone: whether the judge sees nothing where the changed object was.
    """
    if item.kind == "background":
        return all(map(shows, item.goal.objects)), None
    intact = all(map(shows, item.bystanders)) if item.bystanders else None
    if item.kind == "remove":
        return is_gone() and intact is not False, intact
    return shows(item.goal.objects[item.change.index]), intact
