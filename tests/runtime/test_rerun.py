"""Running a job again: what each flag makes of results, files and `_SUCCESS`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_worker import FakeWorker, PaintingWorker
from jobs_on_disk import edits_of, job, results, tree_bytes, write_manifest, write_pictures

from diffedit_batch.config import JobConfig
from diffedit_batch.errors import STAGES, InterruptedRunError
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.plan import plan_job
from diffedit_batch.runtime.records import RunState
from diffedit_batch.runtime.selection import VERDICTS, Selection
from diffedit_batch.schema import FILE_COLUMNS, LATER_COLUMNS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)


def run(config: JobConfig, **asked: Any) -> RunState:
    """A run whose plan said the same beforehand."""
    selection = Selection(**asked)
    planned = plan_job(config, selection=selection).selected
    state = run_job(config, selection=selection)
    assert {v: planned[v] for v in VERDICTS} == {v: state.selected[v] for v in VERDICTS}
    return state


def run_ids(folder: Path) -> dict[str, str]:
    return {row["id"]: row["run_id"] for row in results(folder)}


OTHERS = (
    *("mask_grow", "num_seeds", "keep_best", "kept_seed", "candidates"),
    *("clip_text", "clip_direction", "clip_image", "lpips", "filter_reasons", "is_flagged"),
)
"""Columns that came later too, and are null there."""


def success(folder: Path) -> Any:
    return json.loads((folder / "output" / "_SUCCESS").read_text())


def test_results_of_an_earlier_version_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a time when rows had no soft map and no scores of CLIP, and pictures did not say
    what made them.
    """
    monkeypatch.setattr(driver, "Worker", PaintingWorker)
    rows = edits_of(write_pictures(tmp_path, 3))
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"))
    run(config)
    output = tmp_path / "output"
    [part] = (output / "results").iterdir()
    table = pq.ParquetFile(part).read()
    assert set(OTHERS) <= set(table.column_names)
    pq.write_table(table.drop_columns([*LATER_COLUMNS, *OTHERS]), part)
    shutil.rmtree(output / "maps")
    before = tree_bytes(tmp_path)
    assert run(config).selected == {"unchanged": 3}
    assert tree_bytes(tmp_path) == before

    rows[0]["target_prompt"] = "something else"
    write_manifest(tmp_path, rows)
    assert run(config).selected == {"changed": 1, "unchanged": 2, "pruned": 0}
    found = results(tmp_path)
    assert [bool(row["map_file_name"]) for row in found] == [True, False, False]
    assert [row["filter_reasons"] for row in found] == [[], None, None]
    assert [row["num_seeds"] for row in found] == [1, None, None]
    there = {str(path.relative_to(output)) for path in output.rglob("*.png")}
    assert there == {row[name] for row in found for name in FILE_COLUMNS} - {""}


def test_new_changed_retried_unchanged_and_pruned_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", PaintingWorker)
    rows = edits_of(write_pictures(tmp_path, 6))
    rows[5]["target_prompt"] = "fail"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), output={"max_failed_fraction": 0.5})
    first = run(config)
    assert first.selected == {"new": 6, "pruned": 0}
    pictures = {row["id"]: row["edited_file_name"] for row in results(tmp_path)}
    output = tmp_path / "output"

    rows[0]["target_prompt"] = "something else"
    rows.append({**rows[1], "id": "another"})
    left, rows = rows[2], rows[:2] + rows[3:]
    write_manifest(tmp_path, rows)
    second = run(config, retry_failed=frozenset({"edit"}), prune=True)
    assert second.selected == {"new": 1, "changed": 1, "retried": 1, "unchanged": 3, "pruned": 1}
    found = run_ids(tmp_path)
    assert left["id"] not in found
    assert {i for i, run_id in found.items() if run_id == second.run_id} == {
        "000-0",
        "005-0",
        "another",
    }
    on_disk = {str(path.relative_to(output)) for path in (output / "edited").rglob("*.png")}
    assert on_disk == {row["edited_file_name"] for row in results(tmp_path)} - {""}
    assert pictures["002-0"] not in on_disk
    assert success(tmp_path)["num_rows"] == 6
    record = json.loads((output / "runs" / f"{second.run_id}.json").read_text())
    assert record["selected"] == dict(second.selected)


