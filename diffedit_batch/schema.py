"""The data contract: what one requested edit is, and which columns a result has."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from diffedit_batch.config import EditConfig

INPUT_COLUMNS = (
    "id",
    "image",
    "source_prompt",
    "target_prompt",
    "source_concept",
    "target_concept",
    "caption",
    "negative_prompt",
    "source_negative_prompt",
    "mask",
    "seed",
)
"""Manifest columns with a meaning; `image` is required, and for source and target a prompt or a
concept.
"""

EDIT_PARAMETERS = tuple(EditConfig.model_fields)
"""Manifest columns that override `edit.*` for their row."""


@dataclass(frozen=True)
class ImageRef:
    """Where the bytes of an image are: a `uri`, or a cell of a Parquet file.

    Attributes:
        uri: path or URI, resolved; empty for a cell.
        file: the Parquet file that holds the cell.
        row_group: row group within the file.
        row: row within the row group.
        column: dotted column path of the binary values.
    """

    uri: str = ""
    file: str = ""
    row_group: int = 0
    row: int = 0
    column: str = ""


@dataclass(frozen=True)
class EditRequest:
    """One requested edit, with every parameter as it will be used.

    Attributes:
        id: unique in its manifest.
        source_prompt: what the image shows. Here and below, several texts stand for the mean of
            their embeddings.
        target_prompt: what it shall show.
        edit: effective parameters; what is left to the preset is filled in on creation.
        seed: seeds the mask draws, of several candidates those of the first.
        source_concept: what the source prompts were generated from; None: they were given.
        target_concept: the same of the target prompts.
        caption: text for the inversion where `edit.invert_with` is `caption` and
            `edit.caption_with` is not `source_prompt`; None: the source prompt.
        negative_prompt: None: as `edit.negative_from` says.
        source_negative_prompt: negative on the source side of the mask; None: the same as on the
            target side.
        image: where the image is; None when its pixels are handed over beside the request.
        mask: where an own mask is; None: find it.
        fingerprint: changes when anything the result depends on does.
    """

    id: str
    source_prompt: tuple[str, ...]
    target_prompt: tuple[str, ...]
    edit: EditConfig = field(default_factory=EditConfig)
    seed: int = 0
    source_concept: str | None = None
    target_concept: str | None = None
    caption: tuple[str, ...] | None = None
    negative_prompt: tuple[str, ...] | None = None
    source_negative_prompt: tuple[str, ...] | None = None
    image: ImageRef | None = None
    mask: ImageRef | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "edit", self.edit.resolved())

    def columns(self) -> dict[str, Any]:
        """Result columns that say what was asked, as it is used."""
        return {
            "source_prompt": list(self.source_prompt),
            "target_prompt": list(self.target_prompt),
            "source_concept": self.source_concept,
            "target_concept": self.target_concept,
            "caption": list(self.inversion_text),
            "negative_prompt": list(self.negative_text),
            "source_negative_prompt": list(self.source_negative_text),
            "seed": self.seed,
            **self.edit.model_dump(),
        }

    def candidates(self, *, has_mask: bool) -> list["EditRequest"]:
        """The edits of which the best is kept: this one for each of its seeds, its own first.

        Seeds move the mask that is found: where none is searched, the first stands for all.
        """
        is_searched = not has_mask and self.source_prompt != self.target_prompt
        num_seeds = self.edit.num_seeds if is_searched or self.edit.preset == "diffusers" else 1
        edit = self.edit.model_copy(update={"num_seeds": 1})
        return [
            replace(self, edit=edit, seed=candidate_seed(self.seed, number))
            for number in range(num_seeds)
        ]

    @property
    def inversion_text(self) -> tuple[str, ...]:
        """The text under which the image is inverted."""
        if self.edit.invert_with == "empty":
            return ("",)
        if self.edit.caption_with == "source_prompt":
            return self.source_prompt
        return self.caption or self.source_prompt

    @property
    def negative_text(self) -> tuple[str, ...]:
        """The negative while editing, and on the target side of the mask."""
        if self.negative_prompt is not None:
            return self.negative_prompt
        return self.source_prompt if self.edit.negative_from == "source_prompt" else ("",)

    @property
    def source_negative_text(self) -> tuple[str, ...]:
        """The negative on the source side of the mask."""
        return self.source_negative_prompt or self.negative_text


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a row's candidate: its own for the first, for others one of 53 bits that follows
    from it.
    """
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}\0candidate\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


