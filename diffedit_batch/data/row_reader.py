"""Reading the rows of a manifest: images looked up, cells checked, fingerprints computed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from diffedit_batch.config import (
    ALGORITHM_VERSION,
    EditConfig,
    JobConfig,
    canonical_json,
    fingerprint,
)
from diffedit_batch.data.cells import read_edit, read_integer, read_side, read_texts
from diffedit_batch.data.columns import CONCEPT_COLUMNS, SIDES, TEXT_COLUMNS
from diffedit_batch.data.generated import Generated, TextTable
from diffedit_batch.data.lookup import ImageFiles
from diffedit_batch.data.row import FoundImage, ManifestRow, Reading, Texts
from diffedit_batch.data.text_files import Key
from diffedit_batch.errors import RowError
from diffedit_batch.schema import ImageRef

if TYPE_CHECKING:
    from hashlib import _Hash

_NO_MASK = FoundImage(None, "", "", "")


@dataclass(frozen=True)
class _Parameters:
    """The edit parameters of a row, and hashes to which the rest of the row is added.

    Attributes:
        edit: effective, or None where `error` says why not.
        error: what is wrong with those of the row.
        effective: of the job and the effective parameters.
        as_written: of the job and the row's own, where a row cannot be edited anyway.
    """

    edit: EditConfig | None
    error: RowError | None
    effective: "_Hash"
    as_written: "_Hash"


class RowReader:
    """Reads the rows of a job's manifest once, from first to last.

    Args:
        config: the job.
        model_key: what tells its model from others.
        generated: texts for rows that are given by concept or whose image is captioned.
        root: the folder all images must be under.
        columns: what the manifest calls our columns.
        overrides: edit parameters for which it has a column.
    """

    def __init__(
        self,
        config: JobConfig,
        model_key: str,
        generated: Generated | None,
        root: str,
        columns: Mapping[str, str],
        overrides: tuple[str, ...],
    ) -> None:
        self._config = config
        self._generated = generated
        self._columns = columns
        self._overrides = overrides
        self._files = ImageFiles(root, config.input)
        self._num_seen: Counter[str] = Counter()
        # Of few kinds, however many rows there are.
        self._parameters = lru_cache(maxsize=4096, typed=True)(self._read_parameters)
        model = config.model
        self._job = [
            ALGORITHM_VERSION,
            model_key,
            [model.dtype or config.device, model.variant],
            [model.vae_dtype, model.enable_vae_tiling],
            [model.resolution, config.input.size_multiple],
        ]
        if config.safety.policy != "off":  # rows that were never checked are done again
            self._job.append(["safety", config.safety.policy])

    def read(
        self,
        values: Mapping[str, Any],
        overrides: tuple[Any, ...],
        cell: tuple[str, int, int],
        carried: Callable[[], pa.RecordBatch],
        too_large: str | None,
    ) -> ManifestRow:
        """One row.

        Args:
            values: cells by our names.
            overrides: its edit parameters, None where it has none.
            cell: file, row group and row, where its images are, if they are in the manifest.
            carried: cuts the other columns out of the manifest.
            too_large: what is wrong with a cell that was left out because of its size.

        Raises:
            ModelError: it needs a generated text, and there is no model to generate it.
        """
        image = self._find(values.get("image"), "image", cell)
        mask = self._find(values["mask"], "mask", cell) if "mask" in values else _NO_MASK
        said = {name: values.get(name) for name in TEXT_COLUMNS}
        said |= {name: values[name] for name in CONCEPT_COLUMNS if values.get(name)}
        row_id = values.get("id")
        if row_id is None:
            row_id = self._derived_id(image, mask, said, overrides, values.get("seed"))
        parameters = self._parameters(*overrides)
        seed, texts, error = values.get("seed"), None, image.error or mask.error
        if too_large is not None:
            error = RowError("manifest", "CellTooLarge", too_large)
        asked_seed = seed = self._config.seed if seed is None else read_integer(seed)
        state = parameters.effective
        try:
            if not isinstance(seed, int) or not 0 <= seed < 2**63:
                seed = None
                raise RowError(
                    "manifest", "InvalidParameter", f"seed: {asked_seed} is not in 0..2^63-1"
                )
            if parameters.error is not None:
                raise parameters.error
            if error is None:
                texts = _read_texts(values)
        except RowError as refused:
            error, state = refused, parameters.as_written
        needed: dict[str, tuple[TextTable, Key]] = {}
        if texts is not None and parameters.edit is not None:
            needed = self._needed(texts, parameters.edit, (image.name, image.key))
        stamps = {field: table.stamp(key) for field, (table, key) in needed.items()}
        digest = state.copy()
        digest.update(canonical_json([image.key, mask.key, said, stamps, asked_seed]))
        reading = Reading(image, mask, said, texts, seed, parameters.edit, needed, error)
        return ManifestRow(str(row_id), digest.hexdigest()[:32], reading, carried)

    def _read_parameters(self, *overrides: Any) -> _Parameters:
        own = {n: v for n, v in zip(self._overrides, overrides, strict=True) if v is not None}
        edit, error, scores = None, None, self._config.scores
        try:
            edit = read_edit(self._config.edit, own, has_clip=scores.clip is not None)
        except RowError as refused:
            error = refused
        chooser = [[scores.clip, scores.revision]] if edit and edit.asks_clip else []
        return _Parameters(
            edit,
            error,
            hashlib.sha256(canonical_json([*self._job, edit.counted() if edit else own, *chooser])),
            hashlib.sha256(canonical_json([*self._job, own])),
        )

    def _derived_id(
        self,
        image: FoundImage,
        mask: FoundImage,
        said: Mapping[str, Any],
        overrides: tuple[Any, ...],
        seed: Any,
    ) -> str:
        """The image's name and a hash of what is asked; rows that ask the same are numbered."""
        own = {n: v for n, v in zip(self._overrides, overrides, strict=True) if v is not None}
        content = [image.path or image.key, mask.path or mask.key, said, own, seed]
        row_id = f"{PurePath(image.name).stem or 'row'}-{fingerprint(content)[:16]}"
        self._num_seen[row_id] += 1
        number = self._num_seen[row_id]
        return row_id if number == 1 else f"{row_id}-{number}"

    def _needed(
        self, texts: Texts, edit: EditConfig, image: Key
    ) -> dict[str, tuple[TextTable, Key]]:
        """Which generated texts a row needs, by the field of its request they belong in."""
        needed: dict[str, tuple[TextTable, Key]] = {}
        for side, concept in zip(SIDES, (texts.source_concept, texts.target_concept), strict=True):
            if concept is not None:
                assert self._generated is not None
                needed[f"{side}_prompt"] = (self._generated.prompts, (concept,))
        if (edit.invert_with, edit.caption_with) == ("caption", "blip") and texts.caption is None:
            assert self._generated is not None
            needed["caption"] = (self._generated.captions, image)
        return needed

    def _find(self, value: Any, name: str, cell: tuple[str, int, int]) -> FoundImage:
        """Where the image (or mask) of a cell is, and what stands for its content."""
        column = self._columns.get(name, name)
        path = ""
        if isinstance(value, Mapping):
            column, path, value = f"{column}.bytes", value.get("path") or "", value.get("bytes")
        if isinstance(value, bytes):
            key = hashlib.sha256(value).hexdigest()
            return FoundImage(ImageRef("", *cell, column), key, path, key)
        path = value or path
        if not path:
            if name == "mask":
                return _NO_MASK
            return FoundImage(
                None, "", "", "", RowError("manifest", "ImageMissing", "the image cell is empty")
            )
        try:
            uri, key = self._files.look_up(path)
        except RowError as error:
            return FoundImage(None, "", path, "", error)
        return FoundImage(ImageRef(uri), key, path, uri)


def _read_texts(values: Mapping[str, Any]) -> Texts:
    """The texts of a row. Raises RowError where one is missing or too long."""
    return Texts(
        *read_side(values, "source"),
        *read_side(values, "target"),
        *(read_texts(values, n) for n in ("caption", "negative_prompt", "source_negative_prompt")),
    )
