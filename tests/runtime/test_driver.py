import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from fake_worker import (
    DyingWorker,
    FakeWorker,
    LosingWorker,
    NoModelWorker,
    OneHasTheModelWorker,
    OneStartsWorker,
)
from jobs_on_disk import (
    SOURCE,
    check_output,
    edits_of,
    job,
    picture,
    results,
    tree_bytes,
    write_manifest,
    write_pictures,
)
from PIL import Image

from diffedit_batch.errors import (
    STAGES,
    ClusterError,
    InterruptedRunError,
    ManifestError,
    ModelError,
    StorageError,
    TooManyFailuresError,
)
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.records import RunState
from diffedit_batch.runtime.selection import Selection
from diffedit_batch.schema import EDIT_PARAMETERS, RESULT_SCHEMA

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)


def test_a_job_runs_reruns_and_does_only_what_changed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = edits_of(write_pictures(tmp_path, 3, size=(70, 45)), per_picture=2)
    rows[1]["guidance_scale"] = 2.0
    write_manifest(tmp_path, rows)
    # Workers run in another folder: a relative output must be the same one for them.
    monkeypatch.chdir(tmp_path)
    config = job(tmp_path, tiny_model, output={"uri": "output"})

    state = run_job(config)
    assert state.counts == {"edited": 6}
    assert state.counters.vae_encodes == state.counters.inversions == 3
    assert state.counters.vae_decodes == 6
    found = check_output(tmp_path, 6)
    assert list(found[0])[: len(RESULT_SCHEMA)] == RESULT_SCHEMA.names
    for row, manifest_row in zip(found, rows, strict=True):
        assert row["status"] == "edited"
        assert row["note"] == manifest_row["note"]
        assert row["image"] == manifest_row["image"]
        assert row["source_prompt"] == [SOURCE]
        assert row["caption"] == [SOURCE]
        assert row["negative_prompt"] == [""]
        assert (row["width"], row["height"]) == (70, 45)
        assert row["error_message"] == row["error_type"] == row["error_stage"] == ""
        assert row["run_id"] == state.run_id
        assert all(row[name] is not None for name in EDIT_PARAMETERS)
        assert not any(value != value for value in row.values()), "NaN"
        edited = picture(tmp_path / "output", row["edited_file_name"])
        mask = picture(tmp_path / "output", row["mask_file_name"])
        assert edited.shape == (45, 70, 3)
        assert (mask > 0).mean() == pytest.approx(row["mask_coverage"], abs=0.05)
    assert [row["guidance_scale"] for row in found] == [5.0, 2.0, 5.0, 5.0, 5.0, 5.0]

    record = json.loads((tmp_path / "output" / "runs" / f"{state.run_id}.json").read_text())
    assert record["outcome"] == "finished"
    assert record["counts"] == {"edited": 6, "unchanged": 0, "failed": 0}
    assert record["counters"]["unet_evals"] == state.counters.unet_evals
    assert record["config"]["edit"]["num_inference_steps"] == 5
    assert record["effective_edit"]["mask_rule"] == "minmax"
    assert {"torch", "diffusers", "ray", "diffedit_batch"} <= record["versions"].keys()
    assert {"read", "edit", "write", "total"} <= record["seconds"].keys()
    [started] = record["workers"]
    assert list(started["start_seconds"]) == ["imports", "download", "load", "warm_up"]
    assert started["load_seconds"] > 0

    before = tree_bytes(tmp_path)
    again = run_job(config)
    assert (again.num_skipped, again.counts.total(), again.workers) == (6, 0, [])
    assert tree_bytes(tmp_path) == before

    rows[0]["target_prompt"] = "a white circle on grass"
    rows.append({**rows[0], "id": "new"})
    rows[5]["seed"] = 5
    write_manifest(tmp_path, rows)
    third = run_job(config)
    assert (third.num_skipped, third.counts) == (4, {"edited": 3})
    changed = {row["id"]: row for row in check_output(tmp_path, 7)}
    assert {i for i, row in changed.items() if row["run_id"] == third.run_id} == {
        "000-0",
        "002-1",
        "new",
    }
    assert changed["000-0"]["target_prompt"] == ["a white circle on grass"]
    assert changed["002-1"]["seed"] == 5


