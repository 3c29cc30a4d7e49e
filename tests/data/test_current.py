from pathlib import Path

import pyarrow as pa
import pytest
from outputs_on_disk import failure, row, write_output
from results_on_disk import finish

from diffedit_batch.data.current import CurrentRows
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import StorageError


def seconds(rows: CurrentRows) -> dict[str, float]:
    table = pa.concat_tables(list(rows.tables()))
    ids: list[str] = table["id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, table["seconds"].to_pylist(), strict=True))


def test_the_newest_of_a_row_counts_and_a_success_before_a_failure(tmp_path: Path) -> None:
    write_output(tmp_path, [row("a", 1, seconds=1.0), row("b", 2, seconds=2.0), row("c", 5)])
    write_output(tmp_path, [row("a", 3, seconds=3.0)])
    lost = {"fingerprint": "f2", "seconds": 4.0}
    uri = write_output(tmp_path, [failure("b", "worker", "WorkerDied", "gone", **lost)])
    rows = CurrentRows(Ledger(Storage(uri)))
    assert seconds(rows) == {"a": 3.0, "b": 2.0, "c": 1.5}
    assert seconds(rows) == {"a": 3.0, "b": 2.0, "c": 1.5}, "a second time"
    assert rows.counts == {"edited": 3}
    write_output(tmp_path, [failure("b", "load", "X", "gone", fingerprint="f9", seconds=9.0)])
    rows = CurrentRows(Ledger(Storage(uri)))
    assert rows.counts == {"edited": 2, "failed": 1}
    assert seconds(rows)["b"] == 9.0


def test_of_equal_versions_the_newest_counts(tmp_path: Path) -> None:
    for run_id in ("r1", "r2", "r3"):
        uri = write_output(tmp_path, [row("a", 1, run_id=run_id)])
    [table] = [table for table in CurrentRows(Ledger(Storage(uri))).tables() if table.num_rows]
    assert table["run_id"].to_pylist() == ["r3"]


def test_columns_of_all_parts_and_only_those_asked_for(tmp_path: Path) -> None:
    write_output(tmp_path, [row("a", 1)])
    uri = write_output(tmp_path, [row("b", 2, note="x", score=1)])
    every = CurrentRows(Ledger(Storage(uri)))
    found = {one["id"]: one for table in every.tables() for one in table.to_pylist()}
    assert (found["a"]["note"], found["b"]["note"]) == (None, "x")
    some = CurrentRows(Ledger(Storage(uri)), lambda field: field.name in ("id", "note"))
    assert [table.schema for table in some.tables()] == [some.schema] * 2
    assert some.schema.names == ["id", "note"]


def test_rows_that_a_run_merges_meanwhile_come_once(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        uri = write_output(tmp_path, [row(name, number)])
    storage = Storage(uri)
    tables = CurrentRows(Ledger(storage)).tables()
    ids = next(tables)["id"].to_pylist()
    finish(storage)
    ids += [row_id for table in tables for row_id in table["id"].to_pylist()]
    assert sorted(ids) == ["a", "b", "c"]


def test_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no results of this job"):
        CurrentRows(Ledger(Storage(str(tmp_path))))
