"""Whole runs whose output is on an object store."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_worker import FakeWorker
from jobs_on_disk import edits_of, job, write_config, write_manifest, write_pictures
from PIL import Image
from results_on_disk import content, pictures, results
from s3_server import BUCKET, Fault, S3Server

from diffedit_batch import cli
from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import encode_png
from diffedit_batch.data.lease import newest_holder
from diffedit_batch.data.listing import MIN_ASKED
from diffedit_batch.data.storage import PROBE, TEMPORARY, Storage, file_names
from diffedit_batch.errors import StorageError
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.messages import BundleResult, Group, WorkerInfo
from diffedit_batch.runtime.plan import plan_job
from diffedit_batch.runtime.selection import Selection
from diffedit_batch.runtime.status import read_status
from diffedit_batch.runtime.worker import Worker
from diffedit_batch.schema import FILE_COLUMNS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def writing_worker(environment: dict[str, str]) -> type:
    """A worker that writes a picture and a mask of each row, wherever `environment` leads it."""

    class WritingWorker(FakeWorker):
        def load(self) -> WorkerInfo:
            os.environ.update(environment)
            self.storage = Storage(self.config.output.uri)
            if not self.storage.exists(PROBE):
                raise StorageError("this worker does not see what the driver wrote")
            return super().load()

        def edit(self, groups: Sequence[Group]) -> BundleResult:
            result = super().edit(groups)
            requests = {request.id: request for group in groups for request in group}
            for row in result.rows:
                request = requests[row["id"]]
                names = file_names(request.id, request.fingerprint)
                for name in names:
                    self.storage.write(name, encode_png(np.zeros((4, 4, 3), np.uint8)))
                row |= zip(FILE_COLUMNS, names, strict=True)
            return result

    return WritingWorker


def check_output(config: JobConfig, num_rows: int) -> list[dict[str, Any]]:
    """What must hold of every finished output."""
    storage = Storage(config.output.uri)
    rows = results(storage)
    assert len(rows) == len({row["id"] for row in rows}) == num_rows
    success = json.loads(storage.read("_SUCCESS"))
    assert success["num_rows"] == num_rows == sum(success["counts"].values())
    assert list(success["parts"]) == storage.names("results", "")
    listed = {row[name] for row in rows for name in FILE_COLUMNS} - {""}
    assert pictures(storage) == listed
    for name in listed:
        Image.open(io.BytesIO(storage.read(name))).load()
    assert storage.names(TEMPORARY, "") == []
    assert not storage.exists(PROBE)
    holder = newest_holder(storage)
    assert holder is not None
    assert holder.is_released
    return rows


def test_a_job_on_an_object_store_that_is_busy_at_times(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Worker", writing_worker(s3.environment))
    rows = edits_of(write_pictures(tmp_path, 12))
    write_manifest(tmp_path, rows)
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    config = job(tmp_path, Path("demo"), output={"uri": uri}, engine={"batch_size": 4})

    s3.faults = [
        Fault("PUT .*/edited/", times=3, status=503),
        Fault("PUT .*/masks/", times=2, status=500, is_after=True),
        Fault("PUT .*/results/", times=2, status=500),
        Fault("PUT .*/lease/", times=1, status=500, is_after=True),
        Fault("HEAD|GET", times=2, status=500),
        Fault("DELETE", times=2, status=503),
    ]
    assert run_job(config, selection=Selection(limit=5)).counts == {"unchanged": 5}
    assert run_job(config).num_skipped == 5
    assert not any(fault.times for fault in s3.faults), "every fault was met"
    check_output(config, 12)

    storage = Storage(uri)
    before = content(storage)
    puts = s3.count("PUT")
    again = run_job(config)
    assert (again.num_skipped, again.counts.total()) == (12, 0)
    assert content(storage) == before
    assert s3.count("PUT") == puts

    rows[0]["target_prompt"] = "a white circle on grass"
    rows[1]["target_prompt"] = "die"
    rows.append({**rows[2], "id": "new"})
    write_manifest(tmp_path, rows)
    changed = run_job(config)
    assert changed.num_skipped == 10
    assert changed.counts == {"unchanged": 2, "failed": 1}
    found = [row for row in check_output(config, 13) if row["status"] == "failed"]
    assert [row["id"] for row in found] == ["001-0"]
    assert read_status(uri)["state"] == "complete"


def test_manifest_pictures_and_output_on_an_object_store(
    tmp_path: Path, s3: S3Server, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers; every picture is read once, every file written in one request."""

    environment = s3.environment

    class ThereWorker(Worker):
        def __init__(self, *args: Any) -> None:
            os.environ.update(environment)
            super().__init__(*args)

    monkeypatch.setattr(driver, "Worker", ThereWorker)
    names = write_pictures(tmp_path, 6)
    manifest = write_manifest(tmp_path, edits_of(names, per_picture=2))
    there = f"s3://{BUCKET}/{tmp_path.name}"
    for name in names:
        Storage(f"{there}/in").write(name, (tmp_path / name).read_bytes())
    Storage(there).write("manifest.parquet", manifest.read_bytes())
    config = job(
        tmp_path,
        tiny_model,
        input={"manifest": f"{there}/manifest.parquet", "image_root": f"{there}/in"},
        output={"uri": f"{there}/out"},
        engine={"batch_size": 1},
    )
    s3.requests.clear()
    assert run_job(config).counts == {"edited": 12}
    folder = f"/{BUCKET}/{tmp_path.name}"
    assert [s3.count(f"GET {folder}/in/{name}") for name in names] == [1] * 6
    rows = check_output(config, 12)
    listed = [row[name] for row in rows for name in FILE_COLUMNS]
    assert [s3.count(f"PUT {folder}/out/{name}$") for name in listed] == [1] * 36
    parts = [one for one in s3.requests if one.startswith(f"PUT {folder}/out/results/")]
    assert parts
    assert [s3.requests[one] for one in parts] == [1] * len(parts)


def test_a_plan_asks_for_folders_of_images_not_for_images(
    tmp_path: Path, s3: S3Server, tiny_model: Path
) -> None:
    pictures, output = (f"s3://{BUCKET}/{tmp_path.name}-{name}" for name in ("in", "out"))
    num_images = 3 * MIN_ASKED
    names = [f"{number}.png" for number in range(num_images)]
    for name in names:
        Storage(pictures).write(name, name.encode())
    write_manifest(tmp_path, edits_of(names, per_picture=2))
    config = job(tmp_path, tiny_model, input={"image_root": pictures}, output={"uri": output})
    before = s3.requests.copy()
    plan = plan_job(config)
    assert (plan.num_images, plan.num_refused) == (num_images, 0)
    # Two for the header of each image; the output is looked into, too.
    num_asked = (s3.requests - before).total() - 2 * num_images
    assert num_asked < MIN_ASKED + 50 < num_images


@pytest.mark.parametrize(
    ("sections", "code", "message"),
    [
        ({"input": {"manifest": "s3://nowhere/in.parquet"}}, 2, "no such Parquet file"),
        ({"input": {"image_root": "s3://nowhere/images"}}, 3, "Most often: load/ImageNotFound"),
        ({"output": {"uri": "s3://nowhere/out"}}, 5, "The specified bucket does not exist"),
    ],
)
def test_a_bucket_that_is_not_there_is_said_at_once(
    tmp_path: Path,
    s3: S3Server,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, dict[str, Any]],
    code: int,
    message: str,
) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    path = write_config(job(tmp_path, Path("demo"), **sections), tmp_path)
    assert cli.main(["run", str(path)]) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
