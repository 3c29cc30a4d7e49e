import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crafted import EXTENSION, repeated, write_pickled, write_without_schema

from diffedit_batch.data import parquet_checks
from diffedit_batch.data.parquet import Block, open_parquet
from diffedit_batch.errors import ManifestError

MIB = 2**20


def written(path: Path, table: pa.Table, **options: Any) -> str:
    pq.write_table(table, path, **options)
    return str(path)


def problems_of(source: str) -> list[str]:
    with pytest.raises(ManifestError) as caught, open_parquet(source):
        pass
    assert source in str(caught.value)
    return caught.value.problems


def blocks_of(
    source: str, columns: list[str] | None = None, row_group: int = 0, **max_bytes: int
) -> list[Block]:
    with open_parquet(source) as table:
        return list(table.blocks(row_group, columns or table.schema.names, max_bytes))


def rows_of(blocks: list[Block]) -> list[dict[str, Any]]:
    return [row for block in blocks for row in block.rows.to_pylist()]


MARK = {"ARROW:extension:name": "x"}


@pytest.mark.parametrize(
    "field",
    [
        pa.field("note", pa.large_binary(), metadata=EXTENSION),
        pa.field("note", pa.list_(pa.field("item", pa.binary(), metadata=MARK))),
        pa.field("note", pa.struct([pa.field("a", pa.binary(), metadata=MARK)])),
        pa.field("note", pa.struct([("a", pa.list_(pa.struct([("b", pa.uuid())])))])),
        pa.field("note", pa.uuid()),
    ],
    ids=["top", "list", "struct", "deep", "canonical"],
)
def test_extension_types_are_refused(tmp_path: Path, field: pa.Field) -> None:
    table = pa.table({"id": ["a"]}).append_column(field, pa.nulls(1, field.type))
    path = written(tmp_path / "t.parquet", table)
    assert problems_of(path) == [
        "column 'note': extension types are refused; write it as a plain type"
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pa.map_(pa.string(), pa.string()),
        pa.binary(16),
        pa.list_(pa.map_(pa.string(), pa.binary())),
        pa.string_view(),
    ],
    ids=str,
)
def test_other_types_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    path = written(tmp_path / "t.parquet", pa.table({"note": pa.nulls(1, kind)}))
    [problem] = problems_of(path)
    assert problem.startswith("column 'note': type ")
    assert problem.endswith(" is not supported")


def test_plain_values_come_as_they_are(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", None, "ü"],
            "long": pa.array(["x", "", None], pa.large_string()),
            "list": pa.array([["p", None], None, []], pa.list_(pa.string())),
            "image": pa.array(
                [{"bytes": b"1", "path": "x"}, None, {"bytes": None, "path": "z"}],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "deep": pa.array([[{"a": "k", "b": 1}], [], None]),
            "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "price": pa.array([1, None, 3], pa.decimal128(9, 2)),
            "nothing": pa.nulls(3),
        }
    )
    path = written(tmp_path / "t.parquet", table, row_group_size=2)
    found = [*blocks_of(path, row_group=0), *blocks_of(path, row_group=1)]
    assert rows_of(found) == table.to_pylist()
    assert [block.start for block in found] == [0, 0]


@pytest.mark.parametrize("index", [pa.int8(), pa.uint16(), pa.int32()], ids=str)
def test_dictionaries_are_read_as_their_values(tmp_path: Path, index: pa.DataType) -> None:
    words = [f"word {number}" for number in range(128)] * 2
    table = pa.table({"word": pa.array(words).cast(pa.dictionary(index, pa.string()))})
    path = written(tmp_path / "t.parquet", table)
    with open_parquet(path) as opened:
        assert opened.schema.field("word").type == pa.string()
    assert rows_of(blocks_of(path)) == [{"word": word} for word in words]


def test_names_are_never_read_as_uris(tmp_path: Path) -> None:
    path = written(tmp_path / "a::b.parquet", pa.table({"id": ["a"]}))
    assert rows_of(blocks_of(path)) == [{"id": "a"}]


