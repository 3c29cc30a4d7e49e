from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffedit_batch.data.storage import Storage
from diffedit_batch.data.text_files import CAPTIONS, PROMPTS, Kind, Text, encode_texts, read_texts
from diffedit_batch.errors import ManifestError


def texts_of(folder: Path, kind: Kind = PROMPTS) -> list[Text]:
    return list(read_texts(Storage(str(folder)), f"{kind.name}.parquet", kind))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (PROMPTS, Text(("dog",), ("a dog", "dogs"), "", "t5", "digest")),
        (CAPTIONS, Text(("a.png", "10:1"), ("a dog",), "pixels", "blip", "digest")),
    ],
    ids=["prompts", "captions"],
)
def test_texts_come_back_as_they_were_written(tmp_path: Path, kind: Kind, text: Text) -> None:
    assert texts_of(tmp_path, kind) == [], "no file yet"
    (tmp_path / f"{kind.name}.parquet").write_bytes(encode_texts([text], kind))
    assert texts_of(tmp_path, kind) == [text]


def test_a_person_may_leave_out_all_but_the_text(tmp_path: Path) -> None:
    rows = [{"concept": "dog", "prompts": ["a dog"]}, {"concept": "cat", "prompts": ["a cat"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    texts = texts_of(tmp_path)
    assert [text.texts for text in texts] == [("a dog",), ("a cat",)]
    assert all(text.is_corrected for text in texts)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"concept": "dog"}], "column 'prompts' is missing"),
        ([{"concept": "dog", "prompts": ["a dog", " "]}], "row 0 ('dog'): prompts must not be"),
        ([{"concept": "dog", "prompts": []}], "row 0 ('dog'): prompts must not be empty"),
        ([{"concept": 1, "prompts": ["a"]}], "row 0: concept must be text"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_says_why(
    tmp_path: Path, rows: list[dict[str, Any]], problem: str
) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    with pytest.raises(ManifestError) as refused:
        texts_of(tmp_path)
    assert refused.value.problems[0].startswith(problem)
    assert "prompts.parquet" in str(refused.value)


def test_of_many_problems_five_are_shown(tmp_path: Path) -> None:
    rows = [{"concept": str(number), "prompts": [""]} for number in range(7)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    with pytest.raises(ManifestError) as refused:
        texts_of(tmp_path)
    *shown, more = refused.value.problems
    assert (len(shown), more) == (5, "and 2 more")


def test_a_file_that_is_no_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "prompts.parquet").write_bytes(b"concept,prompts")
    with pytest.raises(ManifestError, match="is not Parquet"):
        texts_of(tmp_path)
