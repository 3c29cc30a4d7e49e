"""Models of a hub that answers on this machine, loaded by processes with a cache of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

LOAD = """
import sys
from diffedit_batch.config import ModelConfig
from diffedit_batch.models.components import Components
from diffedit_batch.errors import ModelError
try:
    model = Components.load(ModelConfig(id="owner/tiny", revision=sys.argv[1]), "cpu")
except ModelError as error:
    sys.exit(f"{error}")
print(*model.start_seconds)
"""


class Node:
    """A machine with a cache of its own."""

    def __init__(self, cache: Path, endpoint: str) -> None:
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def start(self, revision: str, code: str = LOAD, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, revision],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def load(self, revision: str, **environment: str) -> tuple[int, str]:
        """Exit code, and what was said."""
        process = self.start(revision, **environment)
        said = process.communicate()
        return process.returncode, "".join(said)


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[tuple[HubServer, str, str]]:
    """A hub with the tiny model, its address, and the model's commit."""
    server = HubServer()
    commit = server.push("owner/tiny", tiny_model)
    with server.running() as endpoint:
        yield server, endpoint, commit


def test_two_processes_of_a_node_download_once_and_late_ones_ask_nothing(
    tmp_path: Path, hub: tuple[HubServer, str, str]
) -> None:
    server, endpoint, commit = hub
    node = Node(tmp_path, endpoint)
    together = [node.start(commit) for _ in range(2)]
    for process in together:
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        assert said.split() == ["download", "load", "warm_up"]
    weights = server.downloads()
    assert len(weights) == len(set(weights)) == 3, "UNet, VAE and text encoder"
    trees = [path for _, path in server.requests if "/tree/" in path]
    assert len(trees) == 1, "one of them asked what there is"

    server.requests.clear()
    assert node.load(commit)[0] == 0
    assert server.requests == []
    code, said = Node(tmp_path, "http://127.0.0.1:9").load(commit, HF_HUB_OFFLINE="1")
    assert code == 0, said