def test_a_cell_that_is_too_large_is_left_out_and_named(tmp_path: Path) -> None:
    large = "x" * (MIB + 1)
    table = pa.table(
        {
            "text": ["a", large, "x" * MIB],
            "texts": [["b"], ["c"], [large[:600_000], large[:600_000]]],
            "image": [b"y" * 2 * MIB] * 3,
        }
    )
    [block] = blocks_of(written(tmp_path / "t.parquet", table), image=2 * MIB)
    assert block.too_large == {
        1: "column 'text' holds 1,048,577 bytes, more than 1,048,576",
        2: "column 'texts' holds 1,200,000 bytes, more than 1,048,576",
    }
    assert block.rows.column("text").is_null().to_pylist() == [False, True, False]
    assert block.rows.column("texts").is_null().to_pylist() == [False, False, True]
    assert block.rows.column("image").null_count == 0
    first = blocks_of(str(tmp_path / "t.parquet"), image=2 * MIB - 1)
    assert rows_of(first)[0]["image"] is None


@pytest.mark.parametrize("shape", ["flat", "struct", "list"])
def test_blocks_stay_small_whatever_a_dictionary_says(tmp_path: Path, shape: str) -> None:
    value, num_rows = "x" * MIB, 500
    words = repeated(value, num_rows)
    if shape == "struct":
        words = pa.StructArray.from_arrays([words], ["path"])
    elif shape == "list":
        words = pa.ListArray.from_arrays(pa.array(range(num_rows + 1), pa.int32()), words)
    path = tmp_path / "t.parquet"
    write_without_schema(path, pa.table({"word": words}), compression="zstd")
    assert path.stat().st_size < 20_000
    start = 0
    with open_parquet(str(path)) as table:
        for block in table.blocks(0, ["word"], {"word": 2 * MIB}):
            assert block.start == start
            assert block.rows.nbytes <= 65 * MIB
            start += block.rows.num_rows
    assert start == num_rows


def test_a_column_read_whole_stays_a_dictionary_where_it_must(tmp_path: Path) -> None:
    words = repeated(b"x" * MIB, 3_000)
    table = pa.table({"a.b": pa.StructArray.from_arrays([words], ["bytes"]), "id": range(3_000)})
    write_without_schema(tmp_path / "t.parquet", table)
    with open_parquet(str(tmp_path / "t.parquet")) as opened:
        values = opened.leaf(0, "a.b.bytes")
    assert values.nbytes < 3 * MIB
    assert values[2_999].as_py() == b"x" * MIB


BOMB = """
import resource, sys
from diffedit_batch.data.parquet import open_parquet
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, num_rows, num_large = peak(), 0, 0
with open_parquet(sys.argv[1]) as table:
    for block in table.blocks(0, ["word"], {}):
        block.rows.to_pylist()
        num_rows, num_large = num_rows + block.rows.num_rows, num_large + len(block.too_large)
print(num_rows, num_large, peak() - before)
"""


