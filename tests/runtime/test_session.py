import ipaddress
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from jobs_on_disk import job

from diffedit_batch.errors import ClusterError
from diffedit_batch.runtime import session

LISTENING = """
import sys, psutil, ray
from jobs_on_disk import job
from pathlib import Path
from diffedit_batch.runtime.session import ray_session

@ray.remote(num_cpus=0.1)
def work():
    return 1

with ray_session(job(Path("."), Path("demo"))):
    assert ray.get(work.remote()) == 1
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == "LISTEN":
                print(process.name(), connection.laddr.ip)
assert "ray.data" not in sys.modules
"""


@pytest.mark.ray
def test_ray_on_this_machine_listens_to_this_machine_only() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    listeners = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert {"gcs_server", "raylet"} <= {name for name, _ in listeners}
    assert "dashboard" not in done.stdout
    for name, address in listeners:
        ip = ipaddress.ip_address(address)
        ip = getattr(ip, "ipv4_mapped", None) or ip
        assert ip.is_loopback, (name, address)


@pytest.mark.parametrize(
    ("num_nodes", "mode", "is_warned"),
    [(2, "", True), (2, "disabled", True), (2, "token", False), (1, "", False)],
)
def test_several_nodes_without_tokens_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    num_nodes: int,
    mode: str,
    is_warned: bool,
) -> None:
    gone = {"Alive": False}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * num_nodes + [gone])
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with caplog.at_level(logging.WARNING):
        session._warn_of_open_cluster()
    assert ("RAY_AUTH_MODE=token" in caplog.text) == is_warned


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **how: pytest.fail("Ray would try for minutes"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    config = job(Path(), Path("demo"), cluster={"address": address})
    refusal = pytest.raises(ClusterError, match=f"no Ray cluster answers at '{address}'")
    with refusal as caught, session.ray_session(config):
        pytest.fail("there is no cluster")
    assert "RAY_ADDRESS" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_cluster_that_refuses_is_asked_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**how: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        config = job(Path(), Path("demo"), cluster={"address": address})
        refusal = pytest.raises(ClusterError, match=r"Failed to connect.*RAY_AUTH_TOKEN")
        with refusal, session.ray_session(config):
            pytest.fail("there is no cluster")
