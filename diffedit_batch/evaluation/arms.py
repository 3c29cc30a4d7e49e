"""The ways of editing that are compared: same weights, same items, same seeds.

The baselines bound what is possible: *copy* shows what doing nothing scores, *vae* what the
autoencoder costs, *true-mask* how far a perfect mask would carry, *text-to-image* how well the
model can draw what is asked for at all.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.demo.scenes import ImageArray, MaskArray
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.pixels import resize, to_picture, to_tensor
from diffedit_batch.engine.requests import ImageEdits
from diffedit_batch.errors import ConfigError
from diffedit_batch.evaluation.items import Item
from diffedit_batch.evaluation.reference import ReferencePipeline
from diffedit_batch.evaluation.starts import FIND_LEVELS, Start
from diffedit_batch.models.components import Components
from diffedit_batch.models.identity import identify
from diffedit_batch.schema import EditRequest


@dataclass(frozen=True)
class Arm:
    """One way of editing.

    Attributes:
        name: what `--arms` calls it.
        title: what tables call it.
        edit: its parameters; None where nothing is edited.
        mask: where the mask comes from: found by the editor, the true one, or the whole picture.
        start: where denoising starts.
    """

    name: str
    title: str
    edit: EditConfig | None = None
    mask: Literal["found", "true", "full"] = "found"
    start: Start = "inverted"

    def at_strength(self, strength: float) -> "Arm":
        """The arm at another `inpaint_strength`, called NAME@STRENGTH."""
        assert self.edit is not None
        edit = self.edit.override({"inpaint_strength": strength})
        return dataclasses.replace(self, name=f"{self.name}@{strength:g}", edit=edit)


_DEFAULT = EditConfig().resolved()
_DIFFUSERS = EditConfig(preset="diffusers").resolved()
_ARMS = (
    Arm("copy", "copy of the source"),
    Arm("vae", "VAE round trip"),
    Arm("reference", "diffusers as shipped", _DIFFUSERS),
    Arm("diffusers", "preset `diffusers`", _DIFFUSERS),
    Arm("paper", "preset `paper`", EditConfig(preset="paper").resolved()),
    Arm("default", "default", _DEFAULT),
    Arm("true-mask", "default, true mask", _DEFAULT, mask="true"),
    Arm("no-mask", "default, no mask", _DEFAULT, mask="full"),
    Arm("no-inversion", "default, no inversion", _DEFAULT, start="noised"),
    Arm("sdedit", "SDEdit", _DEFAULT, mask="full", start="noised"),
    Arm(
        "text-to-image",
        "text to image",
        _DEFAULT.override({"inpaint_strength": 1.0}),
        mask="full",
        start="noise",
    ),
)
ARMS = {arm.name: arm for arm in _ARMS}
"""All arms by name, in the order of the tables."""
REFERENCE_ARM = "reference"
"""The arm that every other one is compared with."""


def arm_named(name: str) -> Arm:
    """The arm of a name, also of one such as `sdedit@0.6`: that arm at strength 0.6.

    Raises:
        ConfigError: there is no such arm.
    """
    base, at, strength = name.partition("@")
    arm = ARMS.get(base)
    if arm is None:
        raise ConfigError(f"unknown arm {base!r}", [f"choose from {', '.join(ARMS)}"])
    if not at:
        return arm
    if arm.edit is None:
        raise ConfigError(f"arm {name!r}", [f"{base} has no strength to set"])
    try:
        return arm.at_strength(float(strength))
    except ValueError:
        raise ConfigError(f"arm {name!r}", [f"{strength!r} is not a number"]) from None


class Outcome(NamedTuple):
    """What an arm made of one item, at the size of its picture (128, 128).

    Attributes:
        picture: the edited picture.
        mask: where it was edited; None where no mask was used.
        difference: the map behind a found mask; None where there is none to see.
    """

    picture: ImageArray
    mask: MaskArray | None = None
    difference: NDArray[np.float32] | None = None


class Studio:
    """One model, and everything that edits with it.

    Args:
        model: which.
        device: where.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, model: ModelConfig, device: str = "cpu") -> None:
        self._model = model
        self._device = device
        self.components = Components.load(model, device)

    @functools.cached_property
    def _reference(self) -> ReferencePipeline:
        return ReferencePipeline(identify(self._model).source, self._device)

    def edit(self, arm: Arm, items: Sequence[Item]) -> tuple[list[Outcome], int]:
        """What an arm makes of items, and how many network evaluations that took."""
        if arm.name == "copy":
            return [Outcome(item.source) for item in items], 0
        if arm.name == "vae":
            return [Outcome(self.round_trip(item.source)) for item in items], 0
        assert arm.edit is not None
        if arm.name.partition("@")[0] == REFERENCE_ARM:
            before = self._reference.num_evals
            outcomes = [
                Outcome(*self._reference.edit(item, arm.edit, self.components.resolution))
                for item in items
            ]
            return outcomes, self._reference.num_evals - before
        editor = DiffEditor(self.components, find_levels=FIND_LEVELS[arm.start])
        results = editor.edit(
            ImageEdits(
                item.source,
                [
                    EditRequest(
                        item.id,
                        (item.source_prompt,),
                        (item.target_prompt,),
                        edit=arm.edit,
                        seed=item.seed,
                    )
                ],
                {item.id: _given_mask(arm, item)} if arm.mask != "found" else {},
            )
            for item in items
        )
        for result in results:
            if result.error is not None:
                raise result.error
        outcomes = [Outcome(result.image, result.mask, result.difference) for result in results]
        return outcomes, editor.counters.unet_evals

    def round_trip(self, picture: ImageArray) -> ImageArray:
        """A picture through the autoencoder and back: the best any latent edit can return."""
        side = self.components.resolution
        mean, _ = self.components.encode(to_tensor(picture, (side, side))[None])
        return resize(
            to_picture(self.components.decode(mean)[0]), (picture.shape[1], picture.shape[0])
        )


def _given_mask(arm: Arm, item: Item) -> MaskArray:
    return item.mask if arm.mask == "true" else np.ones_like(item.mask)
