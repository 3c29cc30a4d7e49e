"""The results as a gallery shows them: one row per id, in an order people expect, and as
JavaScript.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import pyarrow as pa
from pyarrow import types

from diffedit_batch.data.columns import VARIANT_COLUMNS
from diffedit_batch.data.current import CurrentRows
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.parquet_checks import is_binary, is_string

_MODEL_SCORES = ("clip_text", "clip_direction", "clip_image", "lpips")
SCORES = ("mask_coverage", "background_psnr", "map_contrast", *_MODEL_SCORES, "seconds")
"""Columns to sort and filter by; those an output lacks are left out."""

MAX_TEXT = 4_000
"""Characters shown of a text."""

_LARGEST_NUMBER = 2**53
_NUM_MESSAGES = 5
_MAX_VARIANTS = 100
"""Columns of a table; a column with more values means something else."""


def read_rows(ledger: Ledger) -> pa.Table:
    """The current rows, ordered by id as people count. Columns of bytes are left out.

    Raises:
        StorageError: there are no results, or they cannot be read, or do not fit together.
    """
    rows = CurrentRows(ledger, lambda field: not _holds_bytes(field.type))
    table = pa.concat_tables([rows.schema.empty_table(), *rows.tables()])
    ids = table["id"].to_pylist()
    places = sorted(range(len(ids)), key=lambda place: _natural(ids[place]))
    return table.take(pa.array(places, pa.int64()))


def scores_of(table: pa.Table) -> list[str]:
    """Those of `SCORES` there are; those of models only where these were asked."""
    return [
        name
        for name in SCORES
        if name in table.column_names
        and (name not in _MODEL_SCORES or table[name].null_count < table.num_rows)
    ]


def count_reasons(table: pa.Table) -> dict[str, int]:
    """Rows by why they are not good enough, the most frequent first, and `passes`: those that are.
    Empty where all are.
    """
    cells = table["filter_reasons"].to_pylist() if "filter_reasons" in table.column_names else []
    reasons = Counter(reason for cell in cells for reason in cell or ())
    passing = {"passes": sum(cell == [] for cell in cells)}
    return {**passing, **dict(reasons.most_common())} if reasons else {}


def failures(table: pa.Table) -> list[dict[str, Any]]:
    """Causes of failed rows, the most frequent first: `stage`, `type`, `count`, and the most
    frequent `messages` with their counts.
    """
    causes: dict[tuple[str, str], Counter[str]] = {}
    columns = ("status", "error_stage", "error_type", "error_message")
    cells = zip(*(table[name].to_pylist() for name in columns), strict=True)
    for status, stage, kind, message in cells:
        if status == "failed":
            causes.setdefault((stage, kind), Counter())[message[:MAX_TEXT]] += 1
    found = [
        {
            "stage": stage,
            "type": kind,
            "count": messages.total(),
            "messages": messages.most_common(_NUM_MESSAGES),
            "numMessages": len(messages),
        }
        for (stage, kind), messages in causes.items()
    ]
    return sorted(found, key=lambda cause: (-cause["count"], cause["stage"], cause["type"]))


def variants(table: pa.Table) -> list[str]:
    """What is different between rows that are variants of one, in ascending order; none where the
    table has no such rows, or far too many.
    """
    if not all(
        name in table.column_names and is_string(table.schema.field(name).type)
        for name in VARIANT_COLUMNS
    ):
        return []
    labels = set(table[VARIANT_COLUMNS[1]].to_pylist()) - {None}
    return sorted(labels, key=_by_values) if len(labels) <= _MAX_VARIANTS else []


def script(call: str, *arguments: str) -> bytes:
    """A file that calls a function of the page with arguments that are JSON already. Pages without
    a server can load data in no other way.
    """
    return f"{call}({','.join(arguments)});\n".encode("ascii")


def encode_column(values: Iterable[Any]) -> str:
    """Cells as JSON: `{"all": cell}`, or `{"values": [...], "at": [...]}` where they repeat, or a
    list.
    """
    cells = [to_json(value) for value in values]
    places: dict[str, int] = {}
    at = [places.setdefault(cell, len(places)) for cell in cells]
    if len(places) == 1:
        return f'{{"all":{cells[0]}}}'
    if 2 * len(places) <= len(cells):
        return f'{{"values":[{",".join(places)}],"at":{json.dumps(at, separators=(",", ":"))}}}'
    return f"[{','.join(cells)}]"


def encode_columns(columns: dict[str, Iterable[Any]]) -> str:
    """An object of `encode_column`."""
    items = (f"{to_json(name)}:{encode_column(values)}" for name, values in columns.items())
    return f"{{{','.join(items)}}}"


def to_json(value: Any) -> str:
    """JSON of a cell, in ASCII. What JavaScript would round, or cannot write, is text."""
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}…"
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST_NUMBER else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _holds_bytes(kind: pa.DataType) -> bool:
    if types.is_nested(kind):
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return is_binary(kind) or bool(types.is_fixed_size_binary(kind))


def _by_values(label: str) -> list[tuple[str, float, str]]:
    """Orders `threshold=0.35` before `threshold=0.5`."""
    keys = []
    for part in label.split(", "):
        name, _, value = part.partition("=")
        try:
            keys.append((name, float(value), ""))
        except ValueError:
            keys.append((name, math.inf, value))
    return keys


def _natural(row_id: str) -> list[tuple[int, int, str]]:
    """Orders `row-2` before `row-10`."""
    parts = re.split(r"([0-9]+)", row_id)
    keys = []
    for number, part in enumerate(parts):
        digits = part.lstrip("0") if number % 2 else ""
        keys.append((number % 2, len(digits), digits or part.casefold()))
    return keys
