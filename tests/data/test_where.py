import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffedit_batch.config import JobConfig
from diffedit_batch.data.lookup import ImageFiles
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.where import RowFilter
from diffedit_batch.errors import ConfigError

TABLE = pa.table(
    {
        "split": ["train", "test", None],
        "score": [0.2, 0.9, 0.7],
        "tags": pa.array([["a"], [], ["a", "b"]]),
        "image": [b"x", b"y", b"z"],
        "we ird": pa.array(["x", "y", "x"]).dictionary_encode(),
        "is_good": [True, False, None],
    }
)


def matches(expression: str, table: pa.Table = TABLE) -> list[bool]:
    row_filter = RowFilter(expression, table.schema)
    batches = table.select(row_filter.columns).to_batches()
    return [bool(value) for value in row_filter.mask(batches)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("split = 'train'", [True, False, False]),
        ("split <> 'train'", [False, True, False]),
        ("split IS NULL OR score > 0.8", [False, True, True]),
        ("Split IN ('train', 'test') AND NOT score < 0.5", [False, True, False]),
        ("list_contains(tags, 'b')", [False, False, True]),
        ("\"we ird\" = 'x'", [True, False, True]),
        ("is_good", [True, False, False]),
        ("true", [True, True, True]),
        ("false", [False, False, False]),
    ],
)
def test_rows_match_where_the_condition_is_true(expression: str, expected: list[bool]) -> None:
    assert matches(expression) == expected


def test_only_the_columns_it_names_are_needed() -> None:
    def columns(expression: str) -> list[str]:
        return RowFilter(expression, TABLE.schema).columns

    assert columns("score > 0.5") == ["score"]
    assert columns("split = 'image' AND score > 0") == ["split", "score"]
    assert columns("image = 'x'::BLOB") == ["image"]
    assert columns("true") == []


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("splt = 'train'", 'Referenced column "splt" not found'),
        ("score >", "syntax error at or near"),
        ("", "SELECT clause without selection list"),
        ("score", "is no condition"),
        ("score > 1, score < 0", "single expression"),
        ("max(score) > 0", "cannot contain aggregates"),
        ("row_number() OVER () = 1", "cannot contain window functions"),
        ("score > 0; DROP TABLE x", "modifiers"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "Cannot access file"),
    ],
)
def test_what_is_no_condition_on_rows_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RowFilter(expression, TABLE.schema)
    problem, known = caught.value.problems
    assert message in problem
    assert known == "columns of the manifest: split, score, tags, image, we ird, is_good"
    assert f"--where {expression}" in str(caught.value)


def test_a_condition_that_fails_on_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="Could not convert string 'train'"):
        matches("CAST(split AS INTEGER) = 1")


def test_names_that_differ_in_case_only() -> None:
    with pytest.raises(ConfigError, match="differ in case only"):
        matches("n = 1", pa.table({"n": [1], "N": [2]}))


def test_without_duckdb_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'diffedit_batch\[where\]'"):
        matches("true")


def manifest_of(
    folder: Path, rows: list[dict[str, Any]], where: str | None = None, row_group_size: int = 1
) -> Manifest:
    path = folder / "manifest.parquet"
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, path, row_group_size=row_group_size, compression="zstd")
    tree = {"model": {"id": "demo"}, "input": {"manifest": str(path)}, "output": {"uri": "out"}}
    return Manifest(JobConfig.model_validate(tree), "model@1", where=where)


def rows_with_bytes(*splits: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{number}",
            "image": b"x" * 500,
            "source_prompt": "a cat",
            "target_prompt": "a dog",
            "split": split,
        }
        for number, split in enumerate(splits)
    ]


def test_a_manifest_gives_the_rows_that_match(tmp_path: Path) -> None:
    rows = rows_with_bytes("train", "test", "train")
    manifest = manifest_of(tmp_path, rows, where="split = 'train'")
    assert manifest.num_rows == 2
    found = list(manifest.rows())
    assert [row.id for row in found] == ["0", "2"]
    everything = {row.id: row for row in manifest_of(tmp_path, rows).rows()}
    assert all(row.fingerprint == everything[row.id].fingerprint for row in found)
    assert [row.request.image.row_group for row in found if row.request and row.request.image] == [
        0,
        2,
    ]


def test_images_of_rows_that_do_not_match_are_not_read(tmp_path: Path) -> None:
    rows = rows_with_bytes("test", "train")
    manifest_of(tmp_path, rows)
    path = tmp_path / "manifest.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert column.path_in_schema == "image"
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)
    tree = {"model": {"id": "demo"}, "input": {"manifest": str(path)}, "output": {"uri": "out"}}
    config = JobConfig.model_validate(tree)
    assert [row.id for row in Manifest(config, "", where="split = 'train'").rows()] == ["1"]
    with pytest.raises(Exception, match="is broken"):
        list(Manifest(config, "").rows())


def test_images_of_rows_that_do_not_match_are_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_with_bytes("test", "train", "test")
    for number, row in enumerate(rows):
        row["image"] = f"{number}.png"
    manifest = manifest_of(tmp_path, rows, where="split = 'train'", row_group_size=3)
    asked: list[str] = []

    def look_up(files: ImageFiles, path: str) -> tuple[str, str]:
        asked.append(path)
        return path, "key"

    monkeypatch.setattr(ImageFiles, "look_up", look_up)
    assert len(list(manifest.rows())) == 1
    assert asked == ["1.png"]


def test_derived_ids_do_not_depend_on_the_filter(tmp_path: Path) -> None:
    rows = rows_with_bytes("test", "train", "test")
    for row in rows:
        del row["id"]
    ids = [row.id for row in manifest_of(tmp_path, rows).rows()]
    assert len(set(ids)) == 3
    found = manifest_of(tmp_path, rows, where="split = 'train'").rows()
    assert [row.id for row in found] == [ids[1]]
