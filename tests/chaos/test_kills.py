"""Processes killed at random moments; what must hold of the output holds in the end."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chaos_worker import ChaosWorker, lines
from jobs_on_disk import (
    SOURCE,
    check_output,
    edits_of,
    job,
    picture,
    write_config,
    write_manifest,
    write_pictures,
)

from diffedit_batch import cli
from diffedit_batch.config import JobConfig
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.worker import Worker

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]

SEED = 0
BUNDLE_ROWS = 4
NUM_WORKERS = 2
IN_FLIGHT = NUM_WORKERS * 2 * BUNDLE_ROWS
# What differs between two runs that did the same.
OF_THE_RUN = ("run_id", "finished_at", "seconds", "attempts", "attempt_errors")

spawning = multiprocessing.get_context("forkserver")
spawning.set_forkserver_preload(["chaos_worker", "diffedit_batch.runtime.driver"])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of its own, so that a driver's death is only that."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": 100 * 2**20,
            },
        )
        yield cluster.address
        cluster.shutdown()


def drive(path: Path, worker: type[Worker]) -> None:
    """What a driver's process does."""
    driver.Worker = worker  # type: ignore[attr-defined]
    raise SystemExit(cli.main(["run", str(path)]))


def start(config: JobConfig, folder: Path, worker: type[Worker] = ChaosWorker) -> BaseProcess:
    """A driver in a process of its own."""
    path = write_config(config, folder)
    process = spawning.Process(target=drive, args=(path, worker))
    process.start()
    return process


def chaos_job(folder: Path, address: str) -> JobConfig:
    """A job of many small rows with a fake network, two workers beside each other."""
    return job(
        folder,
        Path("demo"),
        engine={"batch_size": BUNDLE_ROWS},
        output={"uri": str(folder / "output"), "max_failed_fraction": 0.5},
        cluster={"address": address, "workers": NUM_WORKERS, "cpus_per_worker": 0.1},
    )


def write_rows(folder: Path, num_rows: int, poison: tuple[int, ...] = ()) -> None:
    # As many rows of a picture as make a bundle: larger groups would be larger bundles.
    names = write_pictures(folder, num_rows // BUNDLE_ROWS, size=(24, 16))
    rows: list[dict[str, Any]] = [
        {
            "id": f"row/{number}",
            "image": names[number % len(names)],
            "source_prompt": SOURCE,
            "target_prompt": "kill" if number in poison else f"number {number}",
        }
        for number in range(num_rows)
    ]
    write_manifest(folder, rows)


def num_committed(folder: Path) -> int:
    parts = (folder / "output" / "results").glob("part-*.parquet")
    total = 0
    for part in parts:
        try:
            total += pq.ParquetFile(part).metadata.num_rows
        except FileNotFoundError:
            continue  # merged into another a moment ago
    return total


def content(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if name not in OF_THE_RUN} for row in rows]


def test_a_driver_killed_twenty_times_ends_as_if_it_had_never_been(
    tmp_path: Path, address: str
) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    num_rows, num_kills = 600, 20
    folder, quiet = tmp_path / "killed", tmp_path / "quiet"
    write_rows(folder, num_rows)
    shutil.copytree(folder, quiet)  # times of files too: they are in the fingerprints
    config = chaos_job(folder, address)
    for kill in range(num_kills):
        process = start(config, folder)
        before = num_committed(folder)
        # Every third one while it starts, the others while it edits and commits.
        end_of_start = time.monotonic() + rng.uniform(0.2, 3.0)
        wanted = before + BUNDLE_ROWS * rng.randint(1, 4)
        while process.is_alive():
            if kill % 3 == 2 and time.monotonic() > end_of_start:
                break
            if kill % 3 != 2 and num_committed(folder) >= wanted:
                time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.005)
        assert process.is_alive(), f"the driver ended by itself with {process.exitcode}"
        process.kill()
        process.join()
    assert num_committed(folder) < num_rows, "the last run must have something to do"
    process = start(config, folder)
    process.join()
    assert process.exitcode == 0
    found = check_output(folder, num_rows)

    process = start(chaos_job(quiet, address), quiet)
    process.join()
    assert process.exitcode == 0
    assert content(found) == content(check_output(quiet, num_rows))
    assert sorted(set(lines(folder / "journal"))) == sorted(row["id"] for row in found)
    num_redone = len(lines(folder / "journal")) - num_rows
    print(f"{num_redone} rows done again after {num_kills} kills")
    assert num_redone <= num_kills * IN_FLIGHT


def test_a_driver_killed_with_the_embedded_model(tmp_path: Path, address: str) -> None:
    folder, quiet = tmp_path / "killed", tmp_path / "quiet"
    rows = edits_of(write_pictures(folder, 6), per_picture=3)
    write_manifest(folder, rows)
    shutil.copytree(folder, quiet)
    config, quiet_config = (
        job(
            here,
            Path("demo"),
            engine={"batch_size": BUNDLE_ROWS},
            cluster={"address": address, "cpus_per_worker": 0.1},
        )
        for here in (folder, quiet)
    )
    for _ in range(2):
        process = start(config, folder, Worker)
        before = num_committed(folder)
        while process.is_alive() and num_committed(folder) == before:
            time.sleep(0.005)
        assert process.is_alive(), f"the driver ended by itself with {process.exitcode}"
        process.kill()
        process.join()
    assert 0 < num_committed(folder) < len(rows)
    for here, its_config in ((folder, config), (quiet, quiet_config)):
        process = start(its_config, here, Worker)
        process.join()
        assert process.exitcode == 0
    found, expected = check_output(folder, len(rows)), check_output(quiet, len(rows))
    for row, other in zip(found, expected, strict=True):
        assert (row["id"], row["status"]) == (other["id"], other["status"])
        # A network rounds last bits by what shares its calls, and a cell at a threshold may tip.
        for kind in ("edited", "mask"):
            pixels, others = (
                picture(here / "output", one[f"{kind}_file_name"]).astype(int)
                for here, one in ((folder, row), (quiet, other))
            )
            assert (np.abs(pixels - others) > 1).mean() < 0.05


def test_workers_killed_at_random_and_rows_that_kill_them(tmp_path: Path, address: str) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    num_rows, poison = 200, (7, 57, 100)  # 7 and 57 are of one picture
    write_rows(tmp_path, num_rows, poison)
    process = start(chaos_job(tmp_path, address), tmp_path)
    num_kills = 0
    while process.is_alive():
        time.sleep(rng.uniform(0.5, 1.5))
        pids = lines(tmp_path / "pids")
        if pids and num_kills < 4 and num_committed(tmp_path) > 8 * num_kills:
            try:
                os.kill(int(pids[-1]), signal.SIGKILL)
                num_kills += 1
            except ProcessLookupError:
                continue
    process.join()
    assert process.exitcode == 0
    found = {row["id"]: row for row in check_output(tmp_path, num_rows)}
    failed = {name for name, row in found.items() if row["status"] == "failed"}
    assert failed == {f"row/{number}" for number in poison}
    assert {found[name]["error_stage"] for name in failed} == {"worker"}
    assert Counter(row["status"] for row in found.values())["edited"] == num_rows - len(poison)
