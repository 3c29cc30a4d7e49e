"""What the acts of a row are given, what they ask for, and what comes of them.

An act is a generator: it yields wishes and receives what was wished for.

Legend: K evaluations, C channels, h x w latent grid, L text tokens, D text width.
"""

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor

from diffedit_batch.core.guidance import PredictionType
from diffedit_batch.core.mask import MaskPair, MaskRule
from diffedit_batch.core.schedule import Schedule

T = TypeVar("T")


class Text(NamedTuple):
    """A prompt as the network reads it: `states` (L, D), and a `key` that tells prompts apart."""

    key: Hashable
    states: Tensor


class Evaluate(NamedTuple):
    """Wish for K network outputs: `latents` (K, C, h, w), `timestep` (0-dim), K texts."""

    latents: Tensor
    timestep: Tensor
    texts: list[Text]


class Once(NamedTuple):
    """Wish for the result of an act that rows of one image share: whoever asks first has it run."""

    name: str
    key: Hashable
    start: Callable[[], "Act[Any]"]


class Fetch(NamedTuple):
    """Wish for the numbers in `values` (K,), as a list of floats.

    A row that asked for them itself would make the host wait for the device, and the device then
    for the host; others go on while they are on their way.
    """

    values: Tensor


Act = Generator[Evaluate | Once | Fetch, Any, T]


@dataclass(frozen=True)
class Texts:
    """The prompts of one row."""

    source: Text
    target: Text
    inversion: Text
    negative: Text
    inversion_negative: Text
    source_mask_negative: Text
    target_mask_negative: Text


@dataclass(frozen=True)
class Recipe:
    """The scalars of one edit, under their diffusers names (see `configs/sd21.yaml`).

    Rows share draws only where their `seed` is equal. `is_reference` turns on what only the
    reference implementation does (comments beside each use).
    """

    num_maps_per_mask: int = 10
    mask_encode_strength: float = 0.5
    mask_rule: MaskRule = "minmax"
    mask_threshold: float = 0.5
    mask_thresholding_ratio: float = 3.0
    mask_guide_radius: int = 0
    mask_grow: int = 0
    inpaint_strength: float = 0.8
    guidance_scale: float = 7.5
    inversion_guidance_scale: float = 1.0
    inversion_timestep: Literal["current", "next"] = "next"
    seed: int = 0
    is_reference: bool = False


@dataclass(frozen=True)
class Edit:
    """What became of one row.

    Attributes:
        latents: the edited latent (C, h, w), or None where there was nothing to change.
        mask: where the edit may act.
        difference: the map behind the mask, on its grid, or None where none was needed.
    """

    latents: Tensor | None
    mask: MaskPair
    difference: Tensor | None


FindLevels = Callable[[Tensor, Texts, Recipe, Schedule, PredictionType], Act[list[Tensor]]]
"""Act 2, `invert`, or what an ablation does instead."""
