"""The Slurm recipe on a Slurm of two nodes, both of them this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
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

from diffedit_batch.config import JobConfig

DAEMONS = ("munged", "slurmctld", "slurmd")
SCRIPT = Path(__file__).parents[2] / "configs" / "cluster" / "slurm.sbatch"
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(shutil.which(name, path=SBIN) for name in DAEMONS),
        reason="needs root, slurmctld, slurmd and munge",
    ),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ReturnToService=2
KillWait=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=bf_interval=1,sched_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

RAY = """#!/bin/sh
{fault}
exec {python} -m ray.scripts.scripts "$@"
"""
DIFFEDIT_BATCH = """#!{python}
import sys
from fake_worker import FakeWorker
from diffedit_batch import cli
from diffedit_batch.runtime import driver
driver.Worker = FakeWorker
sys.exit(cli.main())
"""


@dataclass
class Slurm:
    """A running Slurm."""

    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    def submit(self, folder: Path, environment: Path, config: str) -> str:
        """The id of a job on one node, with its log in the folder."""
        return self.run(
            *("sbatch", "--parsable", "--nodes=1", "--gpus-per-node=0", f"--chdir={folder}"),
            f"--export=ALL,VENV={environment}",
            *(str(SCRIPT), config),
        )

    def state(self, job_id: str) -> dict[str, str]:
        shown = self.run("scontrol", "show", "job", job_id)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("ctld", "d-n1", "d-n2"):
        (folder / name).mkdir()
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    configuration = CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "cgroup.conf").write_text("ConstrainCores=no\nConstrainRAMSpace=no\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    names = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "SLURM"))}
    environment = names | {
        "PATH": SBIN,
        "SLURM_CONF": str(folder / "slurm.conf"),
        # Workers in tests may be classes of modules beside the folder of this file.
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    munged = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file")]
    munged += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log"]
    munged += [f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / "daemons.log").open("a") as log:
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    slurm = Slurm(environment)
    try:
        start("munged", *munged)
        wait_for(lambda: (folder / "munge.socket").exists())
        start("slurmctld", "-D", "-c", "-f", environment["SLURM_CONF"])
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node, "-f", environment["SLURM_CONF"])
        wait_for(lambda: slurm.run("sinfo", "-h", "-o", "%D %T") == "2 idle")
        yield slurm
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=60, check=False)
    finally:
        started = [psutil.Process(daemon.pid) for daemon in daemons]
        left = [child for process in started for child in process.children(recursive=True)]
        for process in [*left, *started]:
            process.send_signal(signal.SIGKILL)
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def write_environment(folder: Path, fault: str = "") -> Path:
    """What the script takes for a virtual environment, with a worker that costs nothing."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("ray", RAY), ("diffedit-batch", DIFFEDIT_BATCH)):
        path = folder / "bin" / name
        path.write_text(text.format(python=sys.executable, fault=fault))
        path.chmod(0o755)
    return folder


def write_job(folder: Path, num_rows: int, order: str = "") -> str:
    """A job of which every row costs what a target prompt orders."""
    folder.mkdir()
    [row] = edits_of(write_pictures(folder, 1))
    row["target_prompt"] = order or row["target_prompt"]
    write_manifest(folder, [{**row, "id": str(number)} for number in range(num_rows)])
    config: JobConfig = job(folder, Path("demo"), engine={"batch_size": 2})
    return str(write_config(config, folder))


def test_two_jobs_on_one_machine_of_which_one_is_interrupted_and_requeued(
    slurm: Slurm, tmp_path: Path
) -> None:
    environment = write_environment(tmp_path / "environment")
    long, short, go_on = (tmp_path / name for name in ("long", "short", "go-on"))
    long_id = slurm.submit(tmp_path, environment, write_job(long, 400, f"wait for {go_on}"))
    short_id = slurm.submit(tmp_path, environment, write_job(short, 4))
    logs = {job_id: tmp_path / f"slurm-{job_id}.log" for job_id in (long_id, short_id)}

    def is_over(job_id: str) -> bool:
        return slurm.state(job_id)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

    wait_for(lambda: is_over(short_id))
    assert slurm.state(short_id)["JobState"] == "COMPLETED", logs[short_id].read_text()
    check_output(short, 4)

    wait_for(lambda: "workers: 1" in logs[long_id].read_text())
    state = slurm.state(long_id)
    assert (state["JobState"], state["Restarts"]) == ("RUNNING", "0"), logs[long_id].read_text()
    slurm.run("scancel", "--signal=USR1", long_id)  # as `--signal` does before the time limit
    wait_for(lambda: is_over(long_id) or "SIGUSR1: finishing" in logs[long_id].read_text())
    go_on.touch()
    wait_for(lambda: is_over(long_id) or slurm.state(long_id)["Restarts"] == "1")
    assert 0 < len(results(long)) < 400
    assert not (long / "output" / "_SUCCESS").exists()

    # Not in two minutes; at once, the node would still refuse the job it has just ended.
    slurm.run("scontrol", "update", f"JobId={long_id}", "StartTime=now+3")
    wait_for(lambda: is_over(long_id))
    said = logs[long_id].read_text()
    assert slurm.state(long_id)["JobState"] == "COMPLETED", said
    assert "the same command continues" in said
    check_output(long, 400)
    assert not [path for job_id in logs for path in Path("/tmp").glob(f"ray_{job_id}")]


def test_ray_that_does_not_start_is_no_success(slurm: Slurm, tmp_path: Path) -> None:
    fault = 'if [ "$1" = start ]; then echo "no ports left" >&2; exit 1; fi'
    environment = write_environment(tmp_path / "environment", fault)
    job_id = slurm.submit(tmp_path, environment, write_job(tmp_path / "job", 1))
    wait_for(lambda: slurm.state(job_id)["JobState"] not in ("PENDING", "RUNNING"))
    said = (tmp_path / f"slurm-{job_id}.log").read_text()
    state = slurm.state(job_id)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "4:0"), said
    assert "no ports left" in said
    assert "the job did not run" in said
