"""The Dockerfile against what it installs."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
INSTALLS = [found for line in LINES for found in re.findall(r"pip install[^&]*", line)]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def arguments(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_installed_is_pinned_and_there() -> None:
    from_elsewhere, ours = INSTALLS
    assert "-c constraints.txt" in from_elsewhere
    assert "--no-deps" in ours
    [extras] = re.findall(r"'\.\[([\w,]+)\]'", from_elsewhere)
    # All that a run may need; the others are for measuring and for developers.
    assert set(extras.split(",")) == set(PROJECT["optional-dependencies"]) - {"dev", "evaluate"}


@pytest.mark.parametrize(
    "requirement",
    [
        requirement
        for requirements in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for requirement in requirements
        if not requirement.startswith("diffedit_batch")
    ],
)
def test_every_dependency_is_pinned(requirement: str) -> None:
    name = re.split(r"[\[<>=]", requirement)[0]
    pins = (ROOT / "constraints.txt").read_text("utf-8").lower().replace("_", "-")
    assert f"\n{name.lower().replace('_', '-')}==" in pins


def test_what_is_copied_is_there_and_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    copied = [source for *sources, _ in arguments("COPY") for source in sources]
    assert {f"!{source}" for source in copied} == {line for line in ignored if line[0] == "!"}
    assert all((ROOT / source).exists() for source in copied)
    # What the package's metadata names is needed to install it.
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(copied)


def test_it_runs_as_nobody_in_particular_and_holds_no_secret() -> None:
    [[user]] = arguments("USER")
    assert int(user) > 0
    names = {pair.split("=")[0] for pairs in arguments("ENV") for pair in pairs}
    assert names == {"PATH", "PYTHONUNBUFFERED"}
    assert not arguments("ARG")
