"""Which columns a manifest must and may have, and of which types."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
from pyarrow import types

from diffedit_batch.data.parquet_checks import is_binary, is_string
from diffedit_batch.schema import (
    EDIT_PARAMETERS,
    INPUT_COLUMNS,
    RESERVED_COLUMNS,
    RESULT_SCHEMA,
)

SIDES = ("source", "target")
"""What an edit leads from and to; each is given by prompts or by a concept."""

VARIANT_COLUMNS = ("variant_of", "variant")
"""Carried columns of a manifest in which a row stands several times: which row it is, and what is
different. The gallery shows such rows side by side.
"""

CONCEPT_COLUMNS = tuple(f"{side}_concept" for side in SIDES)
TEXT_COLUMNS = (
    "source_prompt",
    "target_prompt",
    "caption",
    "negative_prompt",
    "source_negative_prompt",
)
_EXPECTED = {
    "id": "expected text or integers",
    "image": "expected text (a path), bytes, or a struct of bytes and path",
    "mask": "expected text (a path), bytes, or a struct of bytes and path",
    "seed": "expected integers",
    **dict.fromkeys(TEXT_COLUMNS, "expected text or a list of texts"),
    **dict.fromkeys(CONCEPT_COLUMNS, "expected text"),
    **{
        name: {pa.string(): "expected text", pa.bool_(): "expected booleans"}.get(
            RESULT_SCHEMA.field(name).type, "expected numbers"
        )
        for name in EDIT_PARAMETERS
    },
}


def resolve_columns(
    schema: pa.Schema, mapping: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """What a manifest calls our columns and parameters, and every problem with its columns.

    Args:
        schema: of the manifest.
        mapping: `input.columns` of the config.

    Returns:
        Manifest names by our names, manifest names by edit parameter, problems.
    """
    known = {*INPUT_COLUMNS, *EDIT_PARAMETERS}
    problems = [
        f"input.columns.{ours}: no such column of ours; known are"
        f" {', '.join(INPUT_COLUMNS)} and the keys of edit"
        for ours in mapping
        if ours not in known
    ]
    for ours in (*INPUT_COLUMNS, *EDIT_PARAMETERS):
        theirs = mapping.get(ours, ours)
        if theirs not in schema.names and (ours == "image" or ours in mapping):
            problems.append(
                f"column {theirs!r} is missing ({ours}); there are: {', '.join(schema.names)}."
                f" Another name can be given as input.columns.{ours}"
            )
    columns = {name: mapping.get(name, name) for name in INPUT_COLUMNS}
    columns = {ours: theirs for ours, theirs in columns.items() if theirs in schema.names}
    required = {"image"}
    for side in SIDES:
        prompt, concept = f"{side}_prompt", f"{side}_concept"
        found = {prompt, concept}.intersection(columns)
        if len(found) == 1:
            required |= found
        elif not found and not {prompt, concept}.intersection(mapping):
            problems.append(
                f"column {prompt!r} is missing, and so is {concept!r}; there are:"
                f" {', '.join(schema.names)}. Another name can be given as input.columns.{prompt}"
            )
    used = {*columns.values()}
    overrides: dict[str, str] = {}
    for name in EDIT_PARAMETERS:
        spellings = {mapping.get(name, name), f"edit.{name}"}.intersection(schema.names)
        used |= spellings
        if spellings:
            overrides[name], *others = sorted(spellings)
            problems += [
                f"columns {overrides[name]!r} and {other!r} are the same parameter"
                for other in others
            ]
    num_columns = Counter(schema.names)
    for ours, theirs in (columns | overrides).items():
        if num_columns[theirs] > 1:  # a problem of its own, below
            continue
        kind = schema.field(theirs).type
        is_left_out = types.is_null(kind) and ours not in required
        if not is_left_out and not _has_type(kind, ours):
            problems.append(f"column {theirs!r} ({ours}) has type {kind}; {_EXPECTED[ours]}")
    problems += [
        f"column {name!r}: there is no such edit parameter; known are {', '.join(EDIT_PARAMETERS)}"
        for name in schema.names
        if name.startswith("edit.") and name not in used
    ]
    problems += [
        f"column {name!r} is reserved for results; rename it"
        for name in schema.names
        if name not in used and (name in RESERVED_COLUMNS or name in known)
    ]
    problems += [
        f"column {name!r} appears {count} times" for name, count in num_columns.items() if count > 1
    ]
    return columns, overrides, problems


def type_conflicts(
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


def _has_type(kind: pa.DataType, ours: str) -> bool:
    if ours in ("image", "mask"):
        if types.is_struct(kind):
            fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
            path = fields.get("path", pa.null())
            has_path = is_string(path) or types.is_null(path)
            return "bytes" in fields and is_binary(fields["bytes"]) and has_path
        return is_string(kind) or is_binary(kind)
    if ours == "id":
        return is_string(kind) or types.is_integer(kind)
    if ours == "seed":
        return bool(types.is_integer(kind) or types.is_floating(kind))
    if ours in EDIT_PARAMETERS:
        wanted = RESULT_SCHEMA.field(ours).type
        if is_string(wanted) or types.is_boolean(wanted):
            return kind == wanted or (is_string(wanted) and is_string(kind))
        return bool(types.is_integer(kind) or types.is_floating(kind))
    if ours in TEXT_COLUMNS and (types.is_list(kind) or types.is_large_list(kind)):
        kind = kind.value_type
    return is_string(kind)
