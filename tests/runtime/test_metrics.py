"""What Prometheus scrapes from a node while a job runs.

In a process of its own: the port and interval of metrics are fixed when Ray starts.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs_on_disk import edits_of, job, write_manifest, write_pictures

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        importlib.util.find_spec("opencensus") is None,
        reason="needs ray[default], whose agent exports metrics",
    ),
]

SCRAPED = """
import json, sys, time, urllib.request
import ray
from prometheus_client.parser import text_string_to_metric_families
from fake_worker import RoomyWorker
from diffedit_batch.config import JobConfig
from diffedit_batch.runtime import driver

driver.Worker = RoomyWorker
ray.init(
    address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
    object_store_memory=150 * 2**20, _system_config={"metrics_report_interval_ms": 500},
)
[node] = ray.nodes()
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
state = driver.run_job(JobConfig.model_validate_json(sys.argv[1]))
found = {}
for _ in range(60):
    text = urllib.request.urlopen(url).read().decode()
    found = [
        [sample.name, sample.labels, sample.value]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_diffedit")
    ]
    if sum(value for name, _, value in found if name == "ray_diffedit_rows_total") == 6:
        break
    time.sleep(1)
print(json.dumps({"run_id": state.run_id, "found": found}))
"""


def test_rows_rates_and_memory_of_each_worker_are_scraped(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 6))
    rows[2]["target_prompt"] = "fail"
    write_manifest(tmp_path, rows)
    output = {"max_failed_fraction": 0.5}
    config = job(tmp_path, Path("demo"), output=output, engine={"batch_size": 2})
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCRAPED, config.model_dump_json()],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": tests},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    found = {
        (name, labels.get("status", "")): (labels, value) for name, labels, value in told["found"]
    }
    labels, value = found["ray_diffedit_rows_total", "unchanged"]
    assert value == 5
    assert labels["run_id"] == told["run_id"]
    assert labels["worker"].startswith("process ")
    assert found["ray_diffedit_rows_total", "failed"][1] == 1
    assert found["ray_diffedit_gpu_memory_used_bytes", ""][1] == 3 * 2**30
    assert found["ray_diffedit_gpu_memory_bytes", ""][1] == 8 * 2**30
    assert found["ray_diffedit_gpu_memory_bytes", ""][0]["worker"] == labels["worker"]
    assert found["ray_diffedit_rows_per_second", ""][1] > 0
    assert found["ray_diffedit_workers", ""][1] == 1
    assert found["ray_diffedit_rows_left", ""][1] == 0
