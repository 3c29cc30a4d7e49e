"""Parquet files that mean harm, made on the spot."""

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EXTENSION = {
    b"ARROW:extension:name": b"ray.data.arrow_pickled_object",
    b"ARROW:extension:metadata": b"",
}
"""What makes Ray Data unpickle a column of bytes when its values are looked at."""


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.marker}",))


def write_pickled(path: Path, table: pa.Table, column: str, marker: Path) -> None:
    """Write a table whose `column` holds objects that create `marker` when they are unpickled."""
    cells = pa.array([pickle.dumps(Payload(marker))] * table.num_rows, pa.large_binary())
    field = pa.field(column, pa.large_binary(), metadata=EXTENSION)
    place = table.schema.get_field_index(column)
    table = (
        table.append_column(field, cells) if place < 0 else table.set_column(place, field, cells)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def repeated(value: Any, num_rows: int) -> pa.Array:
    """One value, named by many rows: kilobytes in a file, gigabytes as plain values."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array([value]))


def write_without_schema(path: Path, table: pa.Table, **options: Any) -> None:
    """Write a table that does not say that its columns are dictionaries."""
    pq.write_table(table, path, store_schema=False, **options)