@pytest.mark.parametrize(
    ("value", "num_rows", "num_large"),
    [("x" * 20_000, 100_000, 0), ("x" * 8 * MIB, 400, 400), (["x" * 8_000] * 9, 30_000, 0)],
    ids=["2 GB of prompts", "3 GB of giants", "2 GB in lists"],
)
def test_a_bomb_does_not_blow_memory(
    tmp_path: Path, value: Any, num_rows: int, num_large: int
) -> None:
    path = tmp_path / "t.parquet"
    if isinstance(value, list):
        words = repeated(value[0], num_rows * len(value))
        ends = np.arange(0, num_rows * len(value) + 1, len(value), dtype=np.int32)
        cells = pa.ListArray.from_arrays(pa.array(ends), words)
    else:
        cells = repeated(value, num_rows)
    write_without_schema(path, pa.table({"word": cells}), compression="zstd")
    assert path.stat().st_size < 100_000
    command = [sys.executable, "-c", BOMB, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found_rows, found_large, peak_mib = map(int, done.stdout.split())
    assert (found_rows, found_large) == (num_rows, num_large)
    assert peak_mib < 600


def test_too_much_in_one_row_group_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"n": pa.array(np.zeros(100_000, np.int64))})
    path = written(tmp_path / "t.parquet", table, row_group_size=50_000, use_dictionary=False)
    assert rows_of(blocks_of(path, row_group=1)) == [{"n": 0}] * 50_000
    monkeypatch.setattr(parquet_checks, "MAX_GROUP_BYTES", 399_999)
    problems = problems_of(path)
    assert [problem[:18] for problem in problems] == ["row group 0 holds ", "row group 1 holds "]
    assert "Write it with smaller row groups" in problems[0]
    monkeypatch.setattr(parquet_checks, "MAX_GROUP_BYTES", 10**9)
    monkeypatch.setattr(parquet_checks, "MAX_GROUP_VALUES", 49_999)
    assert len(problems_of(path)) == 2
    monkeypatch.setattr(parquet_checks, "MAX_ROWS", 99_999)
    assert problems_of(path) == ["has 100,000 rows, more than 99,999; cut it in several"]


def test_what_is_written_by_this_job_may_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "t.parquet", pa.table({"n": [1, 2]}))
    monkeypatch.setattr(parquet_checks, "MAX_GROUP_BYTES", 1)
    with open_parquet(path, check_sizes=False) as table:
        assert table.read(["n"]).column("n").to_pylist() == [1, 2]


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", pa.table({str(n): [n] for n in range(2_001)}))
    assert problems_of(path) == ["has 2,001 columns, more than 2,000"]


def test_a_footer_that_is_too_large_is_refused(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"]}).replace_schema_metadata({"note": "x" * 65 * MIB})
    [problem] = problems_of(written(tmp_path / "t.parquet", table))
    assert "is not Parquet" in problem


def test_encodings_that_hide_sizes_are_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"column_encoding": {"word": "DELTA_BYTE_ARRAY"}}
    path = written(
        tmp_path / "t.parquet", pa.table({"word": ["a"]}), use_dictionary=False, **options
    )
    [problem] = problems_of(path)
    assert problem.startswith("column 'word' is encoded as DELTA_BYTE_ARRAY")


@pytest.mark.parametrize("data", [b"", b"PAR1PAR1", b"id\n1\n", b"PAR1" + b"\xff" * 99 + b"PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(data)
    [problem] = problems_of(str(tmp_path / "t.parquet"))
    assert problem.startswith("is not Parquet: ")


def test_an_open_file_is_read_too() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"]}), buffer)
    with open_parquet(buffer) as table:
        assert table.read(["id"]).column("id").to_pylist() == ["a"]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_the_crafted_column_would_run_where_nothing_checks_it(tmp_path: Path) -> None:
    """The control of the tests of entry points: without it they prove nothing."""
    table = pa.table({"id": ["a"]})
    write_pickled(tmp_path / "t.parquet", table, "prompt", tmp_path / "marker")
    read = "import sys, ray.data, pyarrow.parquet as pq; pq.read_table(sys.argv[1]).to_pylist()"
    run_python(read, str(tmp_path / "t.parquet"))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("before", ["", "import ray.data"], ids=["plain", "after ray.data"])
def test_the_crafted_column_is_refused_at_once(tmp_path: Path, before: str) -> None:
    table = pa.table({"id": ["a"]})
    write_pickled(tmp_path / "t.parquet", table, "prompt", tmp_path / "marker")
    code = f"""
import sys
{before or "pass"}
from diffedit_batch.data.parquet import open_parquet
with open_parquet(sys.argv[1]) as table:
    table.read(table.schema.names).to_pylist()
"""
    done = run_python(code, str(tmp_path / "t.parquet"))
    assert "column 'prompt': extension types are refused" in done.stderr
    assert not (tmp_path / "marker").exists()
