import itertools
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from results_on_disk import (
    commit,
    content,
    edited,
    failed,
    finish,
    older,
    pictures,
    results,
    wanted,
)

from diffedit_batch.data.finalize import SMALL_PART_ROWS, finalize, remove_replaced
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.parts import Asked, version_key
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.errors import StorageError


def test_empty_output(storage: Storage) -> None:
    assert len(Ledger(storage).committed()) == 0
    balance = finish(storage)
    assert (balance.counts, balance.parts) == ({}, {})
    assert content(storage) == {}


def test_same_request_of_two_ids_is_two_results(storage: Storage) -> None:
    commit(storage, [edited("a", "same"), edited("b", "same")])
    balance = finish(storage, wanted(("a", "same"), ("b", "same")))
    assert balance.counts == {"edited": 2}
    assert [row["id"] for row in results(storage)] == ["a", "b"]


def test_success_beats_failure_in_either_order(storage: Storage) -> None:
    commit(storage, [edited("a"), failed("b")])
    commit(storage, [failed("a"), edited("b")])
    balance = finish(storage, wanted(("a", "f"), ("b", "f")))
    assert balance.counts == {"edited": 2}
    assert [row["status"] for row in results(storage)] == ["edited", "edited"]


def test_wanted_version_beats_newer_ones(storage: Storage) -> None:
    commit(storage, [edited("a", "old"), failed("b", "old")])
    commit(storage, [edited("a", "new"), edited("b", "new")])
    finish(storage, wanted(("a", "old"), ("b", "old")))
    assert [(row["fingerprint"], row["status"]) for row in results(storage)] == [
        ("old", "edited"),
        ("old", "failed"),
    ]


def test_newest_of_equals_wins(storage: Storage) -> None:
    commit(storage, [edited("a", note=1)])
    commit(storage, [edited("a", note=2)], [edited("a", note=3), edited("a", note=4)])
    finish(storage, wanted(("a", "f")))
    assert [row["note"] for row in results(storage)] == [4]


def test_ids_not_asked_for_keep_their_newest_row(storage: Storage) -> None:
    commit(storage, [edited("gone", "1"), edited("stays", "1"), failed("lost", "1")])
    commit(storage, [edited("gone", "2")])
    balance = finish(storage, wanted(("stays", "1")))
    assert balance.counts == {"edited": 2, "failed": 1}
    assert [(row["id"], row["fingerprint"]) for row in results(storage)] == [
        ("gone", "2"),
        ("lost", "1"),
        ("stays", "1"),
    ]


def test_nothing_asked_deletes_nothing(storage: Storage) -> None:
    commit(storage, [edited("a"), edited("b")])
    before = content(storage)
    finish(storage)
    assert content(storage) == before


def test_small_parts_are_merged(storage: Storage) -> None:
    rows = [edited(f"{number:02}", note=number) for number in range(12)]
    commit(storage, *([row] for row in rows))
    balance = finish(storage, wanted(*((row["id"], "f") for row in rows)))
    assert balance.parts == {"part-000002-000001.parquet": 12}
    assert storage.names("results", ".parquet") == list(balance.parts)
    assert results(storage) == rows


def test_merged_parts_follow_those_of_the_run(storage: Storage) -> None:
    with hold_lease(storage, "run") as lease:
        ledger = Ledger(storage, lease)
        for row_id in ("a", "b"):
            ledger.commit(pa.Table.from_pylist([edited(row_id)]))
        assert finalize(ledger, Asked()).parts == {"part-000001-000003.parquet": 2}


def test_columns_that_came_later_are_kept(storage: Storage) -> None:
    commit(storage, [edited("a")], [edited("b", note=None)], [edited("c", note="x")])
    finish(storage)
    assert [row["note"] for row in results(storage)] == [None, None, "x"]


def test_columns_that_do_not_fit_are_a_clear_error(storage: Storage) -> None:
    commit(storage, [edited("a", note=1)], [edited("b", note="x")])
    before = content(storage)
    with pytest.raises(StorageError, match="note"):
        finish(storage)
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
    [first] = commit(storage, large)
    before = storage.read(f"results/{first}")
    commit(storage, [edited("a")], [edited("b")])
    balance = finish(storage)
    assert balance.parts == {first: SMALL_PART_ROWS, "part-000003-000001.parquet": 2}
    assert storage.read(f"results/{first}") == before

    commit(storage, [edited("0", "new")])
    balance = finish(storage, wanted(("0", "new")))
    assert sum(balance.parts.values()) == balance.counts["edited"] == SMALL_PART_ROWS + 2
    assert first not in balance.parts


def test_finalizing_again_changes_no_byte(storage: Storage) -> None:
    commit(storage, [edited("a"), failed("b")], [edited("c")])
    current = wanted(("a", "f"), ("b", "f"), ("c", "f"))
    first = finish(storage, current)
    before = content(storage)
    second = finish(storage, current)
    assert content(storage) == before
    assert second == first


def test_part_without_rows_does_no_harm(storage: Storage) -> None:
    [name] = commit(storage, [edited("a")])
    table = pa.Table.from_pylist([edited("a")]).slice(0, 0)
    storage.remove([f"results/{name}"])
    commit(storage, table)
    assert finish(storage).counts == {}
    commit(storage, [edited("a")])
    assert finish(storage).counts == {"edited": 1}


