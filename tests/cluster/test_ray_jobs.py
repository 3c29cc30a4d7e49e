"""`ray job submit` to a head with a token, all on this machine."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs_on_disk import (
    check_output,
    edits_of,
    job,
    results,
    write_config,
    write_manifest,
    write_pictures,
)

from diffedit_batch.runtime.status import read_status

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        importlib.util.find_spec("opencensus") is None, reason="needs ray[default] for its head"
    ),
]

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
FAKE = (
    "import sys; from fake_worker import FakeWorker; from diffedit_batch.runtime import driver;"
    "driver.Worker = FakeWorker; from diffedit_batch import cli;"
    "sys.exit(cli.main(['run', *sys.argv[1:]]))"
)


@dataclass
class Head:
    """A running head.

    Attributes:
        environment: what a submission needs to reach it.
        folder: where it keeps its files.
    """

    environment: dict[str, str]
    folder: Path

    def submit(
        self, *command: str, submission_id: str | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        chosen = ["--submission-id", submission_id] if submission_id else []
        return subprocess.Popen(
            [*RAY, "job", "submit", *chosen, "--working-dir", str(ROOT), "--", *command],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def answers(self) -> bool:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/version"
        try:
            urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=5).close()
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Below /tmp, because paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, client_port, dashboard_port = free_ports(3)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Workers in tests may be classes of modules beside the folder of this file.
        "PYTHONPATH": str(ROOT / "tests"),
    }
    options = {
        "--port": port,
        "--ray-client-server-port": client_port,
        "--dashboard-port": dashboard_port,
        "--dashboard-agent-listen-port": 0,
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--num-cpus": 2,
        "--num-gpus": 0,
        "--object-store-memory": 150 * 2**20,
        "--temp-dir": folder,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", "--disable-usage-stats"]
            + [f"{name}={value}" for name, value in options.items()],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # for all of it to be found again
        )
    head = Head(environment, folder)
    try:
        while not head.answers():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield head
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_runs_and_uploads_little(
    head: Head, tmp_path: Path, tiny_model: Path
) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    path = write_config(job(tmp_path, tiny_model), tmp_path)
    submission = head.submit("python", "jobs/edit_dataset.py", str(path))
    said, _ = submission.communicate()
    assert submission.returncode == 0, said
    assert read_status(str(tmp_path / "output"))["state"] == "complete"
    check_output(tmp_path, 1)

    found = head.folder.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*")
    [uploaded] = [path for path in found if path.is_dir()]
    assert {path.name for path in uploaded.iterdir()} == {"configs", "jobs"}
    sizes = [path.stat().st_size for path in uploaded.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) < 2**18


def test_a_stopped_job_is_not_success(head: Head, tmp_path: Path) -> None:
    num_rows = 400
    [row] = edits_of(write_pictures(tmp_path, 1))
    row["target_prompt"] = "slow"
    write_manifest(tmp_path, [{**row, "id": str(number)} for number in range(num_rows)])
    path = write_config(job(tmp_path, Path("demo"), engine={"batch_size": 2}), tmp_path)
    submission = head.submit("python", "-c", FAKE, str(path), submission_id="stopped")
    while submission.poll() is None and not list((tmp_path / "output").glob("results/*.parquet")):
        time.sleep(0.05)
    stop = [*RAY, "job", "stop", "stopped"]
    subprocess.run(stop, env=head.environment, capture_output=True, check=True)
    said, _ = submission.communicate()
    assert submission.returncode == 0, said  # which is why callers look at the output
    status = read_status(str(tmp_path / "output"))
    assert status["state"] == "incomplete"
    assert status["success"] is None
    assert 0 < len(results(tmp_path)) < num_rows


def test_an_output_that_ray_would_delete_is_refused(head: Head, tmp_path: Path) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    path = write_config(job(tmp_path, Path("demo"), output={"uri": "out/results"}), tmp_path)
    submission = head.submit("python", "jobs/edit_dataset.py", str(path))
    said, _ = submission.communicate()
    assert submission.returncode == 1
    assert "failed with exit code 2" in said
    assert "output.uri 'out/results': lies in the folder that `ray job submit` uploads" in said


def test_without_the_token_nothing_is_run(head: Head, tmp_path: Path) -> None:
    url = f"{head.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    order = f'{{"entrypoint": "touch {tmp_path}/marker"}}'.encode()
    headers = {"Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(urllib.request.Request(url, order, headers), timeout=10)
    submission = head.submit("touch", f"{tmp_path}/marker", RAY_AUTH_TOKEN="0" * 64)
    assert "Authentication failed" in submission.communicate()[0]
    assert submission.returncode != 0
    assert not (tmp_path / "marker").exists()
