"""However many workers share a job, its results are those of one."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from jobs_on_disk import check_output, edits_of, job, write_manifest, write_pictures

from diffedit_batch.runtime import driver
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.messages import BundleResult
from diffedit_batch.runtime.worker import Worker

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

OF_THE_RUN = {"run_id", "finished_at", "seconds"}


class TogetherWorker(Worker):
    """The worker of the job; none edits before all have something to edit."""

    def edit(self, groups: Any) -> BundleResult:
        marks = Path(self._config.output.uri).parent / "marks"
        (marks / str(os.getpid())).touch()
        while len(list(marks.iterdir())) < self._config.cluster.workers:  # type: ignore[operator]
            time.sleep(0.05)
        return super().edit(groups)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edits of twenty pictures, more than eight workers take at once; one row of them is bad, one
    has nothing to change.
    """
    folder = tmp_path_factory.mktemp("input")
    names = write_pictures(folder, 20, size=(70, 45))
    rows = [*edits_of(names[:2], per_picture=2), *edits_of(names[2:])]
    rows[1]["inpaint_strength"] = 1.5
    rows[9]["target_prompt"] = rows[9]["source_prompt"]
    return write_manifest(folder, rows)


def results_of(folder: Path, manifest: Path, model: Path, num_workers: int) -> list[dict[str, Any]]:
    """What a job with so many workers makes of the manifest."""
    (folder / "marks").mkdir()
    config = job(
        folder,
        model,
        input={"manifest": str(manifest)},
        # One evaluation in a call: its last bits then do not depend on what else is under way.
        engine={"batch_size": 1},
        cluster={"workers": num_workers},
    )
    assert len(run_job(config).workers) == num_workers
    found = check_output(folder, 22)
    return [{name: row[name] for name in row if name not in OF_THE_RUN} for row in found]


@pytest.fixture(scope="module")
def alone(
    ray_here: None, tmp_path_factory: pytest.TempPathFactory, manifest: Path, tiny_model: Path
) -> list[dict[str, Any]]:
    """The results of one worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "Worker", TogetherWorker)
        return results_of(tmp_path_factory.mktemp("alone"), manifest, tiny_model, 1)


@pytest.mark.parametrize("num_workers", [2, 4, 8])
def test_workers_together_do_what_one_does_alone(
    tmp_path: Path,
    manifest: Path,
    tiny_model: Path,
    alone: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
) -> None:
    monkeypatch.setattr(driver, "Worker", TogetherWorker)
    together = results_of(tmp_path, manifest, tiny_model, num_workers)
    assert {row["status"] for row in together} == {"edited", "unchanged", "failed"}
    # With the hashes of all files, which `check_output` has compared with their bytes.
    assert together == alone
