"""The one place that opens Parquet files: plain types only, and never more memory than said here.

A file from anywhere can hold objects that run code when they are read, and gigabytes in kilobytes:
a value that stands once in a dictionary and is named by a million rows, a page that unpacks a
thousandfold. So types are checked against a list and sizes against limits before values are read,
and what is read is measured before any of it becomes a Python object.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from pyarrow import types

from diffedit_batch.data.parquet_checks import (
    MAX_GROUP_BYTES,
    is_binary,
    is_string,
    size_problems,
    type_problems,
)
from diffedit_batch.errors import ManifestError

MAX_CELL_BYTES = 1 << 20
"""Of a cell that is no image."""

_BATCH_ROWS = 4_096
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Block:
    """Some rows of a row group.

    Attributes:
        start: number of the first one within the row group.
        rows: what they hold; cells that are too large are null.
        too_large: by number within `rows`, what was too large.
    """

    start: int
    rows: pa.RecordBatch
    too_large: Mapping[int, str]


@contextmanager
def open_parquet(source: Any, *, check_sizes: bool = True) -> Iterator["ParquetTable"]:
    """A Parquet file of plain types and bounded size, by path, URI, or as an open binary file.

    Args:
        source: the file.
        check_sizes: False for what this job wrote itself.

    Raises:
        ManifestError: it is not; names every problem.
        OSError: it cannot be opened.
    """
    if not isinstance(source, str):
        yield ParquetTable(source, "table", check_sizes)
    else:
        # A local path not by fsspec.open, which reads "::" in a name as a chain of filesystems.
        is_local = "://" not in source
        with LocalFileSystem().open(source) if is_local else fsspec.open(source, "rb") as file:
            yield ParquetTable(file, source, check_sizes)


class ParquetTable:
    """An open Parquet file that was found to be of plain types and bounded size.

    Attributes:
        schema: its columns, dictionaries as the plain values they are read as.
        num_rows: all rows.
        num_row_groups: the pieces it is read in.
    """

    def __init__(self, source: Any, name: str, check_sizes: bool) -> None:
        self._source = source
        try:
            # Limits on the footer, which is parsed before anything about it can be checked.
            self._file = pq.ParquetFile(
                source, thrift_string_size_limit=64 << 20, thrift_container_size_limit=100_000
            )
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(name, [f"is not Parquet: {error}"]) from None
        stored: pa.Schema = self._file.schema_arrow
        self.schema = pa.schema([(field.name, _decoded(field.type)) for field in stored])
        self.num_rows: int = self._file.metadata.num_rows
        self.num_row_groups: int = self._file.num_row_groups
        problems = type_problems(stored)
        if check_sizes:
            problems += size_problems(self._file.metadata)
        if problems:
            raise ManifestError(name, problems)

    def rows_of(self, row_group: int) -> int:
        """Rows of a row group."""
        return int(self._file.metadata.row_group(row_group).num_rows)

    def read(self, columns: list[str]) -> pa.Table:
        """Whole columns, for files no larger than a part of results.

        Raises:
            pa.ArrowException, OSError: the file is broken.
            KeyError: there is no such column.
        """
        return self._file.read(columns=columns).select(columns)

    def blocks(
        self, row_group: int, columns: list[str], max_bytes: Mapping[str, int]
    ) -> Iterator[Block]:
        """Columns of a row group, in blocks of some megabytes.

        Args:
            row_group: its number.
            columns: names of top-level columns.
            max_bytes: of a cell, where that is not `MAX_CELL_BYTES`.

        Raises:
            pa.ArrowException, OSError: the file is broken.
        """
        group = self._file.metadata.row_group(row_group)
        batch_rows = _BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)
        lists = []
        for leaf in self._dictionary_leaves(row_group, columns):
            if leaf.max_repetition_level:  # how many values a row has cannot be told beforehand
                lists.append(leaf.path)
            else:
                longest = self._longest(row_group, leaf.path)
                batch_rows = min(batch_rows, _BATCH_BYTES // max(longest, 1))
        batches = self._with_dictionaries(lists).iter_batches(
            max(1, min(_BATCH_ROWS, batch_rows)), row_groups=[row_group], columns=columns
        )
        kinds = [self.schema.field(name).type for name in columns]
        limits = np.array([max_bytes.get(name, MAX_CELL_BYTES) for name in columns])
        start = 0
        for batch in batches:
            arrays = batch.select(columns).columns
            sizes = np.stack([_cell_bytes(array) for array in arrays])
            is_large = sizes > limits[:, None]
            for first, end in _cuts(np.where(is_large, 0, sizes).sum(axis=0)):
                cells = [
                    _taken(array, first, end, gone).cast(kind)
                    for array, gone, kind in zip(arrays, is_large, kinds, strict=True)
                ]
                rows = pa.RecordBatch.from_arrays(cells, columns)
                rows.validate(full=True)  # text that is not UTF-8 passes the reader
                too_large = {
                    int(row): f"column {columns[number]!r} holds {sizes[number, first + row]:,}"
                    f" bytes, more than {limits[number]:,}"
                    for number, row in np.argwhere(is_large[:, first:end])
                }
                yield Block(start + first, rows, too_large)
            start += batch.num_rows

    def leaf(self, row_group: int, path: str) -> pa.ChunkedArray:
        """All values of one column of a row group, by its dotted path; kept in a dictionary where
        they would take too much memory otherwise.

        Raises:
            pa.ArrowException, OSError: the file is broken.
        """
        top = next(name for name in self.schema.names if _is_under(path, name))
        num_rows = self._file.metadata.row_group(row_group).num_rows
        dictionaries = [
            path
            for leaf in self._dictionary_leaves(row_group, [top])
            if leaf.path == path and num_rows * self._longest(row_group, path) > MAX_GROUP_BYTES
        ]
        reader = self._with_dictionaries(dictionaries)
        return _descend(reader.read_row_group(row_group, columns=[path]).column(0), path, top)

    def _dictionary_leaves(self, row_group: int, columns: list[str]) -> Iterator[Any]:
        """Where texts and bytes under some columns stand in a dictionary, of which any number of
        rows may name the same value: sizes in the file say nothing then.
        """
        group = self._file.metadata.row_group(row_group)
        for number in range(group.num_columns):
            leaf = self._file.schema.column(number)
            is_wanted = any(_is_under(leaf.path, name) for name in columns)
            is_text = leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"
            encodings = group.column(number).encodings
            if is_wanted and is_text and any("DICTIONARY" in name for name in encodings):
                yield leaf

    def _longest(self, row_group: int, path: str) -> int:
        """Bytes of the longest value in the dictionary of a column that is no list."""
        top = next(name for name in self.schema.names if _is_under(path, name))
        reader = self._with_dictionaries([path])
        for batch in reader.iter_batches(_BATCH_ROWS, row_groups=[row_group], columns=[path]):
            values = _descend(pa.chunked_array([batch.column(0)]), path, top).chunk(0)
            if len(values.dictionary):
                return int(_cell_bytes(values.dictionary).max())
        return 0

    def _with_dictionaries(self, leaves: list[str]) -> pq.ParquetFile:
        """The file, read so that some leaves stay the dictionaries they are stored as."""
        if not leaves:
            return self._file
        return pq.ParquetFile(self._source, metadata=self._file.metadata, read_dictionary=leaves)


def _is_under(path: str, column: str) -> bool:
    return f"{path}.".startswith(f"{column}.")


def _descend(values: pa.ChunkedArray, path: str, top: str) -> pa.ChunkedArray:
    """The values at a path below a column, whose own name may hold dots too."""
    for name in path.removeprefix(top).split(".")[1:]:
        values = pa.chunked_array([chunk.field(name) for chunk in values.chunks])
    return values


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _cell_bytes(array: pa.Array) -> NDArray[np.int64]:
    """Bytes of every cell as a plain value, without making it one."""
    kind = array.type
    if types.is_dictionary(kind):
        sizes = np.append(_cell_bytes(array.dictionary), 0)
        indices = array.indices.cast(pa.int64()).fill_null(len(sizes) - 1)
        return np.asarray(sizes[indices.to_numpy(zero_copy_only=False)], np.int64)
    if is_string(kind) or is_binary(kind):
        lengths = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return np.asarray(lengths, np.int64)
    if types.is_struct(kind):
        parts = [_cell_bytes(array.field(number)) for number in range(kind.num_fields)]
        return np.asarray(sum(parts, np.zeros(len(array), np.int64)))
    if types.is_list(kind) or types.is_large_list(kind):
        sums = np.append(0, np.cumsum(_cell_bytes(array.values)))
        return np.asarray(np.diff(sums[array.offsets.to_numpy()]), np.int64)
    if types.is_fixed_size_list(kind):
        length, start = kind.list_size, array.offset * kind.list_size
        values = array.values.slice(start, len(array) * length)
        return np.asarray(_cell_bytes(values).reshape(len(array), length).sum(axis=1))
    width = 0 if types.is_null(kind) else -(-kind.bit_width // 8)
    return np.full(len(array), width, np.int64)


def _taken(array: pa.Array, first: int, end: int, gone: NDArray[np.bool_]) -> pa.Array:
    """Some rows of an array, with null where `gone` is true."""
    if end - first == len(array) and not gone.any():
        return array
    # A copy, because casting a slice of a list casts the values of all of it.
    return array.take(pa.array(np.arange(first, end), mask=gone[first:end]))


def _cuts(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and end of runs of rows that are no larger than a batch, or a single row."""
    sums = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = sums[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(sums, before + _BATCH_BYTES, "right")))
        yield first, end
        first = end
