"""Configs of Ray's cluster launcher against Ray's own schema."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import validate_config

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"
FILES = sorted(CLUSTER.glob("launcher-*.yaml"))


def with_defaults(path: Path) -> dict[str, Any]:
    """What the launcher makes of a file."""
    config = yaml.safe_load(path.read_text("utf-8"))
    provider = config["provider"]["type"]
    defaults = Path(ray.autoscaler.__file__).parent / provider / "defaults.yaml"
    return {**yaml.safe_load(defaults.read_text("utf-8")), **config}


def test_there_are_some() -> None:
    assert {path.stem for path in FILES} == {"launcher-aws", "launcher-gcp"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rays_schema_holds(path: Path) -> None:
    config = with_defaults(path)
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config({**config, "max_worker": 8})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_gpus_come_and_go_and_every_node_has_the_token(path: Path) -> None:
    config = with_defaults(path)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    gpu = config["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 1
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"])
    assert any(word in str(gpu["node_config"]) for word in ("spot", "'preemptible': True"))
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for start in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert start[0] == "ray stop"
        assert start[1].startswith("RAY_AUTH_MODE=token ray start ")
