"""The parameters of an edit, and the presets that fill them."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from diffedit_batch.config.section import Section, validated

Preset = Literal["tuned", "paper", "diffusers"]

_YOUNGER_KEYS = ("mask_grow", "num_seeds", "keep_best")
"""Keys that came after the first results."""


class EditConfig(Section):
    """One edit. Any of these may be a manifest column and then wins for its row."""

    preset: Preset = "tuned"
    num_inference_steps: int = Field(50, ge=1, le=1000)
    inpaint_strength: float = Field(0.8, gt=0, le=1)
    guidance_scale: float | None = Field(None, ge=1, le=100)
    num_maps_per_mask: int = Field(10, ge=1, le=256)
    mask_encode_strength: float | None = Field(None, gt=0, le=1)
    mask_rule: Literal["minmax", "mean_ratio", "otsu"] | None = None
    mask_threshold: float | None = Field(None, gt=0, lt=1)
    mask_thresholding_ratio: float = Field(3.0, gt=0, le=100)
    mask_guide_radius: int | None = Field(
        None, ge=0, le=256, description="px; 0: the map is not fitted to the picture's outlines"
    )
    invert_with: Literal["empty", "caption"] | None = None
    caption_with: Literal["column", "blip", "source_prompt"] = "column"
    inversion_guidance_scale: float | None = Field(None, ge=1, le=100)
    inversion_timestep: Literal["current", "next"] | None = None
    negative_from: Literal["empty", "source_prompt"] | None = None
    paste_background: bool | None = None
    feather: int | None = Field(None, ge=0, le=64, description="px of the paste's soft edge")
    mask_grow: int = Field(
        0,
        ge=-256,
        le=256,
        description="px by which the mask, found or own, grows; below 0: shrinks",
    )

    num_seeds: int = Field(
        1, ge=1, le=64, description="seeds tried, the row's own first; only the best edit is kept"
    )
    keep_best: Literal[
        "map_contrast", "background_psnr", "clip_text", "clip_direction", "clip_image"
    ] = Field("map_contrast", description="the score by which it is the best")

    @property
    def asks_clip(self) -> bool:
        """Whether which edit is kept depends on a CLIP model."""
        return self.num_seeds > 1 and self.keep_best.startswith("clip_")

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Self:
        for name in ("inpaint_strength", "mask_encode_strength"):
            strength = getattr(self, name)
            if strength is not None and int(self.num_inference_steps * strength) < 1:
                raise ValueError(
                    f"{name} {strength} of {self.num_inference_steps} steps is less than one step"
                )
        return self

    def counted(self) -> dict[str, object]:
        """What counts in a fingerprint. Younger keys that are left at their default do not: what
        was done before there were any stays done.
        """
        values = self.model_dump()
        for name in _YOUNGER_KEYS:
            if values[name] == EditConfig.model_fields[name].default:
                del values[name]
        return values

    def resolved(self) -> "EditConfig":
        """A copy in which the preset has filled every key left at null."""
        # Texts differ little here (6 scenes there and back, 50 levels: caption 50.0 to 50.3 dB,
        # empty text 49.6 to 49.9; the first of each at the current level, the second at the next).
        paper: dict[str, object] = {
            "guidance_scale": 7.5,
            "mask_encode_strength": 0.5,
            "mask_rule": "minmax",
            "mask_threshold": 0.5,
            "mask_guide_radius": 0,
            "invert_with": "caption",
            "inversion_guidance_scale": 1.0,
            "inversion_timestep": "next",
            "negative_from": "empty",
            "paste_background": True,
            "feather": 8,
        }
        by_preset = {
            # Chosen by jobs/tune.py on validation scenes, see evaluation/TUNING.md.
            "tuned": {
                **paper,
                "guidance_scale": 5.0,
                "mask_encode_strength": 0.7,
                "mask_threshold": 0.45,
                "mask_guide_radius": 16,
                "feather": 4,
            },
            "paper": paper,
            "diffusers": {
                **paper,
                "mask_rule": "mean_ratio",
                "inversion_guidance_scale": self.guidance_scale or paper["guidance_scale"],
                "negative_from": "source_prompt",
                "paste_background": False,
            },
        }
        filled = {k: v for k, v in by_preset[self.preset].items() if getattr(self, k) is None}
        return self.model_copy(update=filled)

    def override(self, values: Mapping[str, object]) -> "EditConfig":
        """A copy with some parameters replaced, checked like a file.

        Raises:
            ConfigError: a value is of the wrong type or out of range.
        """
        if not values:
            return self
        return validated(EditConfig, {**self.model_dump(), **values}, "invalid edit parameters")
