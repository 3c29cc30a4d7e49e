"""The pictures of a row in a gallery: its source, and what the output has of it."""

import io
from functools import partial
from typing import Any

from PIL import Image

from diffedit_batch.data.images import read_picture
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import RowError
from diffedit_batch.report.pictures import Pictures
from diffedit_batch.report.sources import Source, Sources
from diffedit_batch.schema import FILE_COLUMNS

PICTURED = (
    *("id", "image", "run_id"),
    *FILE_COLUMNS,
    *("edited_sha256", "mask_sha256", "map_sha256"),
)
"""Columns that say which pictures a row has."""


def add_pictures(
    storage: Storage, sources: Sources, pictures: Pictures, row: dict[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Have the pictures of a row in a gallery.

    Args:
        storage: the output.
        sources: where source images are.
        pictures: of the gallery.
        row: its `PICTURED` columns.

    Returns:
        What they are called, or why there is none, and which are missing.
    """
    names = ("source", "source_note", "edited", "mask", "map", "note")
    columns, missing = dict.fromkeys(names, ""), []
    try:
        source = sources.find(row["id"], row["image"], row["run_id"])
        columns["source"] = pictures.add("photo", source.key, partial(_read_source, source))
    except RowError as error:
        columns["source_note"] = str(error)
        missing.append(f"source: {error.kind}")
    for kind, name, mode in (
        ("photo", "edited", "RGB"),
        ("mask", "mask", "L"),
        ("map", "map", "L"),
    ):
        file = row[f"{name}_file_name"]
        if not file:
            continue
        try:
            read = partial(_read_result, storage, file, mode)
            columns[name] = pictures.add(kind, row[f"{name}_sha256"], read)
        except RowError as error:
            columns["note"] = str(error)
            missing.append(f"{name}: {error.kind}")
    return columns, missing


def _read_source(source: Source) -> Image.Image:
    picture = read_picture(source.ref, max_bytes=source.max_bytes, max_pixels=source.max_pixels)
    return Image.fromarray(picture)


def _read_result(storage: Storage, file: str, mode: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(storage.read(file)), formats=["PNG"]).convert(mode)
    except FileNotFoundError:
        raise RowError("load", "FileGone", f"{file} is no longer in the output") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError("load", "FileBroken", f"{file}: {error}") from None