def test_bad_rows_fail_alone_with_stage_type_and_message(tmp_path: Path, tiny_model: Path) -> None:
    names = write_pictures(tmp_path, 8)
    rows = edits_of(names)
    (tmp_path / names[1]).write_bytes(b"not an image")
    rows[2]["image"] = "nowhere.png"
    rows[3]["target_prompt"] = "  "
    Image.new("L", (300, 300)).save(tmp_path / names[4])
    rows[5]["inpaint_strength"] = 1.5
    data = (tmp_path / names[6]).read_bytes()
    (tmp_path / names[6]).write_bytes(data[: len(data) // 2])
    write_manifest(tmp_path, rows)
    output = {"uri": str(tmp_path / "output"), "max_failed_fraction": 0.75}
    limits = {"manifest": str(tmp_path / "manifest.parquet"), "max_pixels": 80_000}
    config = job(tmp_path, tiny_model, output=output, input=limits)

    state = run_job(config)
    assert state.counts == {"edited": 2, "failed": 6}
    found = {row["id"]: row for row in check_output(tmp_path, 8)}
    expected = {
        "001-0": ("load", "ImageUnreadable", "not a PNG"),
        "002-0": ("load", "ImageNotFound", "nowhere.png"),
        "003-0": ("manifest", "PromptMissing", "target_prompt is empty"),
        "004-0": ("load", "ImageTooLarge", "300 x 300 pixels"),
        "005-0": ("manifest", "InvalidParameter", "inpaint_strength"),
        "006-0": ("load", "ImageUnreadable", "broken image"),
    }
    for row_id, (stage, kind, message) in expected.items():
        row = found.pop(row_id)
        assert (row["status"], row["error_stage"], row["error_type"]) == ("failed", stage, kind)
        assert message in row["error_message"]
        assert row["edited_file_name"] == row["mask_file_name"] == ""
        assert row["note"]
        assert row["source_prompt"] == [SOURCE]
        assert row["seed"] == 0
        assert row["num_inference_steps"] == (None if row_id == "005-0" else 5)
    assert {row["status"] for row in found.values()} == {"edited"}

    strict = config.model_copy(
        update={"output": config.output.model_copy(update={"max_failed_fraction": 0.5})}
    )
    with pytest.raises(TooManyFailuresError, match="6 of 8 rows failed"):
        run_job(strict)

    rows[2]["image"] = names[2]
    write_manifest(tmp_path, rows)
    repaired = run_job(config)
    assert repaired.counts == {"edited": 1}
    assert repaired.num_failed_before == 5


@pytest.mark.usefixtures("fake")
def test_a_row_that_kills_workers_fails_alone(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 24))
    rows[3]["target_prompt"], rows[17]["target_prompt"] = "die", "raise"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), engine={"batch_size": 8}, cluster={"workers": 2})

    state = run_job(config)
    assert state.counts == {"unchanged": 22, "failed": 2}
    found = {row["id"]: row for row in check_output(tmp_path, 24)}
    for row_id in ("003-0", "017-0"):
        row = found.pop(row_id)
        assert (row["error_stage"], row["error_type"]) == ("worker", "WorkerDied")
        assert row["attempts"] >= 4
    assert "device-side assert" in results(tmp_path)[17]["error_message"]
    assert {row["status"] for row in found.values()} == {"unchanged"}


@pytest.mark.usefixtures("fake")
def test_failed_rows_are_redone_only_on_request(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 12))
    rows[0]["target_prompt"] = "die"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"))
    assert run_job(config).counts["failed"] == 1
    assert run_job(config).counts.total() == 0
    again = run_job(config, selection=Selection(retry_failed=frozenset(STAGES)))
    assert again.counts == {"failed": 1}
    assert again.num_skipped == 11
    check_output(tmp_path, 12)


@pytest.mark.usefixtures("fake")
def test_a_limit_takes_the_first_rows_and_the_rest_follows(tmp_path: Path) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 10)))
    config = job(tmp_path, Path("demo"))
    assert run_job(config, selection=Selection(limit=4)).counts.total() == 4
    assert [row["id"] for row in results(tmp_path)] == [f"00{i}-0" for i in range(4)]
    assert not (tmp_path / "output" / "_SUCCESS").exists(), "the job is not done"
    rest = run_job(config)
    assert (rest.num_skipped, rest.counts.total()) == (4, 6)
    check_output(tmp_path, 10)


@pytest.mark.usefixtures("fake")
def test_the_job_stops_as_soon_as_too_many_rows_failed(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 40))
    for row in rows[:30]:
        row["image"] = "missing.png"
    write_manifest(tmp_path, rows)
    with pytest.raises(TooManyFailuresError, match=r"Most often: load/ImageNotFound \(30\)"):
        run_job(job(tmp_path, Path("demo")))
    assert not (tmp_path / "output" / "_SUCCESS").exists()
    assert len(results(tmp_path)) >= 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.usefixtures("fake")
def test_a_signal_stops_the_job_and_the_same_command_continues(
    tmp_path: Path, number: signal.Signals
) -> None:
    rows = edits_of(write_pictures(tmp_path, 20))
    for row in rows:
        row["target_prompt"] = "slow"
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), engine={"batch_size": 2})

    def interrupt(state: RunState) -> None:
        if state.counts.total():
            os.kill(os.getpid(), number)
            interrupted.append(state.counts.total())

    interrupted: list[int] = []
    with pytest.raises(InterruptedRunError, match="the same command continues"):
        run_job(config, on_progress=lambda s: None if interrupted else interrupt(s))
    committed = len(results(tmp_path))
    assert 0 < interrupted[0] <= committed < 20
    assert not (tmp_path / "output" / "_SUCCESS").exists()
    rest = run_job(config)
    assert (rest.num_skipped, rest.counts.total()) == (committed, 20 - committed)
    check_output(tmp_path, 20)


