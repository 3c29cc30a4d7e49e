"""What a Parquet file may hold to be read: plain types, in numbers and sizes that fit memory."""

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

MAX_ROWS = 100_000_000
MAX_COLUMNS = 2_000
MAX_GROUP_BYTES = 2_000_000_000
MAX_GROUP_VALUES = 250_000_000
_EXTENSION_KEY = b"ARROW:extension:name"


def is_string(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    return bool(types.is_string(kind) or types.is_large_string(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type holds bytes."""
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def type_problems(schema: pa.Schema) -> list[str]:
    """Why columns may not be read; names every one."""
    return [
        f"column {field.name!r}: {problem}"
        for field in schema
        if (problem := _plain_type_problem(field))
    ]


def size_problems(metadata: pq.FileMetaData) -> list[str]:
    """Why a file is too large to be read, by what its footer says."""
    if metadata.num_columns > MAX_COLUMNS:
        return [f"has {metadata.num_columns:,} columns, more than {MAX_COLUMNS:,}"]
    if not 0 <= metadata.num_rows <= MAX_ROWS:
        return [f"has {metadata.num_rows:,} rows, more than {MAX_ROWS:,}; cut it in several"]
    problems = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        size = max(group.total_byte_size, sum(chunk.total_uncompressed_size for chunk in chunks))
        num_values = max((chunk.num_values for chunk in chunks), default=0)
        if size > MAX_GROUP_BYTES or num_values > MAX_GROUP_VALUES:
            problems.append(
                f"row group {number} holds {size:,} bytes and up to {num_values:,} values in a"
                f" column; at most {MAX_GROUP_BYTES:,} and {MAX_GROUP_VALUES:,} are read."
                " Write it with smaller row groups"
            )
        problems += [
            f"column {chunk.path_in_schema!r} is encoded as DELTA_BYTE_ARRAY, which hides how large"
            " its values are; write it with another encoding"
            for chunk in chunks
            if "DELTA_BYTE_ARRAY" in chunk.encodings
        ]
    return list(dict.fromkeys(problems))


def _plain_type_problem(field: pa.Field) -> str:
    """Why a column's type may not be read; empty where it may.

    An extension type whose library is not imported looks like the plain type it is stored as; the
    field's metadata still tells, and so do fields within fields.
    """
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType) or _EXTENSION_KEY in (field.metadata or {}):
        return "extension types are refused; write it as a plain type"
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_nested(kind):
        is_known = types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind)
        if not (is_known or types.is_fixed_size_list(kind)):
            return f"type {kind} is not supported"
        children = [kind.field(i) for i in range(kind.num_fields)]
        return next((p for p in map(_plain_type_problem, children) if p), "")
    is_plain = (
        is_string(kind)
        or is_binary(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_temporal(kind)
        or types.is_null(kind)
        or types.is_decimal(kind)
    )
    return "" if is_plain else f"type {kind} is not supported"
