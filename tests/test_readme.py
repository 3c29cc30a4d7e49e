import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROMISES = README.partition("## What is promised")[2].partition("\n## ")[0]


def proofs() -> list[tuple[str, str]]:
    """Every test the promises name: file, and function where one is named."""
    found, file = [], ""
    for path, name in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", PROMISES):
        if path or name:
            file = path or file
            found.append((file, name))
    return found


def test_promises_are_found() -> None:
    assert len(proofs()) > 20


@pytest.mark.parametrize(("file", "name"), proofs())
def test_what_proves_a_promise_is_there(file: str, name: str) -> None:
    text = (ROOT / "tests" / file).read_text("utf-8")
    assert f"def {name or 'test_'}" in text


def test_every_file_is_named() -> None:
    listed = README.partition("## The files")[2].partition("\n## ")[0]
    for path in (ROOT / "diffedit_batch").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{re.escape(path.name)}\b", listed), path