def test_a_worker_that_cannot_load_its_model_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", NoModelWorker)
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    with pytest.raises(ModelError, match="cannot load model 'x'"):
        run_job(job(tmp_path, Path("demo")))


def test_workers_that_die_while_starting_stop_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", DyingWorker)
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    with pytest.raises(ClusterError, match="3 workers in a row died while starting"):
        run_job(job(tmp_path, Path("demo")))


def test_a_worker_that_forgets_a_row_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", LosingWorker)
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 4)))
    with pytest.raises(StorageError, match="rows have no result"):
        run_job(job(tmp_path, Path("demo")))
    assert not (tmp_path / "output" / "_SUCCESS").exists()


@pytest.mark.usefixtures("fake")
def test_more_workers_than_cores_do_not_wait_for_a_slot(tmp_path: Path) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 6)))
    config = job(tmp_path, Path("demo"), cluster={"workers": 4, "gpus_per_worker": 0.0})
    assert run_job(config).counts.total() == 6


def test_workers_that_ask_for_too_much_are_given_up_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    cluster = {"gpus_per_worker": 0.0, "cpus_per_worker": 64.0, "start_timeout_s": 3.0}
    with pytest.raises(ClusterError, match=r"Each asks for 0 GPU and 64 CPU; .* has 0 GPU and 2"):
        run_job(job(tmp_path, Path("demo"), cluster=cluster))


def test_a_gpu_this_machine_does_not_have(tmp_path: Path) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    config = job(tmp_path, Path("demo"), cluster={"gpus_per_worker": 1.0})
    with pytest.raises(ClusterError, match=r"set cluster\.gpus_per_worker to 0"):
        run_job(config)


def test_a_bad_manifest_starts_nothing(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 2))
    for row in rows:
        row["id"] = "same"
        del row["target_prompt"]
    write_manifest(tmp_path, rows)
    with pytest.raises(ManifestError, match="target_prompt"):
        run_job(job(tmp_path, Path("demo")))
    assert not (tmp_path / "output").exists()


@pytest.mark.usefixtures("fake")
def test_rows_of_every_kind_of_image_cell(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    [name] = write_pictures(tmp_path, 1)
    data = (tmp_path / name).read_bytes()
    rows = edits_of([name])
    for cells in ([name], [data], [{"bytes": data, "path": None}], [{"bytes": None, "path": name}]):
        table = pa.Table.from_pylist(rows)
        place = table.column_names.index("image")
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        column = pa.array(cells, kind if isinstance(cells[0], dict) else None)
        pq.write_table(table.set_column(place, "image", column), tmp_path / "manifest.parquet")
        assert run_job(job(tmp_path, Path("demo"))).counts["failed"] == 0
    assert np.asarray(check_output(tmp_path, 1)).size == 1


def test_an_output_that_cannot_be_written_is_found_out_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", DyingWorker)
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    (tmp_path / "file").touch()
    config = job(tmp_path, Path("demo"), output={"uri": str(tmp_path / "file" / "output")})
    with pytest.raises(StorageError, match="cannot write"):
        run_job(config)


@pytest.mark.parametrize("worker", [OneStartsWorker, OneHasTheModelWorker])
def test_workers_that_cannot_start_do_not_stop_those_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: type
) -> None:
    monkeypatch.setattr(driver, "Worker", worker)
    rows = edits_of(write_pictures(tmp_path, 40))
    for row in rows:
        row["target_prompt"] = "slow"
    write_manifest(tmp_path, rows)
    cluster = {"gpus_per_worker": 0.0, "workers": 2}
    config = job(tmp_path, Path("demo"), cluster=cluster, engine={"batch_size": 2})
    assert run_job(config).counts == {"unchanged": 40}


@pytest.mark.usefixtures("fake")
def test_workers_that_all_die_stop_the_job_instead_of_failing_its_rows(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 64))
    for row in rows:
        row["target_prompt"] = "die"
    write_manifest(tmp_path, rows)
    with pytest.raises(ClusterError, match="before any row came back"):
        run_job(job(tmp_path, Path("demo")))
    assert results(tmp_path) == []


@pytest.mark.usefixtures("fake")
def test_a_carried_column_that_changes_its_type_is_found_out_first(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 2))
    write_manifest(tmp_path, [{**row, "note": 1} for row in rows])
    config = job(tmp_path, Path("demo"))
    assert run_job(config).counts.total() == 2
    before = tree_bytes(tmp_path)
    write_manifest(tmp_path, [{**row, "seed": 5} for row in rows])
    with pytest.raises(ManifestError, match="column 'note' has type string, in the results of"):
        run_job(config)
    assert tree_bytes(tmp_path) == before


@pytest.mark.usefixtures("fake")
def test_many_edits_of_one_image_are_shared_out(tmp_path: Path) -> None:
    [name] = write_pictures(tmp_path, 1)
    rows = [{**edits_of([name])[0], "id": str(number)} for number in range(100)]
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"), cluster={"workers": 2})
    assert run_job(config).counts.total() == 100
    check_output(tmp_path, 100)
