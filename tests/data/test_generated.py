from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffedit_batch.config import JobConfig
from diffedit_batch.data.generated import Generated, TextTable
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.data.text_files import CAPTIONS, PROMPTS, Kind, Text
from diffedit_batch.errors import RowError

DOG, CAT = ("dog",), ("cat",)


def table_of(folder: Path, kind: Kind = PROMPTS, generator: str = "t5") -> TextTable:
    return TextTable(Storage(str(folder)), kind, lambda: generator, "run")


def read(path: Path) -> list[dict[str, Any]]:
    return list(pq.ParquetFile(path).read().to_pylist())


def correct(path: Path, **changes: Any) -> None:
    """Change the first row of a file, as a person would."""
    rows = read(path)
    rows[0].update(changes)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A `prompts.parquet` with prompts for a cat and a dog."""
    table = table_of(tmp_path)
    table.add([Text(DOG, ("a dog", "dogs")), Text(CAT, ("a cat",))])
    table.merge()
    return tmp_path / "prompts.parquet"


def test_texts_are_found_again_and_the_file_says_who_wrote_them(prompts: Path) -> None:
    table = table_of(prompts.parent)
    assert table.find(DOG) == ("a dog", "dogs")
    assert table.find(("bird",)) is None
    rows = read(prompts)
    assert [row["concept"] for row in rows] == ["cat", "dog"]
    assert {row["generator"] for row in rows} == {"t5"}
    assert not list((prompts.parent / "_diffedit").rglob("*.parquet"))


def test_what_was_flushed_outlives_a_kill(tmp_path: Path) -> None:
    killed = table_of(tmp_path)
    killed.add([Text(DOG, ("a dog",))])
    killed.flush()
    killed.add([Text(CAT, ("a cat",))])
    again = table_of(tmp_path)
    assert again.find(DOG) == ("a dog",)
    assert again.find(CAT) is None
    again.merge()
    assert [row["concept"] for row in read(tmp_path / "prompts.parquet")] == ["dog"]
    assert not list((tmp_path / "_diffedit").rglob("*.parquet"))


def test_a_merge_of_nothing_writes_nothing(prompts: Path) -> None:
    before = prompts.stat().st_mtime_ns
    table_of(prompts.parent).merge()
    assert prompts.stat().st_mtime_ns == before


def test_texts_of_another_generator_are_generated_again(prompts: Path) -> None:
    other = table_of(prompts.parent, generator="larger t5")
    assert other.find(DOG) is None
    assert other.stamp(DOG) != table_of(prompts.parent).stamp(DOG)
    other.add([Text(DOG, ("one dog",))])
    other.merge()
    assert {row["concept"]: row["prompts"] for row in read(prompts)} == {
        "cat": ["a cat"],
        "dog": ["one dog"],
    }


def test_a_correction_holds_whatever_the_generator(prompts: Path) -> None:
    correct(prompts, prompts=["a tabby cat"])
    for generator in ("t5", "larger t5"):
        table = table_of(prompts.parent, generator=generator)
        assert table.find(CAT) == ("a tabby cat",)
        assert table.stamp(CAT) == ["corrected", ("a tabby cat",)]
    assert table_of(prompts.parent).stamp(DOG) == ["generated", "t5"]


def test_a_row_that_a_person_adds_is_a_correction(tmp_path: Path) -> None:
    rows = [{"concept": "dog", "prompts": ["my dog"]}, {"concept": "cat", "prompts": "my cat"}]
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "prompts.parquet")
    assert table_of(tmp_path).find(DOG) == ("my dog",)
    pq.write_table(pa.Table.from_pylist(rows[1:]), tmp_path / "prompts.parquet")
    assert table_of(tmp_path).find(CAT) == ("my cat",)


def test_a_part_of_a_killed_pass_does_not_undo_a_correction(prompts: Path) -> None:
    killed = table_of(prompts.parent)
    killed.add([Text(CAT, ("a cat",))])
    killed.flush()
    correct(prompts, prompts=["a tabby cat"])
    table = table_of(prompts.parent)
    table.merge()
    assert table.find(CAT) == ("a tabby cat",)
    assert read(prompts)[0]["prompts"] == ["a tabby cat"]


def test_stamps_do_not_depend_on_what_was_generated(prompts: Path) -> None:
    known = table_of(prompts.parent)
    stamp = known.stamp(DOG)
    prompts.unlink()
    lost = table_of(prompts.parent)
    assert lost.find(DOG) is None
    assert lost.stamp(DOG) == stamp


def test_a_failure_is_raised_and_forgotten_by_the_next_run(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    table.fail(DOG, RowError("prompts", "DegeneratePrompts", "blank"))
    with pytest.raises(RowError, match="blank"):
        table.find(DOG)
    assert table_of(tmp_path).find(DOG) is None


def test_a_corrected_caption_follows_its_picture(tmp_path: Path) -> None:
    table = table_of(tmp_path, CAPTIONS, "blip")
    table.add([Text(("a.png", "10:1"), ("a photograph of a log",), "pixels of a")])
    table.merge()
    correct(tmp_path / "captions.parquet", caption="a photograph of a dog")

    touched = table_of(tmp_path, CAPTIONS, "blip")
    assert touched.find(("a.png", "10:2")) is None
    touched.add([Text(("a.png", "10:2"), ("a photograph of a log",), "pixels of a")])
    touched.merge()
    [row] = read(tmp_path / "captions.parquet")
    assert (row["image_key"], row["caption"]) == ("10:2", "a photograph of a dog")
    assert table_of(tmp_path, CAPTIONS, "blip").find(("a.png", "10:2")) == (row["caption"],)


def rows_of(
    folder: Path, generated: Generated, of_job: str = "column", **cells: Any
) -> ManifestRow:
    image = folder / "a.png"
    if not image.exists():  # written again, it would count as another
        image.write_bytes(b"aaa")
    row = {"image": "a.png", "source_prompt": None, "target_prompt": "a dog", **cells}
    pq.write_table(pa.Table.from_pylist([row]), folder / "m.parquet")
    tree = {
        "model": {"id": "demo"},
        "edit": {"caption_with": of_job},
        "input": {"manifest": str(folder / "m.parquet")},
        "output": {"uri": str(folder / "output")},
    }
    [found] = Manifest(JobConfig.model_validate(tree), "model@1", generated).rows()
    return found


@pytest.fixture
def generated(tmp_path: Path) -> Generated:
    return Generated(table_of(tmp_path / "output"), table_of(tmp_path / "output", CAPTIONS, "blip"))


def test_a_row_by_concept_waits_for_its_prompts_and_keeps_its_fingerprint(
    tmp_path: Path, generated: Generated
) -> None:
    before = rows_of(tmp_path, generated, source_concept="cat")
    assert before.missing == (("prompts", CAT),)
    generated.prompts.add([Text(CAT, ("a cat", "cats"))])
    after = rows_of(tmp_path, generated, source_concept="cat")
    assert after.missing == ()
    assert after.request is not None
    assert after.request.source_prompt == ("a cat", "cats")
    assert after.asked["source_concept"] == "cat"
    assert after.asked["target_concept"] is None
    assert (after.fingerprint, after.id) == (before.fingerprint, before.id)
    assert rows_of(tmp_path, generated, source_concept="dog").fingerprint != after.fingerprint


def test_a_correction_changes_the_fingerprint_and_not_the_id(
    tmp_path: Path, generated: Generated
) -> None:
    before = rows_of(tmp_path, generated, source_concept="cat")
    rows = [{"concept": "cat", "prompts": ["my cat"]}]
    (tmp_path / "output").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "output" / "prompts.parquet")
    reread = Generated(table_of(tmp_path / "output"), generated.captions)
    after = rows_of(tmp_path, reread, source_concept="cat")
    assert after.request is not None
    assert after.request.source_prompt == ("my cat",)
    assert after.fingerprint != before.fingerprint
    assert after.id == before.id


def test_a_row_whose_concept_failed_keeps_its_fingerprint(
    tmp_path: Path, generated: Generated
) -> None:
    before = rows_of(tmp_path, generated, source_concept="cat")
    generated.prompts.fail(CAT, RowError("prompts", "DegeneratePrompts", "blank"))
    after = rows_of(tmp_path, generated, source_concept="cat")
    assert after.request is None
    assert after.error is not None
    assert after.error.stage == "prompts"
    assert after.fingerprint == before.fingerprint
    assert after.asked["source_concept"] == "cat"


@pytest.mark.parametrize(
    ("cells", "missing"),
    [
        ({}, 1),
        ({"caption": "my words"}, 0),
        ({"caption_with": "column"}, 0),
        ({"caption_with": "source_prompt"}, 0),
        ({"invert_with": "empty"}, 0),
    ],
    ids=str,
)
def test_a_caption_is_wanted_only_where_it_is_used(
    tmp_path: Path, generated: Generated, cells: dict[str, str], missing: int
) -> None:
    row = rows_of(tmp_path, generated, "blip", source_prompt="a cat", **cells)
    assert len(row.missing) == missing


def test_the_caption_is_the_inversion_text(tmp_path: Path, generated: Generated) -> None:
    [(name, key)] = rows_of(tmp_path, generated, "blip", source_prompt="a cat").missing
    assert (name, key[0]) == ("captions", "a.png")
    generated.captions.add([Text(key, ("a photograph of a cat",), "pixels")])
    texts = {}
    for caption_with in ("blip", "column", "source_prompt"):
        cells = {} if caption_with == "blip" else {"caption": "my words"}
        row = rows_of(tmp_path, generated, caption_with, source_prompt="a cat", **cells)
        assert row.request is not None
        texts[caption_with] = row.request.inversion_text
        assert row.asked["caption"] == list(row.request.inversion_text)
        assert row.asked["caption_with"] == caption_with
    assert texts == {
        "blip": ("a photograph of a cat",),
        "column": ("my words",),
        "source_prompt": ("a cat",),
    }
