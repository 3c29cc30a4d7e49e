from typing import Any

import pyarrow as pa
import pytest

from diffedit_batch.data.columns import resolve_columns
from diffedit_batch.schema import EDIT_PARAMETERS, INPUT_COLUMNS, RESERVED_COLUMNS, RESULT_SCHEMA

BYTES_AND_PATH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(**more: Any) -> pa.Schema:
    columns = {
        "image": pa.string(),
        "source_prompt": pa.string(),
        "target_prompt": pa.string(),
        **more,
    }
    return pa.schema([*columns.items()])


def problems_of(schema: pa.Schema, **mapping: str) -> list[str]:
    return resolve_columns(schema, mapping)[2]


def test_required_columns_suffice() -> None:
    columns, overrides, problems = resolve_columns(table(), {})
    assert columns == {name: name for name in ("image", "source_prompt", "target_prompt")}
    assert overrides == {}
    assert problems == []


def test_every_column_of_ours_is_found() -> None:
    texts = pa.list_(pa.string())
    kinds = {
        "id": pa.int64(),
        "image": BYTES_AND_PATH,
        "source_concept": pa.string(),
        "target_concept": pa.large_string(),
        "mask": pa.large_binary(),
        "seed": pa.uint32(),
    }
    schema = table(**{name: kinds.get(name, texts) for name in INPUT_COLUMNS})
    columns, _, problems = resolve_columns(schema, {})
    assert columns == {name: name for name in INPUT_COLUMNS}
    assert problems == []


@pytest.mark.parametrize("name", EDIT_PARAMETERS)
def test_parameters_are_found_under_both_spellings(name: str) -> None:
    kind = RESULT_SCHEMA.field(name).type
    for spelling in (name, f"edit.{name}"):
        assert resolve_columns(table(**{spelling: kind}), {})[1:] == ({name: spelling}, [])
    [problem] = problems_of(table(**{name: kind, f"edit.{name}": kind}))
    first, second = sorted([name, f"edit.{name}"])
    assert problem == f"columns {first!r} and {second!r} are the same parameter"


def test_columns_can_be_mapped() -> None:
    schema = pa.schema(
        [("file", pa.string()), ("before", pa.string()), ("after", pa.string()), ("cfg", pa.int8())]
    )
    mapping = {
        "image": "file",
        "source_prompt": "before",
        "target_prompt": "after",
        "guidance_scale": "cfg",
    }
    columns, overrides, problems = resolve_columns(schema, mapping)
    assert columns == {k: v for k, v in mapping.items() if k != "guidance_scale"}
    assert overrides == {"guidance_scale": "cfg"}
    assert problems == []


def test_mapped_parameter_beside_its_other_spelling() -> None:
    schema = table(**{"cfg": pa.float64(), "edit.guidance_scale": pa.float64()})
    [problem] = problems_of(schema, guidance_scale="cfg")
    assert problem == "columns 'cfg' and 'edit.guidance_scale' are the same parameter"


def test_prefixed_name_may_be_mapped() -> None:
    schema = table(**{"edit.guidance_scale": pa.float64()})
    _, overrides, problems = resolve_columns(schema, {"guidance_scale": "edit.guidance_scale"})
    assert overrides == {"guidance_scale": "edit.guidance_scale"}
    assert problems == []


def test_mapping_that_leads_nowhere_is_a_problem() -> None:
    problems = problems_of(table(), seed="random_state", guidance_scale="cfg", imgae="file")
    assert len(problems) == 3
    assert problems[0].startswith("input.columns.imgae: no such column of ours")
    assert problems[1].startswith("column 'random_state' is missing (seed)")
    assert problems[2].startswith("column 'cfg' is missing (guidance_scale)")


def test_missing_columns_are_all_named() -> None:
    problems = problems_of(pa.schema([("text", pa.string())]))
    assert [problem.split(";")[0] for problem in problems] == [
        "column 'image' is missing (image)",
        "column 'source_prompt' is missing, and so is 'source_concept'",
        "column 'target_prompt' is missing, and so is 'target_concept'",
    ]
    assert all("there are: text" in problem for problem in problems)


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_names_of_results_are_reserved(name: str) -> None:
    [problem] = problems_of(table(**{name: pa.string()}))
    assert problem == f"column {name!r} is reserved for results; rename it"


