"""The rows of an output with their pictures, one after the other."""

import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from diffedit_batch.data.current import CurrentRows
from diffedit_batch.data.images import read_original
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import RowError
from diffedit_batch.report.sources import Sources
from diffedit_batch.schema import FILE_COLUMNS

PICTURES = ("source_image", "edited_image", "mask_image", "map_image")
"""What the pictures of a row are called in every form; the first is what was edited, the others
follow `FILE_COLUMNS`.
"""

NUM_THREADS = 16
"""Rows whose pictures are read at once, and held."""


class Picture(NamedTuple):
    """A file: its name, which no other row of an export has, and its content."""

    name: str
    data: bytes


class Sample(NamedTuple):
    """One row.

    Attributes:
        row: its result, one row, without the names of its files.
        key: what its files are called, without a dot.
        pictures: by their names in `PICTURES`; None where there is none.
        missing: those it should have, with why it does not.
    """

    row: pa.Table
    key: str
    pictures: dict[str, Picture | None]
    missing: list[str]


def read_samples(storage: Storage, rows: CurrentRows, sources: Sources) -> Iterator[Sample]:
    """The rows that have an edited picture.

    Raises:
        StorageError: the output cannot be read.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for table in rows.tables():
            found = table.filter(pc.not_equal(table["edited_file_name"], "")).combine_chunks()
            plain = found.drop_columns(list(FILE_COLUMNS))
            wanted = found.select(["id", "image", "run_id", *FILE_COLUMNS])
            for start in range(0, found.num_rows, NUM_THREADS):
                some = wanted.slice(start, NUM_THREADS).to_pylist()
                read = pool.map(lambda row: _read(storage, sources, row), some)
                for place, (key, pictures, missing) in enumerate(read, start):
                    yield Sample(plain.slice(place, 1), key, pictures, missing)


def _read(
    storage: Storage, sources: Sources, row: dict[str, Any]
) -> tuple[str, dict[str, Picture | None], list[str]]:
    key = posixpath.basename(row["edited_file_name"]).removesuffix(".png").replace(".", "_")
    pictures: dict[str, Picture | None] = dict.fromkeys(PICTURES)
    missing = []
    try:
        source = sources.find(row["id"], row["image"], row["run_id"])
        data, suffix = read_original(
            source.ref, max_bytes=source.max_bytes, max_pixels=source.max_pixels
        )
        pictures["source_image"] = Picture(f"{key}{suffix}", data)
    except RowError as error:
        missing.append(f"source_image: {error.kind}")
    for name, column in zip(PICTURES[1:], FILE_COLUMNS, strict=True):
        if row[column]:
            try:
                pictures[name] = Picture(f"{key}.png", storage.read(row[column]))
            except FileNotFoundError:
                missing.append(f"{name}: FileGone")
    return key, pictures, missing
