from typing import Any

import pyarrow as pa
import pytest
from results_on_disk import commit, content, edited, failed, finish, older, results

from diffedit_batch.data.ledger import Ledger, read_json
from diffedit_batch.data.parts import version_key
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import StorageError


def test_parts_are_named_after_run_and_order(storage: Storage) -> None:
    names = commit(storage, [edited("a")], [edited("b")])
    assert names == ["part-000001-000001.parquet", "part-000001-000002.parquet"]
    assert storage.names("results", "") == names


def test_parts_are_whole_parquet_files(storage: Storage) -> None:
    rows = [edited("a", note="x"), edited("b", note=None)]
    commit(storage, rows)
    assert results(storage) == rows


def test_committed_says_whether_all_a_row_has_is_failures(storage: Storage) -> None:
    commit(
        storage,
        [edited("good"), failed("bad"), failed("later"), edited("earlier"), failed("other", "f")],
    )
    commit(storage, [edited("later"), failed("earlier"), failed("bad"), edited("other", "g")])
    committed = Ledger(storage).committed()
    expected = {
        version_key("good", "f"): False,
        version_key("bad", "f"): True,
        version_key("later", "f"): False,
        version_key("earlier", "f"): False,
        version_key("other", "f"): True,
        version_key("other", "g"): False,
    }
    assert {key: committed.get(key) for key in expected} == expected
    assert len(committed) == len(expected)
    assert committed.get(version_key("good", "other")) is None


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
    names = commit(storage, [edited("a")], [edited("b")])
    path = f"results/{names[1]}"
    storage.write(path, corrupt(storage.read(path)))
    before = content(storage)
    for read in (Ledger(storage).committed, lambda: finish(storage)):
        with pytest.raises(StorageError, match=names[1]):
            read()
    assert content(storage) == before


def test_foreign_table_is_a_clear_error(storage: Storage) -> None:
    [name] = commit(storage, pa.table({"id": ["a"], "text": ["x"]}))
    ledger = Ledger(storage)
    for read in (ledger.committed, ledger.counts, lambda: finish(storage)):
        with pytest.raises(StorageError, match=name):
            read()


def test_columns_may_be_picked_from_those_a_part_has(storage: Storage) -> None:
    commit(storage, [edited("a", old=1)], [edited("b", new=2)])
    picked = list(Ledger(storage).scan(lambda schema: [n for n in schema.names if n != "old"]))
    assert [("old" in t.column_names, "new" in t.column_names) for t in picked] == [
        (False, False),
        (False, True),
    ]


def test_columns_that_came_later_read_as_empty(storage: Storage) -> None:
    commit(storage, [older(edited("a"))], [{**edited("b"), "map_sha256": "x"}])
    ledger = Ledger(storage)
    named = [t.to_pylist() for t in ledger.scan(["map_sha256", "id"])]
    assert named == [[{"map_sha256": "", "id": "a"}], [{"map_sha256": "x", "id": "b"}]]
    [picked, _] = ledger.scan(lambda schema: [n for n in schema.names if n.startswith("map")])
    assert picked.to_pylist() == [{"map_file_name": "", "map_sha256": ""}]
    [whole, _] = map(ledger.read, ledger.parts())
    assert whole.to_pylist() == [{**edited("a"), "map_file_name": ""}]
    assert not whole.schema.field("map_sha256").nullable


def test_the_schema_is_that_of_all_parts(storage: Storage) -> None:
    with pytest.raises(StorageError, match="holds no results of this job"):
        Ledger(storage).schema()
    commit(storage, [older(edited("a", note=None))], [edited("b", note="x", size=1)])
    schema = Ledger(storage).schema()
    assert set(schema.names) == {*edited("a"), "note", "size"}
    assert (schema.field("note").type, schema.field("size").type) == (pa.string(), pa.int64())
    commit(storage, [edited("c", note=1)])
    with pytest.raises(StorageError, match="do not fit together"):
        Ledger(storage).schema()


def test_counts_include_every_status(storage: Storage) -> None:
    assert Ledger(storage).counts() == {"edited": 0, "unchanged": 0, "failed": 0}
    commit(storage, [edited("a"), failed("b"), {**edited("c"), "status": "unchanged"}])
    commit(storage, [edited("b")])
    assert Ledger(storage).counts() == {"edited": 2, "unchanged": 1, "failed": 1}


def test_read_json(storage: Storage) -> None:
    assert read_json(storage, "_SUCCESS") is None
    storage.write("_SUCCESS", b'{"run_id": "x"}')
    assert read_json(storage, "_SUCCESS") == {"run_id": "x"}
