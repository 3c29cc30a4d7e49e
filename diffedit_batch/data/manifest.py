"""The manifest: the one place that reads Parquet of users, row by row into requests."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import ALGORITHM_VERSION, EditConfig, JobConfig, fingerprint
from diffedit_batch.data.columns import REQUIRED, TEXT_COLUMNS, is_string, resolve_columns
from diffedit_batch.data.locate import find_manifest, image_root, look_up
from diffedit_batch.errors import ConfigError, ManifestError, RowError
from diffedit_batch.schema import EditRequest, ImageRef

MAX_PROMPT_BYTES = 8_192
_SHOWN = 5
_INTEGER = (int, int | None)


@dataclass(frozen=True)
class ManifestRow:
    """One row of the manifest, ready to be edited or refused.

    Attributes:
        id: unique in the manifest.
        request: what to do, or None where `error` says why not.
        error: why the row cannot be edited.
        fingerprint: changes when anything the result depends on does.
        image: the image as people know it: path or URI as written, empty for unnamed bytes.
        group: equal for rows of one image.
        asked: result columns that say what was asked, as far as it could be read.
        carried: the manifest's other columns, one row.
    """

    id: str
    request: EditRequest | None
    error: RowError | None
    fingerprint: str
    image: str
    group: str
    asked: dict[str, Any]
    carried: pa.RecordBatch


class Manifest:
    """The rows of a job's manifest, checked as a whole on opening, streamed afterwards.

    Args:
        config: the job.
        model_key: what tells its model from others.

    Raises:
        ManifestError: it cannot be used as a whole; names every problem.
    """

    def __init__(self, config: JobConfig, model_key: str) -> None:
        self._config = config
        self._model_key = model_key
        self.uri = config.input.manifest
        self.files, folder = find_manifest(self.uri)
        self._root = image_root(config.input.image_root or folder)
        self.num_rows = 0
        problems: list[str] = []
        first: pa.Schema | None = None
        for file in self.files:
            with _open(file, self.uri) as parquet:
                self.num_rows += parquet.metadata.num_rows
                schema = parquet.schema_arrow
            if first is None:
                first = schema
                self._columns, self._overrides, problems = resolve_columns(
                    schema, config.input.columns
                )
            elif schema.names != first.names:
                problems.append(f"{file} has other columns than {self.files[0]}")
            elif not schema.equals(first, check_metadata=True):
                problems += _type_problems(file, schema, first, config.input.columns)
            used = {*self._columns.values(), *self._overrides.values()}
            self.carried_schema = pa.schema([f for f in first if f.name not in used])
        if not problems:
            problems += self._id_problems()
        if problems:
            raise ManifestError(f"manifest {self.uri}", problems)

    def rows(self) -> Iterator[ManifestRow]:
        """All rows in order. Images in the manifest are read, image files only looked up."""
        seen_ids: Counter[str] = Counter()
        for file in self.files:
            with _open(file, self.uri) as parquet:
                for row_group in range(parquet.num_row_groups):
                    yield from self._rows_of(parquet, file, row_group, seen_ids)

    def _id_problems(self) -> list[str]:
        column = self._columns.get("id")
        if column is None:
            return []
        seen: set[bytes] = set()
        repeated: Counter[str] = Counter()
        num_null = 0
        for file in self.files:
            with _open(file, self.uri) as parquet:
                for batch in self._batches(parquet, file, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        if value is None or value == "":
                            num_null += 1
                            continue
                        key = hashlib.blake2b(
                            str(value).encode("utf-8", "surrogatepass"), digest_size=16
                        ).digest()
                        if key in seen:
                            repeated[str(value)] += 1
                        seen.add(key)
        problems = []
        if repeated:
            shown = ", ".join(repr(value) for value in list(repeated)[:_SHOWN])
            more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
            problems.append(f"column {column!r}: ids must be unique; repeated: {shown}{more}")
        if num_null:
            problems.append(
                f"column {column!r}: {num_null} rows have no id; give every row one, or leave the"
                " column out"
            )
        return problems

    def _rows_of(
        self, parquet: pq.ParquetFile, file: str, row_group: int, seen_ids: Counter[str]
    ) -> Iterator[ManifestRow]:
        used = {*self._columns.values(), *self._overrides.values()}
        carried_names = [n for n in parquet.schema_arrow.names if n not in used]
        holds_bytes = any(
            not is_string(parquet.schema_arrow.field(self._columns[name]).type)
            for name in ("image", "mask")
            if name in self._columns
        )
        start = 0
        for batch in self._batches(
            parquet, file, batch_size=64 if holds_bytes else 4096, row_groups=[row_group]
        ):
            ours = batch.select([*used]).to_pydict()
            carried = batch.select(carried_names)
            carried = carried.cast(pa.schema([f.remove_metadata() for f in carried.schema]))
            for number in range(batch.num_rows):
                values = {k: ours[theirs][number] for k, theirs in self._columns.items()}
                overrides = {k: ours[theirs][number] for k, theirs in self._overrides.items()}
                cell = ImageRef(file=file, row_group=row_group, row=start + number)
                yield self._row(values, overrides, cell, carried.slice(number, 1), seen_ids)
            start += batch.num_rows

    def _batches(
        self, parquet: pq.ParquetFile, file: str, **selection: Any
    ) -> Iterator[pa.RecordBatch]:
        try:
            for batch in parquet.iter_batches(**selection):
                batch.validate(full=True)  # text that is not UTF-8 passes the reader
                yield batch
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"manifest {self.uri}", [f"{file} is broken: {error}"]) from None

    def _row(
        self,
        values: dict[str, Any],
        overrides: dict[str, Any],
        cell: ImageRef,
        carried: pa.RecordBatch,
        seen_ids: Counter[str],
    ) -> ManifestRow:
        image = self._image(values.get("image"), "image", cell)
        mask = self._image(values.get("mask"), "mask", cell)
        overrides = {name: value for name, value in overrides.items() if value is not None}
        texts = {name: values.get(name) for name in TEXT_COLUMNS}
        row_id = values.get("id")
        if row_id is None:
            content = [image.name or image.key, mask.name or mask.key, texts, overrides]
            digest = fingerprint([*content, values.get("seed")])[:16]
            row_id = f"{PurePath(image.name).stem or 'row'}-{digest}"
            seen_ids[row_id] += 1
            if seen_ids[row_id] > 1:
                row_id = f"{row_id}-{seen_ids[row_id]}"
        request, error = None, image.error or mask.error
        asked: dict[str, Any] = {
            name: cell if isinstance(cell, list) else [cell]
            for name, cell in texts.items()
            if cell is not None
        }
        seed = self._config.seed if values.get("seed") is None else _as_integer(values["seed"])
        try:
            if not isinstance(seed, int) or not 0 <= seed < 2**63:
                raise RowError("manifest", "InvalidParameter", f"seed: {seed} is not in 0..2^63-1")
            asked["seed"] = seed
            edit = _override(self._config.edit, overrides).resolved()
            parameters: dict[str, Any] = edit.model_dump()
            asked |= parameters
            if error is None:
                request = EditRequest(
                    id=str(row_id),
                    edit=edit,
                    seed=seed,
                    source_prompt=_texts(texts, "source_prompt") or (),
                    target_prompt=_texts(texts, "target_prompt") or (),
                    caption=_texts(texts, "caption"),
                    negative_prompt=_texts(texts, "negative_prompt"),
                    source_negative_prompt=_texts(texts, "source_negative_prompt"),
                    image=image.ref,
                    mask=mask.ref,
                )
        except RowError as refused:
            error, parameters = refused, overrides
        config = self._config
        row_fingerprint = fingerprint(
            [
                ALGORITHM_VERSION,
                self._model_key,
                [config.model.dtype or config.device, config.model.variant],
                [config.model.vae_dtype, config.model.enable_vae_tiling],
                [config.model.resolution, config.input.size_multiple],
                image.key,
                mask.key,
                texts,
                parameters,
                seed,
            ]
        )
        if request is not None:
            request = replace(request, fingerprint=row_fingerprint)
            asked = request.columns()
        return ManifestRow(
            id=str(row_id),
            request=request,
            error=error,
            fingerprint=row_fingerprint,
            image=image.name,
            group=image.group,
            asked=asked,
            carried=carried,
        )

    def _image(self, value: Any, name: str, cell: ImageRef) -> "_Found":
        """Where the image (or mask) of a cell is, and what stands for its content."""
        column = self._columns.get(name, name)
        path = ""
        if isinstance(value, Mapping):
            column, path, value = f"{column}.bytes", value.get("path") or "", value.get("bytes")
        if isinstance(value, bytes):
            key = hashlib.sha256(value).hexdigest()
            ref = ImageRef("", cell.file, cell.row_group, cell.row, column)
            return _Found(ref, key, path, key)
        path = value or path
        if not path:
            if name == "mask":
                return _Found(None, "", "", "")
            return _Found(
                None, "", "", "", RowError("manifest", "ImageMissing", "the image cell is empty")
            )
        try:
            uri, key = look_up(path, self._root)
        except RowError as error:
            return _Found(None, "", path, "", error)
        return _Found(ImageRef(uri), key, path, uri)


@dataclass(frozen=True)
class _Found:
    ref: ImageRef | None
    key: str
    name: str
    group: str
    error: RowError | None = None


def _type_problems(
    file: str, schema: pa.Schema, first: pa.Schema, mapping: Mapping[str, str]
) -> list[str]:
    """Why a file cannot stand beside the first one."""
    _, _, problems = resolve_columns(schema, mapping)
    for field, other in zip(schema, first, strict=True):
        try:
            pa.unify_schemas([pa.schema([field]), pa.schema([other])], promote_options="permissive")
        except pa.ArrowException:
            problems.append(f"column {field.name!r} has type {field.type}, elsewhere {other.type}")
    return [f"{file}: {problem}" for problem in problems]


def _open(file: str, uri: str) -> pq.ParquetFile:
    try:
        source = fsspec.open(file, "rb").open()
        return pq.ParquetFile(source)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"manifest {uri}", [f"{file} is not Parquet: {error}"]) from None


def _texts(texts: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """Cell of a text column as one or several texts; None where it is null.

    Raises:
        RowError: a prompt that must say something is empty, or any is too long.
    """
    cell = texts[name]
    if cell is None and name not in REQUIRED:
        return None
    values = tuple(cell) if isinstance(cell, list) else (cell,)
    if not values and name not in REQUIRED:
        return None
    is_empty = not values or any(not (text or "").strip() for text in values)
    if is_empty and name in REQUIRED:
        raise RowError("manifest", "PromptMissing", f"{name} is empty")
    if any(len((text or "").encode("utf-8", "replace")) > MAX_PROMPT_BYTES for text in values):
        raise RowError("manifest", "PromptTooLong", f"{name} is over {MAX_PROMPT_BYTES} bytes")
    return tuple(text or "" for text in values)


def _override(edit: EditConfig, overrides: Mapping[str, Any]) -> EditConfig:
    values = {
        name: _as_integer(value) if EditConfig.model_fields[name].annotation in _INTEGER else value
        for name, value in overrides.items()
    }
    try:
        return edit.override(values)
    except ConfigError as error:
        raise RowError("manifest", "InvalidParameter", "; ".join(error.problems)) from None


def _as_integer(value: Any) -> Any:
    """30 for 30.0, as tables write integers of a column with nulls; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