def test_unmapped_twin_of_a_mapped_column_is_reserved() -> None:
    [problem] = problems_of(table(file=pa.string()), image="file")
    assert problem == "column 'image' is reserved for results; rename it"


@pytest.mark.parametrize("name", ["image", "note"])
def test_repeated_column_is_a_problem(name: str) -> None:
    schema = pa.schema([*table(note=pa.string()), (name, pa.string())])
    assert problems_of(schema) == [f"column {name!r} appears 2 times"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("id", pa.float64()),
        ("id", pa.binary()),
        ("image", pa.int64()),
        ("image", pa.null()),
        ("image", pa.list_(pa.binary())),
        ("image", pa.struct([("path", pa.string())])),
        ("image", pa.struct([("bytes", pa.string()), ("path", pa.string())])),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.int64())])),
        ("mask", pa.bool_()),
        ("source_prompt", pa.binary()),
        ("source_prompt", pa.null()),
        ("source_concept", pa.list_(pa.string())),
        ("target_prompt", pa.list_(pa.int64())),
        ("target_prompt", pa.list_(pa.list_(pa.string()))),
        ("caption", pa.int64()),
        ("negative_prompt", pa.struct([("text", pa.string())])),
        ("seed", pa.timestamp("s")),
        ("seed", pa.string()),
        ("guidance_scale", pa.string()),
        ("guidance_scale", pa.bool_()),
        ("guidance_scale", pa.timestamp("us")),
        ("num_inference_steps", pa.decimal128(9, 2)),
        ("paste_background", pa.int64()),
        ("mask_rule", pa.int64()),
        ("edit.preset", pa.binary()),
    ],
    ids=str,
)
def test_wrong_types_are_problems(name: str, kind: pa.DataType) -> None:
    [problem] = problems_of(table(**{name: kind}))
    assert problem.startswith(f"column {name!r} (")
    assert f"has type {kind}; expected " in problem


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("id", pa.large_string()),
        ("id", pa.uint64()),
        ("image", pa.binary()),
        ("image", pa.large_binary()),
        ("image", pa.struct([("bytes", pa.binary())])),
        ("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.null())])),
        ("mask", pa.null()),
        ("source_prompt", pa.large_list(pa.large_string())),
        ("caption", pa.null()),
        ("seed", pa.int16()),
        ("guidance_scale", pa.float32()),
        ("guidance_scale", pa.int64()),
        ("num_inference_steps", pa.float64()),
        ("paste_background", pa.null()),
        ("note", pa.list_(pa.struct([("a", pa.timestamp("us")), ("b", pa.date32())]))),
        ("note", pa.decimal128(9, 2)),
        ("note", pa.list_(pa.float32(), 4)),
    ],
    ids=str,
)
def test_plain_types_are_taken(name: str, kind: pa.DataType) -> None:
    assert problems_of(table(**{name: kind})) == []


def test_all_problems_come_at_once() -> None:
    schema = pa.schema(
        [
            ("image", pa.int64()),
            ("source_prompt", pa.string()),
            ("status", pa.string()),
            ("guidance_scale", pa.float64()),
            ("edit.guidance_scale", pa.float64()),
            ("twice", pa.int64()),
            ("twice", pa.int64()),
        ]
    )
    problems = problems_of(schema, idd="x")
    for text in (
        "input.columns.idd",
        "'target_prompt' is missing",
        "'image' (image) has type int64",
        "are the same parameter",
        "'status' is reserved",
        "'twice' appears 2 times",
    ):
        assert sum(text in problem for problem in problems) == 1, text


def test_a_misspelt_parameter_column_is_a_problem() -> None:
    [problem] = problems_of(table(**{"edit.guidance": pa.float64()}))
    assert problem.startswith("column 'edit.guidance': there is no such edit parameter; known are")


def test_either_column_of_a_side_is_enough() -> None:
    concepts = pa.schema(
        [("image", pa.string()), ("word", pa.string()), ("target_concept", pa.string())]
    )
    columns, _, problems = resolve_columns(concepts, {"source_concept": "word"})
    assert problems == []
    assert columns["source_concept"] == "word"
    both = table(source_concept=pa.string(), target_concept=pa.null())
    assert problems_of(both) == []
    [problem] = problems_of(
        concepts.set(2, pa.field("target_concept", pa.null())), source_concept="word"
    )
    assert problem.startswith("column 'target_concept' (target_concept) has type null")
