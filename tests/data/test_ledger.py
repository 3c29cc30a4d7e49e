from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffedit_batch.data.ledger import SMALL_PART_ROWS, Ledger, read_json, row_key, version_key
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.errors import StorageError

FIRST, SECOND, THIRD = (f"2026010{day}T000000-abcdef" for day in (1, 2, 3))


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An output folder on a disk, and one on a stand-in for an object store."""
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    return Storage(f"memory://{tmp_path.name}/out")


def edited(row_id: str, fingerprint: str = "f", **more: Any) -> dict[str, Any]:
    picture, mask = file_names(row_id, fingerprint)
    return {
        "id": row_id,
        "fingerprint": fingerprint,
        "status": "edited",
        "edited_file_name": picture,
        "mask_file_name": mask,
        **more,
    }


def failed(row_id: str, fingerprint: str = "f", **more: Any) -> dict[str, Any]:
    row = edited(row_id, fingerprint, **more)
    return {**row, "status": "failed", "edited_file_name": "", "mask_file_name": ""}


def commit(storage: Storage, run_id: str, *parts: list[dict[str, Any]]) -> list[str]:
    """The parts of one run, with their pictures."""
    ledger = Ledger(storage, run_id)
    names = []
    for rows in parts:
        for row in rows:
            for name in (row["edited_file_name"], row["mask_file_name"]):
                if name:
                    storage.write(name, row["id"].encode())
        names.append(ledger.commit(pa.Table.from_pylist(rows)))
    return names


def wanted(*rows: tuple[str, str]) -> dict[bytes, bytes]:
    return {row_key(row_id): version_key(row_id, fingerprint) for row_id, fingerprint in rows}


def results(storage: Storage) -> list[dict[str, Any]]:
    rows = []
    for name in storage.names("results", ".parquet"):
        with storage.fs.open(storage.full(f"results/{name}"), "rb") as file:
            rows += pq.ParquetFile(file).read().to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def content(storage: Storage) -> dict[str, bytes]:
    root = storage.full("").rstrip("/")
    return {
        path.removeprefix(f"{root}/"): storage.fs.cat_file(path) for path in storage.fs.find(root)
    }


def pictures(storage: Storage) -> set[str]:
    return {name for name in content(storage) if name.endswith(".png")}


def test_keys_tell_rows_and_versions_apart() -> None:
    assert row_key("a") != row_key("b")
    keys = {version_key(*pair) for pair in (("a", "f"), ("b", "f"), ("a", "g"), ("af", ""))}
    assert len(keys) == 4
    assert all(len(key) == 16 for key in keys)


def test_empty_output(storage: Storage) -> None:
    ledger = Ledger(storage, FIRST)
    assert ledger.committed() == {}
    balance = ledger.finalize({})
    assert (balance.counts, balance.parts) == ({}, {})
    assert content(storage) == {}


def test_parts_are_named_after_run_and_order(storage: Storage) -> None:
    names = commit(storage, FIRST, [edited("a")], [edited("b")])
    assert names == [f"part-{FIRST}-000001.parquet", f"part-{FIRST}-000002.parquet"]
    assert storage.names("results", "") == names


def test_parts_are_whole_parquet_files(storage: Storage) -> None:
    rows = [edited("a", note="x"), edited("b", note=None)]
    commit(storage, FIRST, rows)
    assert results(storage) == rows


def test_committed_says_whether_all_a_row_has_is_failures(storage: Storage) -> None:
    commit(
        storage,
        FIRST,
        [edited("good"), failed("bad"), failed("later"), edited("earlier"), failed("other", "f")],
    )
    commit(
        storage, SECOND, [edited("later"), failed("earlier"), failed("bad"), edited("other", "g")]
    )
    assert Ledger(storage, THIRD).committed() == {
        version_key("good", "f"): False,
        version_key("bad", "f"): True,
        version_key("later", "f"): False,
        version_key("earlier", "f"): False,
        version_key("other", "f"): True,
        version_key("other", "g"): False,
    }


def test_same_request_of_two_ids_is_two_results(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", "same"), edited("b", "same")])
    balance = Ledger(storage, SECOND).finalize(wanted(("a", "same"), ("b", "same")))
    assert balance.counts == {"edited": 2}
    assert [row["id"] for row in results(storage)] == ["a", "b"]


def test_success_beats_failure_in_either_order(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a"), failed("b")])
    commit(storage, SECOND, [failed("a"), edited("b")])
    balance = Ledger(storage, THIRD).finalize(wanted(("a", "f"), ("b", "f")))
    assert balance.counts == {"edited": 2}
    assert [row["status"] for row in results(storage)] == ["edited", "edited"]


def test_wanted_version_beats_newer_ones(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", "old"), failed("b", "old")])
    commit(storage, SECOND, [edited("a", "new"), edited("b", "new")])
    Ledger(storage, THIRD).finalize(wanted(("a", "old"), ("b", "old")))
    assert [(row["fingerprint"], row["status"]) for row in results(storage)] == [
        ("old", "edited"),
        ("old", "failed"),
    ]


def test_newest_of_equals_wins(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", note=1)])
    commit(storage, SECOND, [edited("a", note=2)], [edited("a", note=3), edited("a", note=4)])
    Ledger(storage, THIRD).finalize(wanted(("a", "f")))
    assert [row["note"] for row in results(storage)] == [4]


def test_ids_not_asked_for_keep_their_newest_row(storage: Storage) -> None:
    commit(storage, FIRST, [edited("gone", "1"), edited("stays", "1"), failed("lost", "1")])
    commit(storage, SECOND, [edited("gone", "2")])
    balance = Ledger(storage, THIRD).finalize(wanted(("stays", "1")))
    assert balance.counts == {"edited": 2, "failed": 1}
    assert [(row["id"], row["fingerprint"]) for row in results(storage)] == [
        ("gone", "2"),
        ("lost", "1"),
        ("stays", "1"),
    ]


def test_nothing_asked_deletes_nothing(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a"), edited("b")])
    before = content(storage)
    Ledger(storage, SECOND).finalize({})
    assert content(storage) == before


def test_small_parts_are_merged(storage: Storage) -> None:
    rows = [edited(f"{number:02}", note=number) for number in range(12)]
    commit(storage, FIRST, *([row] for row in rows))
    balance = Ledger(storage, SECOND).finalize(wanted(*((row["id"], "f") for row in rows)))
    assert balance.parts == {f"part-{SECOND}-000001.parquet": 12}
    assert storage.names("results", ".parquet") == list(balance.parts)
    assert results(storage) == rows


def test_merged_parts_follow_those_of_the_run(storage: Storage) -> None:
    ledger = Ledger(storage, FIRST)
    for row_id in ("a", "b"):
        ledger.commit(pa.Table.from_pylist([edited(row_id)]))
    assert ledger.finalize({}).parts == {f"part-{FIRST}-000003.parquet": 2}


def test_columns_that_came_later_are_kept(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a")], [edited("b", note=None)], [edited("c", note="x")])
    Ledger(storage, SECOND).finalize({})
    assert [row["note"] for row in results(storage)] == [None, None, "x"]


def test_columns_that_do_not_fit_are_a_clear_error(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", note=1)], [edited("b", note="x")])
    before = content(storage)
    with pytest.raises(StorageError, match="note"):
        Ledger(storage, SECOND).finalize({})
    assert content(storage) == before


def test_large_parts_are_left_alone(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    large = pa.table(
        {
            "id": [str(number) for number in range(SMALL_PART_ROWS)],
            **{
                name: pa.array([text] * SMALL_PART_ROWS)
                for name, text in edited("x").items()
                if name != "id"
            },
        }
    )
    first = Ledger(storage, FIRST).commit(large)
    before = storage.read(f"results/{first}")
    commit(storage, SECOND, [edited("a")], [edited("b")])
    balance = Ledger(storage, THIRD).finalize({})
    assert balance.parts == {first: SMALL_PART_ROWS, f"part-{THIRD}-000001.parquet": 2}
    assert storage.read(f"results/{first}") == before

    commit(storage, f"{THIRD}-2", [edited("0", "new")])
    balance = Ledger(storage, f"{THIRD}-3").finalize(wanted(("0", "new")))
    assert sum(balance.parts.values()) == balance.counts["edited"] == SMALL_PART_ROWS + 2
    assert first not in balance.parts


def test_finalizing_again_changes_no_byte(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a"), failed("b")], [edited("c")])
    current = wanted(("a", "f"), ("b", "f"), ("c", "f"))
    first = Ledger(storage, SECOND).finalize(current)
    before = content(storage)
    second = Ledger(storage, THIRD).finalize(current)
    assert content(storage) == before
    assert second == first


def test_part_without_rows_does_no_harm(storage: Storage) -> None:
    [name] = commit(storage, FIRST, [edited("a")])
    table = pa.Table.from_pylist([edited("a")]).slice(0, 0)
    storage.remove([f"results/{name}"])
    Ledger(storage, FIRST).commit(table)
    assert Ledger(storage, SECOND).finalize({}).counts == {}
    commit(storage, SECOND, [edited("a")])
    assert Ledger(storage, THIRD).finalize({}).counts == {"edited": 1}


def test_pictures_of_superseded_rows_are_removed(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", "old"), edited("b", "old")])
    commit(storage, SECOND, [edited("a", "new")])
    Ledger(storage, THIRD).finalize(wanted(("a", "new"), ("b", "old")))
    assert pictures(storage) == {*file_names("a", "new"), *file_names("b", "old")}


def test_pictures_that_are_still_listed_stay(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a")])
    commit(storage, SECOND, [edited("a")], [failed("a")])
    Ledger(storage, THIRD).finalize(wanted(("a", "f")))
    assert pictures(storage) == set(file_names("a", "f"))


def test_missing_rows_stop_finalize_and_change_nothing(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", "old"), edited("b")], [edited("b")])
    before = content(storage)
    with pytest.raises(StorageError, match="2 rows have no result"):
        Ledger(storage, SECOND).finalize(wanted(("a", "new"), ("b", "f"), ("c", "f")))
    assert content(storage) == before


def test_crash_between_new_and_old_parts_is_cleaned_up(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a", "old"), edited("b")])
    commit(storage, SECOND, [edited("a", "new")])
    current = wanted(("a", "new"), ("b", "f"))
    # The merged part is in place, the ones it was made of are too.
    commit(storage, f"{SECOND}-2", [edited("a", "new"), edited("b")])
    assert Ledger(storage, THIRD).committed().keys() >= set(current.values())
    balance = Ledger(storage, THIRD).finalize(current)
    assert balance.counts == {"edited": 2}
    assert sum(balance.parts.values()) == 2
    assert [(row["id"], row["fingerprint"]) for row in results(storage)] == [
        ("a", "new"),
        ("b", "f"),
    ]
    assert pictures(storage) == {*file_names("a", "new"), *file_names("b", "f")}


def test_crash_while_old_parts_go_is_cleaned_up(storage: Storage) -> None:
    first, *_ = commit(storage, FIRST, [edited("a")], [edited("b")])
    commit(storage, SECOND, [edited("a"), edited("b")])
    storage.remove([f"results/{first}"])
    assert Ledger(storage, THIRD).finalize(wanted(("a", "f"), ("b", "f"))).counts == {"edited": 2}
    assert [row["id"] for row in results(storage)] == ["a", "b"]


def corrupt_whole(data: bytes) -> bytes:
    return b"PAR1" + b"\0" * len(data)


def corrupt_ids(data: bytes) -> bytes:
    return data[:4] + b"\0" * 60 + data[64:]


@pytest.mark.parametrize(
    "corrupt",
    [lambda data: b"", lambda data: data[: len(data) // 2], corrupt_whole, corrupt_ids],
    ids=["empty", "cut", "zeros", "one column"],
)
def test_corrupt_part_is_a_clear_error(storage: Storage, corrupt: Any) -> None:
    names = commit(storage, FIRST, [edited("a")], [edited("b")])
    path = f"results/{names[1]}"
    storage.write(path, corrupt(storage.read(path)))
    before = content(storage)
    ledger = Ledger(storage, SECOND)
    for read in (ledger.committed, lambda: ledger.finalize({})):
        with pytest.raises(StorageError, match=names[1]):
            read()
    assert content(storage) == before


def test_foreign_table_is_a_clear_error(storage: Storage) -> None:
    name = Ledger(storage, FIRST).commit(pa.table({"id": ["a"], "text": ["x"]}))
    ledger = Ledger(storage, SECOND)
    for read in (ledger.committed, ledger.counts, lambda: ledger.finalize({})):
        with pytest.raises(StorageError, match=name):
            read()


def test_foreign_files_are_ignored(storage: Storage) -> None:
    commit(storage, FIRST, [edited("a")])
    storage.write("results/README.md", b"hello")
    assert Ledger(storage, SECOND).finalize({}).counts == {"edited": 1}
    assert storage.exists("results/README.md")


def test_counts_include_every_status(storage: Storage) -> None:
    assert Ledger(storage, "").counts() == {"edited": 0, "unchanged": 0, "failed": 0}
    commit(storage, FIRST, [edited("a"), failed("b"), {**edited("c"), "status": "unchanged"}])
    commit(storage, SECOND, [edited("b")])
    assert Ledger(storage, "").counts() == {"edited": 2, "unchanged": 1, "failed": 1}


def test_read_json(storage: Storage) -> None:
    assert read_json(storage, "_SUCCESS") is None
    storage.write("_SUCCESS", b'{"run_id": "x"}')
    assert read_json(storage, "_SUCCESS") == {"run_id": "x"}
