"""Which rows are done, without Ray: results are committed as a run would commit them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jobs_on_disk import edits_of, job, write_manifest, write_pictures

from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import STAGES, ConfigError, ManifestError, RowError
from diffedit_batch.models.identity import identify
from diffedit_batch.runtime.plan import plan_job
from diffedit_batch.runtime.records import error_columns, result_table
from diffedit_batch.runtime.selection import Selection, Selector

FIRST, SECOND = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"
FAILURES = {
    "001-0": RowError("load", "ImageUnreadable", "broken"),
    "002-0": RowError("load", "ImageNotFound", "gone"),
    "003-0": RowError("worker", "WorkerDied", "died"),
}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """A manifest of six rows."""
    rows = edits_of(write_pictures(tmp_path, 6))
    write_manifest(tmp_path, rows)
    return rows


def manifest_of(folder: Path, where: str | None = None) -> Manifest:
    config = job(folder, Path("demo")).with_absolute_paths()
    model = identify(config.model)
    return Manifest(config, f"{model.id}@{model.revision}", where=where)


def commit(
    folder: Path, run_id: str = FIRST, failures: Mapping[str, RowError] | None = None
) -> None:
    """Results of all rows of the manifest as it is, by one run."""
    failures = failures or {}
    results = [
        (row, error_columns(failures[row.id]) if row.id in failures else {"status": "unchanged"})
        for row in manifest_of(folder).rows()
    ]
    model = identify(job(folder, Path("demo")).model)
    table = result_table(results, model, run_id=run_id, attempts=1)
    storage = Storage(str(folder / "output"))
    with hold_lease(storage, run_id) as lease:
        Ledger(storage, lease).commit(table)


def verdicts(folder: Path, **asked: Any) -> dict[str, str]:
    selection = Selection(**asked)
    storage = Storage(str(folder / "output"))
    selector = Selector(selection, manifest_of(folder, selection.where), Ledger(storage))
    found = {choice.row.id: choice.verdict for choice in selector.rows()}
    # A plan says the same numbers beforehand.
    plan = plan_job(job(folder, Path("demo")), selection=selection)
    counted = {verdict: number for verdict, number in plan.selected.items() if number}
    counted.pop("pruned", 0)
    assert counted == {v: list(found.values()).count(v) for v in set(found.values())}
    assert plan.num_rows == selector.num_rows == len(found)
    return dict(found)


def redone(folder: Path, **asked: Any) -> set[str]:
    found = verdicts(folder, **asked)
    assert set(found.values()) <= {"retried", "unchanged"}
    return {row_id for row_id, verdict in found.items() if verdict == "retried"}


def test_rows_are_new_changed_or_unchanged(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert set(verdicts(tmp_path).values()) == {"new"}
    commit(tmp_path)
    assert set(verdicts(tmp_path).values()) == {"unchanged"}
    rows[0]["target_prompt"] = "something else"
    rows[1]["id"] = "another"
    (tmp_path / rows[2]["image"]).write_bytes(b"other")
    rows[3]["note"] = "does not count"
    write_manifest(tmp_path, rows[::-1])
    assert verdicts(tmp_path) == {
        "000-0": "changed",
        "another": "new",
        "002-0": "changed",
        **dict.fromkeys(("003-0", "004-0", "005-0"), "unchanged"),
    }


def test_a_row_that_changes_back_is_unchanged(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    commit(tmp_path, FIRST)
    before = rows[0]["target_prompt"]
    rows[0]["target_prompt"] = "something else"
    write_manifest(tmp_path, rows)
    commit(tmp_path, SECOND)
    rows[0]["target_prompt"] = before
    write_manifest(tmp_path, rows)
    assert set(verdicts(tmp_path).values()) == {"unchanged"}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (STAGES, set(FAILURES)),
        (("load",), {"001-0", "002-0"}),
        (("load/ImageNotFound", "worker"), {"002-0", "003-0"}),
        (("worker/WorkerDied",), {"003-0"}),
        (("load/Image", "edit"), set()),
        ((), set()),
    ],
)
@pytest.mark.usefixtures("rows")
def test_failed_rows_are_retried_by_stage_or_type(
    tmp_path: Path, which: tuple[str, ...], expected: set[str]
) -> None:
    commit(tmp_path, failures=FAILURES)
    assert redone(tmp_path, retry_failed=frozenset(which)) == expected


@pytest.mark.usefixtures("rows")
def test_a_row_that_succeeded_since_is_not_retried(tmp_path: Path) -> None:
    commit(tmp_path, FIRST, FAILURES)
    commit(tmp_path, SECOND, {"003-0": FAILURES["003-0"]})
    assert redone(tmp_path, retry_failed=frozenset(STAGES)) == {"003-0"}


@pytest.mark.usefixtures("rows")
def test_the_newest_error_of_a_row_counts(tmp_path: Path) -> None:
    commit(tmp_path, FIRST, {"001-0": FAILURES["001-0"]})
    commit(tmp_path, SECOND, {"001-0": FAILURES["003-0"]})
    assert redone(tmp_path, retry_failed=frozenset({"load"})) == set()
    assert redone(tmp_path, retry_failed=frozenset({"worker"})) == {"001-0"}


def test_force_redoes_what_is_older(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    commit(tmp_path, FIRST)
    assert len(redone(tmp_path, force="20260103T000000")) == 6
    write_manifest(tmp_path, rows[:2])
    commit(tmp_path, SECOND)
    write_manifest(tmp_path, rows)
    # A forced run that was killed after two rows continues.
    assert redone(tmp_path, force="20260102T000000") == {f"00{n}-0" for n in (2, 3, 4, 5)}
    assert redone(tmp_path, force=SECOND) == {f"00{n}-0" for n in (2, 3, 4, 5)}
    assert redone(tmp_path, force=FIRST) == set()


def test_forced_rows_that_failed_since_are_left_unless_retried(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    commit(tmp_path, FIRST)
    rows[0]["target_prompt"] = "something else"
    write_manifest(tmp_path, rows)
    commit(tmp_path, SECOND, {"000-0": FAILURES["003-0"]})
    assert redone(tmp_path, force=SECOND) == set()
    assert redone(tmp_path, force=SECOND, retry_failed=frozenset({"worker"})) == {"000-0"}


@pytest.mark.usefixtures("rows")
def test_a_filter_leaves_other_rows_alone(tmp_path: Path) -> None:
    commit(tmp_path, failures=FAILURES)
    where = "note IN ('about 001.png', 'about 004.png')"
    assert verdicts(tmp_path, where=where) == {"001-0": "unchanged", "004-0": "unchanged"}
    assert redone(tmp_path, where=where, retry_failed=frozenset({"load"})) == {"001-0"}
    assert list(verdicts(tmp_path, where=where, limit=1)) == ["001-0"]


@pytest.mark.usefixtures("rows")
def test_what_is_the_whole_manifest(tmp_path: Path) -> None:
    def is_whole(**asked: Any) -> bool:
        selection = Selection(**asked)
        ledger = Ledger(Storage(str(tmp_path / "output")))
        return Selector(selection, manifest_of(tmp_path, selection.where), ledger).is_whole

    assert is_whole()
    assert is_whole(limit=6)
    assert not is_whole(limit=5)
    assert not is_whole(where="true"), "the next condition may be another one"


def test_results_without_a_row_are_counted_for_pruning(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    commit(tmp_path)
    write_manifest(tmp_path, rows[2:])
    config = job(tmp_path, Path("demo"))
    assert plan_job(config).selected["pruned"] == 0
    assert plan_job(config, selection=Selection(prune=True)).selected["pruned"] == 2


@pytest.mark.parametrize("other", [{"limit": 3}, {"where": "true"}])
def test_pruning_needs_the_whole_manifest(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--prune"):
        Selection(prune=True, **other)


def test_an_empty_manifest_prunes_nothing(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    commit(tmp_path)
    import pyarrow.parquet as pq

    path = tmp_path / "manifest.parquet"
    pq.write_table(pq.ParquetFile(path).read().slice(0, 0), path)
    with pytest.raises(ManifestError, match="would drop every result"):
        plan_job(job(tmp_path, Path("demo")), selection=Selection(prune=True))


def test_texts_are_wanted_only_for_rows_to_be_done(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    for number, row in enumerate(rows):
        row["target_prompt"], row["target_concept"] = None, f"thing {number}"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), prompts={"id": "owner/name"})
    assert plan_job(config).num_concepts == 6
    assert plan_job(config, selection=Selection(where="id > '003'")).num_concepts == 3
    assert plan_job(config, selection=Selection(limit=2)).num_concepts == 2
