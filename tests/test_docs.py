import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_worker import RoomyWorker
from jobs_on_disk import edits_of, job, write_manifest, write_pictures

import diffedit_batch
from diffedit_batch.runtime import driver

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "configs" / "cluster" / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "diffedit_batch" / "evaluation").glob("*.md")),
]
PROMISES = (DOCS / "reliability.md").read_text("utf-8").partition("## What is promised")[2]


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


@pytest.mark.ray
def test_the_callback_for_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: None
) -> None:
    """The snippet as it stands, with a recorder in place of wandb."""
    page = (DOCS / "running.md").read_text("utf-8")
    [snippet] = re.findall(r"```python\n(import wandb.*?)```", page, re.DOTALL)
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 6)))
    config = job(tmp_path, Path("demo"), engine={"batch_size": 2})
    logged: list[dict[str, float]] = []
    run = SimpleNamespace(log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: run))
    monkeypatch.setattr(diffedit_batch, "load_config", lambda path: config, raising=False)
    monkeypatch.setattr(driver, "Worker", RoomyWorker)
    exec(snippet, {})
    first, *_, last = logged
    assert first["rows"] == 0
    assert (last["rows"], last["left"], last["failed"]) == (6, 0, 0)
    assert last["GPU GiB"] == 3.0
    assert {type(value) for value in last.values()} <= {int, float}


def test_every_file_is_named() -> None:
    listed = (DOCS / "architecture.md").read_text("utf-8").partition("## The files")[2]
    for path in (ROOT / "diffedit_batch").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{re.escape(path.name)}\b", listed), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