_EDIT_TYPES = {
    "preset": pa.string(),
    "num_inference_steps": pa.int64(),
    "inpaint_strength": pa.float64(),
    "guidance_scale": pa.float64(),
    "num_maps_per_mask": pa.int64(),
    "mask_encode_strength": pa.float64(),
    "mask_rule": pa.string(),
    "mask_threshold": pa.float64(),
    "mask_thresholding_ratio": pa.float64(),
    "mask_guide_radius": pa.int64(),
    "invert_with": pa.string(),
    "caption_with": pa.string(),
    "inversion_guidance_scale": pa.float64(),
    "inversion_timestep": pa.string(),
    "negative_from": pa.string(),
    "paste_background": pa.bool_(),
    "feather": pa.int64(),
    "mask_grow": pa.int64(),
    "num_seeds": pa.int64(),
    "keep_best": pa.string(),
}

RESULT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_stage", pa.string(), nullable=False),
        pa.field("error_type", pa.string(), nullable=False),
        pa.field("error_message", pa.string(), nullable=False),
        pa.field("edited_file_name", pa.string(), nullable=False),
        pa.field("mask_file_name", pa.string(), nullable=False),
        pa.field("map_file_name", pa.string(), nullable=False),
        pa.field("edited_sha256", pa.string(), nullable=False),
        pa.field("mask_sha256", pa.string(), nullable=False),
        pa.field("map_sha256", pa.string(), nullable=False),
        pa.field("digital_source_type", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("source_prompt", pa.list_(pa.string())),
        pa.field("target_prompt", pa.list_(pa.string())),
        pa.field("source_concept", pa.string()),
        pa.field("target_concept", pa.string()),
        pa.field("caption", pa.list_(pa.string())),
        pa.field("negative_prompt", pa.list_(pa.string())),
        pa.field("source_negative_prompt", pa.list_(pa.string())),
        pa.field("seed", pa.int64()),
        *(pa.field(name, _EDIT_TYPES[name]) for name in EDIT_PARAMETERS),
        pa.field("kept_seed", pa.int64()),
        pa.field(
            "candidates", pa.list_(pa.struct([("seed", pa.int64()), ("score", pa.float64())]))
        ),
        pa.field("mask_coverage", pa.float64()),
        pa.field("map_mean", pa.float64()),
        pa.field("map_max", pa.float64()),
        pa.field("map_contrast", pa.float64()),
        pa.field("background_psnr", pa.float64()),
        pa.field("clip_text", pa.float64()),
        pa.field("clip_direction", pa.float64()),
        pa.field("clip_image", pa.float64()),
        pa.field("lpips", pa.float64()),
        pa.field("filter_reasons", pa.list_(pa.string())),
        pa.field("is_flagged", pa.bool_()),
        pa.field("num_truncated_prompts", pa.int64()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("working_width", pa.int64()),
        pa.field("working_height", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("attempts", pa.int64()),
        pa.field("attempt_errors", pa.list_(pa.string())),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("model_revision", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("finished_at", pa.timestamp("ms", tz="UTC"), nullable=False),
    ]
)
"""One row per manifest row; the manifest's other columns follow."""

FILE_COLUMNS = ("edited_file_name", "mask_file_name", "map_file_name")
"""Columns that name a file of the row, or are empty where it has none."""

LATER_COLUMNS = ("map_file_name", "map_sha256", "digital_source_type")
"""Columns that results of earlier versions lack, and that are empty where they are read."""

RESERVED_COLUMNS = frozenset(RESULT_SCHEMA.names) - frozenset(INPUT_COLUMNS) - set(EDIT_PARAMETERS)
"""Names a manifest may not use for its own columns."""

STATUSES = ("edited", "unchanged", "failed")
