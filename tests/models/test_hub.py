"""Models of a hub that answers on this machine, loaded by processes with a cache of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

LOAD = """
import logging, os, sys
from pathlib import Path
from diffedit_batch.config import ModelConfig
from diffedit_batch.models.components import Components
from diffedit_batch.errors import ModelError

class Told(logging.Handler):
    def emit(self, record):
        if "not acquired" in record.getMessage():
            Path(os.environ["HF_HOME"], "somebody-waits").touch()

logging.getLogger("filelock").addHandler(Told())
logging.getLogger("filelock").setLevel(logging.DEBUG)
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
    assert Node(tmp_path / "alone", endpoint).load(commit)[0] == 0
    num_questions = server.num_questions()
    server.requests.clear()

    node = Node(tmp_path, endpoint)
    # Nothing is sent before the second has come: it waits, or asks the hub too.
    server.holds = lambda: (
        not ((tmp_path / "somebody-waits").exists() or server.num_questions() > num_questions)
    )
    together = [node.start(commit) for _ in range(2)]
    for process in together:
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        assert said.split() == ["download", "load", "warm_up"]
    weights = server.downloads()
    assert len(weights) == len(set(weights)) == 3, "UNet, VAE and text encoder"
    assert server.num_questions() == num_questions, "of one, for both"

    server.requests.clear()
    assert node.load(commit)[0] == 0
    assert server.requests == []
    code, said = Node(tmp_path, "http://127.0.0.1:9").load(commit, HF_HUB_OFFLINE="1")
    assert code == 0, said


def test_a_model_that_is_not_in_the_cache_offline_says_what_to_do(tmp_path: Path) -> None:
    node = Node(tmp_path, "http://127.0.0.1:9")
    code, said = node.load("main", HF_HUB_OFFLINE="1")
    assert code == 1
    assert "cannot load model 'owner/tiny' (hub, revision main" in said
    for words in (
        "safetensors only, offline",
        f"must have it in its cache, {tmp_path / 'hub'}",
        "run `hf download owner/tiny --revision main` with the same HF_HOME",
        "or set the id to a local folder",
    ):
        assert words in said
    assert "Traceback" not in said


def test_half_a_model_in_the_cache_is_completed(
    tmp_path: Path, hub: tuple[HubServer, str, str]
) -> None:
    server, endpoint, commit = hub
    node = Node(tmp_path, endpoint)
    assert node.load(commit)[0] == 0
    [unet] = tmp_path.rglob("unet/*.safetensors")
    unet.resolve().unlink()
    unet.unlink()
    server.requests.clear()
    assert node.load(commit)[0] == 0
    [weights] = server.downloads()
    assert "/unet/" in weights


PIN = """
import json, sys
from diffedit_batch.config import JobConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.hub import pin
job = JobConfig.model_validate({
    "model": {"id": "demo"},
    "prompts": {"id": "owner/tiny"},
    "scores": {"clip": "owner/tiny"},
    "captions": {"id": "nobody/none", "revision": "v1"},
    "input": {"manifest": "m"},
    "output": {"uri": "o"},
})
_, sections, is_here = sys.argv[1].split(":")
try:
    pinned, commits = pin(job, sections.split(), is_here=is_here == "here")
except ModelError as error:
    print(json.dumps(str(error)))
else:
    assert pinned.model == job.model
    assert "torch" not in sys.modules
    print(json.dumps([pinned.prompts.revision, pinned.captions.revision, commits]))
    assert pinned.scores.revision == commits.get("scores")
"""


@pytest.mark.parametrize(
    ("sections", "is_reached", "where", "expected"),
    [
        ("model scores prompts", True, "here", "pinned"),
        ("captions", True, "there", "cannot load model 'nobody/none' (hub, revision v1"),
        ("prompts", False, "here", "cannot load model 'owner/tiny' (hub, revision main"),
        ("prompts", False, "there", "left open"),
    ],
)
def test_branches_become_commits_before_anything_is_started(
    tmp_path: Path,
    hub: tuple[HubServer, str, str],
    sections: str,
    is_reached: bool,
    where: str,
    expected: str,
) -> None:
    _, endpoint, commit = hub
    node = Node(tmp_path, endpoint if is_reached else "http://127.0.0.1:9")
    process = node.start(f"pin:{sections}:{where}", PIN, HF_HUB_OFFLINE=str(int(not is_reached)))
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    found = json.loads(said)
    if expected == "pinned":
        assert found == [commit, "v1", {"scores": commit, "prompts": commit}]
    elif expected == "left open":
        assert found == [None, "v1", {}]
    else:
        assert found.startswith(expected)


WRITE = """
import sys
from diffedit_batch.config import PromptsConfig
from diffedit_batch.models.prompts import PromptWriter
config = PromptsConfig(id="owner/writer", revision=sys.argv[1], num_prompts=1, max_new_tokens=4)
PromptWriter.load(config, "cpu", seed=0)
"""


def test_a_prompt_writer_of_the_hub_is_downloaded_without_pickled_weights(
    tmp_path: Path, tiny_prompt_writer: Path, hub: tuple[HubServer, str, str]
) -> None:
    server, endpoint, _ = hub
    folder = shutil.copytree(tiny_prompt_writer, tmp_path / "writer")
    (folder / "pytorch_model.bin").write_bytes(b"not to be had")
    commit = server.push("owner/writer", folder)
    for is_there in (False, True):
        server.requests.clear()
        process = Node(tmp_path / "cache", endpoint).start(commit, WRITE)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert len(server.downloads()) == (0 if is_there else 1)
        assert server.downloads(".bin") == []


REVIEW = """
import sys
from diffedit_batch.config import ModelConfig, ScoresConfig
from diffedit_batch.models.components import Components
model, clip, is_reviewed = sys.argv[1].split(":")
config = ModelConfig(id="owner/flagging", revision=model)
Components.load(config, "cpu")
if is_reviewed == "yes":
    from diffedit_batch.engine.reviewing import Reviewer
    Reviewer.load(ScoresConfig(clip="owner/clip", revision=clip), config, device="cpu")
"""


def test_models_that_review_are_downloaded_once_and_only_where_they_are_asked(
    tmp_path: Path,
    tiny_flagging_model: Path,
    tiny_clip: Path,
    hub: tuple[HubServer, str, str],
) -> None:
    server, endpoint, _ = hub
    model = server.push("owner/flagging", tiny_flagging_model)
    clip = server.push("owner/clip", tiny_clip)
    node = Node(tmp_path, endpoint)
    for is_reviewed, files in (
        ("no", ["text_encoder", "unet", "vae"]),
        ("yes", ["owner/clip", "safety_checker"]),
        ("yes", []),
    ):
        server.requests.clear()
        process = node.start(f"{model}:{clip}:{is_reviewed}", REVIEW)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        found = sorted(server.downloads())
        assert len(found) == len(files)
        assert all(file in path for path, file in zip(found, files, strict=True))
    assert server.requests == [], "what is there takes no request at all"
