"""The exit codes of `docs/running.md`, each from a process that ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs_on_disk import edits_of, job, results, write_config, write_manifest, write_pictures

from diffedit_batch.config import JobConfig
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.storage import Storage

RUN = "import sys; from diffedit_batch import cli; sys.exit(cli.main(['run', *sys.argv[1:]]))"
BROKEN = f"from diffedit_batch.runtime import driver; driver.finalize = None; {RUN}"
WITHOUT_RAY = f"import ray; ray.init = None; {RUN}"
FAKE = (
    "from chaos_worker import ChaosWorker; from diffedit_batch.runtime import driver;"
    f"driver.Worker = ChaosWorker; {RUN}"
)


def start(
    config: JobConfig, folder: Path, code: str = RUN, **variables: str
) -> subprocess.Popen[str]:
    """A run in a process of its own, with what it says on stderr."""
    path = write_config(config, folder)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr of a run."""
    said = process.communicate()[1]
    return process.returncode, said


def write_refused(folder: Path) -> None:
    """A manifest of three rows that fail before any worker is asked."""
    [name] = write_pictures(folder, 1)
    row = {**edits_of([name])[0], "target_prompt": " "}
    write_manifest(folder, [{**row, "id": str(number)} for number in range(3)])


def tolerant(folder: Path, uri: Path | None = None) -> JobConfig:
    output = {"uri": str(uri or folder / "output"), "max_failed_fraction": 1.0}
    return job(folder, Path("demo"), output=output)


def test_0_finished_and_again_with_nothing_to_do(tmp_path: Path) -> None:
    write_refused(tmp_path)
    for _ in range(2):
        assert end(start(tolerant(tmp_path), tmp_path)) == (0, "")
        assert len(results(tmp_path)) == 3


def test_1_what_nobody_expected_with_its_traceback(tmp_path: Path) -> None:
    write_refused(tmp_path)
    code, said = end(start(tolerant(tmp_path), tmp_path, BROKEN))
    assert code == 1
    assert "TypeError: 'NoneType' object is not callable" in said


def test_2_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    code, said = end(start(tolerant(tmp_path), tmp_path))
    assert code == 2
    assert said.startswith("error: manifest ")
    assert not (tmp_path / "output").exists()


def test_2_a_model_that_is_not_in_the_cache_offline_before_ray_starts(tmp_path: Path) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    process = start(job(tmp_path, Path("owner/none")), tmp_path, WITHOUT_RAY, **offline)
    code, said = end(process)
    assert code == 2
    assert said.startswith("error: cannot load model 'owner/none'")
    assert "run `hf download owner/none` with the same HF_HOME" in said
    assert results(tmp_path) == []


def test_3_more_failures_than_allowed(tmp_path: Path) -> None:
    write_refused(tmp_path)
    code, said = end(start(job(tmp_path, Path("demo")), tmp_path))
    assert code == 3
    assert said.startswith("error: 3 of 3 rows failed, more than output.max_failed_fraction")


@pytest.mark.ray
def test_4_workers_that_cannot_be_had(tmp_path: Path) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    config = job(tmp_path, Path("demo"), cluster={"gpus_per_worker": 16.0})
    code, said = end(start(config, tmp_path))
    assert code == 4
    assert said.startswith("error: each worker asks for 16")


def test_5_storage_that_cannot_be_written(tmp_path: Path) -> None:
    write_refused(tmp_path)
    (tmp_path / "file").touch()
    code, said = end(start(tolerant(tmp_path, tmp_path / "file" / "output"), tmp_path))
    assert code == 5
    assert said.startswith(f"error: cannot write {tmp_path}/file/output")


def test_6_an_output_that_another_run_holds(tmp_path: Path) -> None:
    write_refused(tmp_path)
    config = tolerant(tmp_path)
    with hold_lease(Storage(config.output.uri), "first"):
        code, said = end(start(config, tmp_path))
    assert code == 6
    assert "is held by run first on " in said


@pytest.mark.ray
def test_75_interrupted(tmp_path: Path) -> None:
    num_rows = 200
    [name] = write_pictures(tmp_path, 1, size=(24, 16))
    row = edits_of([name])[0]
    write_manifest(tmp_path, [{**row, "id": str(number)} for number in range(num_rows)])
    process = start(job(tmp_path, Path("demo"), engine={"batch_size": 4}), tmp_path, FAKE)
    while process.poll() is None and not list((tmp_path / "output").glob("results/*.parquet")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 75, said
    num_done = len(results(tmp_path))
    assert 0 < num_done < num_rows
    assert f"with {num_rows - num_done} rows to go; the same command continues" in said