def test_rows_that_left_the_manifest_stay_until_they_are_pruned(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 4))
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"))
    first = run(config)
    write_manifest(tmp_path, rows[1:])
    before = tree_bytes(tmp_path)
    assert run(config).selected == {"unchanged": 3}
    assert tree_bytes(tmp_path) == before, "a manifest that shrank deletes nothing"

    pruned = run(config, prune=True)
    assert pruned.selected == {"unchanged": 3, "pruned": 1}
    assert run_ids(tmp_path) == {f"00{n}-0": first.run_id for n in (1, 2, 3)}
    assert success(tmp_path)["run_id"] == pruned.run_id
    assert success(tmp_path)["num_rows"] == 3
    before = tree_bytes(tmp_path)
    assert run(config, prune=True).selected == {"unchanged": 3}
    assert tree_bytes(tmp_path) == before


def test_a_filtered_run_does_its_rows_and_claims_no_more(tmp_path: Path) -> None:
    rows = [{**row, "split": "test"} for row in edits_of(write_pictures(tmp_path, 6))]
    rows[1]["split"] = rows[4]["split"] = "train"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"))
    filtered = run(config, where="split = 'train'")
    assert (filtered.num_rows, filtered.selected) == (2, {"new": 2, "pruned": 0})
    assert set(run_ids(tmp_path)) == {"001-0", "004-0"}
    assert not (tmp_path / "output" / "_SUCCESS").exists()

    rest = run(config)
    assert rest.selected == {"new": 4, "unchanged": 2, "pruned": 0}
    assert success(tmp_path)["num_rows"] == 6
    for row in rows:
        row["target_prompt"] = "something else"
    write_manifest(tmp_path, rows)
    again = run(config, where="split = 'train'")
    assert again.selected == {"changed": 2, "pruned": 0}
    assert not (tmp_path / "output" / "_SUCCESS").exists(), "the other rows have changed too"
    assert set(run_ids(tmp_path)) == {row["id"] for row in rows}, "which keep their results"
    assert run(config).selected == {"changed": 4, "unchanged": 2, "pruned": 0}
    assert success(tmp_path)["num_rows"] == 6


def test_a_forced_run_redoes_everything_and_continues_where_it_was_stopped(
    tmp_path: Path,
) -> None:
    rows = edits_of(write_pictures(tmp_path, 12))
    for row in rows:
        row["target_prompt"] = "slow"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), engine={"batch_size": 2})
    first = run(config)
    stopped: list[int] = []

    def stop(state: RunState) -> None:
        import os
        import signal

        if state.counts.total() and not stopped:
            stopped.append(state.counts.total())
            os.kill(os.getpid(), signal.SIGTERM)

    since = "99990101T000000"  # younger than any result there is
    with pytest.raises(InterruptedRunError, match=f"the same command with --force={since}"):
        run_job(config, selection=Selection(force=since), on_progress=stop)
    redone = len({i for i, run_id in run_ids_of_all(tmp_path) if run_id != first.run_id})
    assert 0 < redone < 12

    second = min(run_id for _, run_id in run_ids_of_all(tmp_path) if run_id != first.run_id)
    rest = run(config, force=second)
    assert rest.selected == {"retried": 12 - redone, "unchanged": redone, "pruned": 0}
    assert first.run_id not in run_ids(tmp_path).values()
    assert len(results(tmp_path)) == 12


def run_ids_of_all(folder: Path) -> list[tuple[str, str]]:
    """Of every result row, superseded ones included."""
    return [(row["id"], row["run_id"]) for row in results(folder)]


def test_failed_rows_are_retried_with_success(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 3))
    rows[1]["target_prompt"] = "fail once"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), output={"max_failed_fraction": 0.5})
    assert run(config).counts == {"unchanged": 2, "failed": 1}
    assert run(config, retry_failed=frozenset({"load"})).counts.total() == 0
    again = run(config, retry_failed=frozenset(STAGES))
    assert (again.selected["retried"], again.counts) == (1, {"unchanged": 1})
    assert [row["status"] for row in results(tmp_path)] == ["unchanged"] * 3
