"""Runs that share an output, lose it, or write to storage that fails; without any worker."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs_on_disk import (
    edits_of,
    job,
    results,
    tree_bytes,
    write_config,
    write_manifest,
    write_pictures,
)
from s3_server import BUCKET, Fault, S3Server

from diffedit_batch import cli
from diffedit_batch.config import JobConfig
from diffedit_batch.data.holder import this_process
from diffedit_batch.data.lease import FOLDER, hold_lease, newest_holder
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import TEMPORARY, Storage
from diffedit_batch.errors import OutputHeldError, StorageError
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.driver import prepare_job, run_job
from diffedit_batch.runtime.plan import plan_job
from diffedit_batch.runtime.status import read_status


def refused_rows(folder: Path, count: int, **more: Any) -> None:
    """A manifest of rows that fail before any worker is asked."""
    [name] = write_pictures(folder, 1)
    row = {**edits_of([name])[0], "target_prompt": " ", **more}
    write_manifest(folder, [{**row, "id": f"{number:04d}"} for number in range(count)])


def failing_job(folder: Path, uri: str | None = None) -> JobConfig:
    """A job that is content with failures."""
    output = {"uri": uri or str(folder / "output"), "max_failed_fraction": 1.0}
    return job(folder, Path("demo"), output=output)


def command(config: JobConfig, folder: Path, *options: str) -> list[str]:
    """The command line that runs a job."""
    return ["run", str(write_config(config, folder)), *options]


def test_a_second_run_is_refused_and_may_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused_rows(tmp_path, 3)
    config = failing_job(tmp_path)
    with hold_lease(Storage(config.output.uri), "20260101T000000-first"):
        before = tree_bytes(tmp_path)
        assert cli.main(command(config, tmp_path)) == 6
        said = capsys.readouterr().err
        assert "held by run 20260101T000000-first on " in said
        assert " ago" in said
        assert cli.main(command(config, tmp_path, "--if-locked", "skip")) == 0
        assert capsys.readouterr().out.startswith("skipped: ")
        with pytest.raises(OutputHeldError):
            prepare_job(config)
        assert plan_job(config).num_refused == 3
        assert tree_bytes(tmp_path) == before
    assert cli.main(command(config, tmp_path)) == 0
    assert len(results(tmp_path)) == 3


def test_nothing_to_do_asks_nobody_and_changes_nothing(tmp_path: Path) -> None:
    refused_rows(tmp_path, 3)
    config = failing_job(tmp_path)
    run_job(config)
    with hold_lease(Storage(config.output.uri), "another"):
        before = tree_bytes(tmp_path)
        state = run_job(config)
        assert (state.num_skipped, state.counts.total()) == (3, 0)
        assert read_status(config.output.uri)["counts"]["failed"] == 3
        assert tree_bytes(tmp_path) == before


def test_a_run_releases_what_it_held_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_rows(tmp_path, 3)
    config = failing_job(tmp_path)
    monkeypatch.setattr(driver, "finalize", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_job(config)
    holder = newest_holder(Storage(config.output.uri))
    assert holder is not None
    assert holder.is_released


def test_what_a_dead_run_left_half_written_is_cleaned_up(tmp_path: Path) -> None:
    refused_rows(tmp_path, 3)
    config = failing_job(tmp_path)
    storage = Storage(config.output.uri)
    dead = replace(this_process(1, "dead"), process_start_s=-1.0)
    storage.write(f"{FOLDER}/000001.json", dead.to_json())
    for name in ("half-a-part", "half-a-png"):
        (tmp_path / "output" / TEMPORARY / name).write_bytes(b"PAR1")
    assert run_job(config).counts == {"failed": 3}
    assert storage.names(TEMPORARY, "") == []
    assert storage.names(FOLDER, "") == ["000002.json"]
    assert [row["run_id"] for row in results(tmp_path)] != ["dead"] * 3


def test_rows_that_another_run_did_meanwhile_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run does everything between our look at the output and our lease."""
    refused_rows(tmp_path, 3)
    config = failing_job(tmp_path)
    look = driver._Run._look
    inner: list[str] = []

    def look_and_be_slow(run: Any) -> Any:
        found = look(run)
        if not inner:
            inner.append("started")
            inner.append(run_job(config).run_id)
        return found

    monkeypatch.setattr(driver._Run, "_look", look_and_be_slow)
    state = run_job(config)
    assert (state.num_skipped, state.counts.total()) == (3, 0)
    assert {row["run_id"] for row in results(tmp_path)} == {inner[1]}


def test_a_run_that_lost_its_lease_stops_with_code_6_and_leaves_success_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_rows(tmp_path, 600)
    config = failing_job(tmp_path)
    storage = Storage(config.output.uri)
    commit = Ledger.commit

    def commit_and_sleep(ledger: Ledger, table: Any) -> str:
        name = commit(ledger, table)
        assert ledger.lease is not None
        other = replace(ledger.lease.holder, epoch=2, run_id="other", sealed={"1": 1})
        storage.write(f"{FOLDER}/000002.json", other.to_json())
        storage.write("_SUCCESS", b"{}")
        return name

    monkeypatch.setattr(Ledger, "commit", commit_and_sleep)
    assert cli.main(command(config, tmp_path, "--if-locked", "skip")) == 6
    assert storage.read("_SUCCESS") == b"{}"
    assert len(storage.names("results", "")) == 1
    assert len(results(tmp_path)) == 256
    assert storage.names("runs", "") == []


def test_a_full_disk_stops_the_run_with_code_5_and_the_next_one_continues(
    tmp_path: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Storage, "patience_s", 0.3)
    refused_rows(tmp_path, 600)
    config = failing_job(tmp_path, str(small_disk / "output"))
    # Room for what holds the output and for the first part, not for the second.
    commit = Ledger.commit
    filler = small_disk / "filler"

    def commit_and_fill(ledger: Ledger, table: Any) -> str:
        name = commit(ledger, table)
        if not filler.exists():
            with pytest.raises(OSError, match="No space"), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
        return name

    monkeypatch.setattr(Ledger, "commit", commit_and_fill)
    assert cli.main(command(config, tmp_path)) == 5
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Make room there" in said
    storage = Storage(config.output.uri)
    assert len(Ledger(storage).committed()) == 256
    assert not storage.exists("_SUCCESS")
    assert newest_holder(storage) is None, "the lease is released on a full disk, too"

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    state = run_job(config)
    assert (state.num_skipped, state.counts.total()) == (256, 344)
    assert json.loads(storage.read("_SUCCESS"))["num_rows"] == 600
    assert storage.names(TEMPORARY, "") == []


def test_a_store_that_stays_broken_stops_the_run_and_the_next_one_continues(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "patience_s", 0.3)
    refused_rows(tmp_path, 600)
    config = failing_job(tmp_path, f"s3://{BUCKET}/{tmp_path.name}")
    s3.faults = [Fault(r"PUT .*/part-000001-000002", times=10**6, status=500)]
    with pytest.raises(StorageError, match=r"cannot write .*/part-000001-000002\.parquet"):
        run_job(config)
    s3.faults.clear()
    state = run_job(config)
    assert (state.num_skipped, state.counts.total()) == (256, 344)
    [part] = Ledger(Storage(config.output.uri)).parts()
    assert part.epoch == 2