def test_pictures_of_superseded_rows_are_removed(storage: Storage) -> None:
    commit(storage, [edited("a", "old"), edited("b", "old")])
    commit(storage, [edited("a", "new")])
    finish(storage, wanted(("a", "new"), ("b", "old")))
    assert pictures(storage) == {*file_names("a", "new"), *file_names("b", "old")}


def test_pictures_that_are_still_listed_stay(storage: Storage) -> None:
    commit(storage, [edited("a")])
    commit(storage, [edited("a")], [failed("a")])
    finish(storage, wanted(("a", "f")))
    assert pictures(storage) == set(file_names("a", "f"))


def test_results_of_an_earlier_version_stand_beside_new_ones(storage: Storage) -> None:
    """Those of a time when rows had no soft map."""
    commit(storage, [older(edited("a")), older(edited("b", "old")), older(failed("c"))])
    commit(storage, [edited("b", "new"), edited("d")])
    finish(storage, wanted(("a", "f"), ("b", "new"), ("c", "f"), ("d", "f")))
    maps = {row["id"]: row["map_file_name"] for row in results(storage)}
    assert maps == {
        "a": "",
        "b": file_names("b", "new").map,
        "c": "",
        "d": file_names("d", "f").map,
    }
    assert {row["digital_source_type"] for row in results(storage)} == {""}
    assert pictures(storage) == {
        *file_names("a", "f")[:2],
        *file_names("b", "new"),
        *file_names("d", "f"),
    }


def test_missing_rows_stop_finalize_and_change_nothing(storage: Storage) -> None:
    commit(storage, [edited("a", "old"), edited("b")], [edited("b")])
    before = content(storage)
    with pytest.raises(StorageError, match="2 rows have no result"):
        finish(storage, wanted(("a", "new"), ("b", "f"), ("c", "f")))
    assert content(storage) == before


def test_crash_between_new_and_old_parts_is_cleaned_up(storage: Storage) -> None:
    commit(storage, [edited("a", "old"), edited("b")])
    commit(storage, [edited("a", "new")])
    current = wanted(("a", "new"), ("b", "f"))
    # The merged part is in place, the ones it was made of are too.
    commit(storage, [edited("a", "new"), edited("b")])
    committed = Ledger(storage).committed()
    assert committed.get(version_key("a", "new")) is committed.get(version_key("b", "f")) is False
    balance = finish(storage, current)
    assert balance.counts == {"edited": 2}
    assert sum(balance.parts.values()) == 2
    assert [(row["id"], row["fingerprint"]) for row in results(storage)] == [
        ("a", "new"),
        ("b", "f"),
    ]
    assert pictures(storage) == {*file_names("a", "new"), *file_names("b", "f")}


def test_crash_while_old_parts_go_is_cleaned_up(storage: Storage) -> None:
    first, *_ = commit(storage, [edited("a")], [edited("b")])
    commit(storage, [edited("a"), edited("b")])
    storage.remove([f"results/{first}"])
    assert finish(storage, wanted(("a", "f"), ("b", "f"))).counts == {"edited": 2}
    assert [row["id"] for row in results(storage)] == ["a", "b"]


def test_foreign_files_are_ignored(storage: Storage) -> None:
    commit(storage, [edited("a")])
    storage.write("results/README.md", b"hello")
    assert finish(storage).counts == {"edited": 1}
    assert storage.exists("results/README.md")


@pytest.mark.parametrize("num_removed", range(7))
def test_kill_while_replaced_files_go(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, num_removed: int
) -> None:
    commit(storage, [edited("a", "old"), edited("b")])
    commit(storage, [edited("a", "new")])
    current = wanted(("a", "new"), ("b", "f"))
    rm_file, calls = storage.fs.rm_file, itertools.count()

    def remove_some(path: str) -> None:
        if "/_diffedit/lease/" not in path and next(calls) == num_removed:
            raise KeyboardInterrupt
        rm_file(path)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(storage.fs, "rm_file", remove_some)
        finish(storage, current)
    # Whoever comes next cleans up first: what a part lists is then there, and nothing else is.
    with hold_lease(storage, "next") as lease:
        ledger = Ledger(storage, lease)
        assert remove_replaced(ledger) == (num_removed < 6)
        listed = {row["edited_file_name"] for row in results(storage)}
        assert listed == {file_names("a", "new")[0], file_names("b", "f")[0]}
        assert finalize(ledger, current).counts == {"edited": 2}
    assert pictures(storage) == {*file_names("a", "new"), *file_names("b", "f")}
    assert storage.names("_diffedit", ".parquet") == []


def test_no_object_is_kept_for_a_row(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    num_rows = 20_000
    ids = [str(number) for number in range(num_rows)]
    names = {name: pa.array([text] * num_rows) for name, text in edited("x").items()}
    commit(storage, pa.table({**names, "id": ids}))
    tracemalloc.start()
    try:
        committed = Ledger(storage).committed()
        asked = wanted(*((row_id, "f") for row_id in ids))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(committed) == num_rows
    assert kept < 60 * num_rows  # 17 and 32 bytes; a dict of bytes alone would need over 100
    assert finish(storage, asked).counts == {"edited": num_rows}
