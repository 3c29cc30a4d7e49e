import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_server import BUCKET, Fault, S3Server

from diffedit_batch.config import InputConfig
from diffedit_batch.data import lookup
from diffedit_batch.data.listing import MIN_ASKED
from diffedit_batch.data.locate import image_root, look_up
from diffedit_batch.data.lookup import ImageFiles
from diffedit_batch.errors import RowError

CONFIG = InputConfig(manifest="manifest.parquet")


@pytest.fixture
def root(tmp_path: Path) -> str:
    folder = tmp_path / "root"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "http:" / "host").mkdir(parents=True)
    for name in ("a.png", "deep/b.png", "deep/er/c.png", "http:/host/d.png"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside").symlink_to(folder / "deep")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.png")
    return image_root(str(folder))


def outcome(found: object) -> object:
    try:
        return found()  # type: ignore[operator]
    except RowError as error:
        return error.stage, error.kind, str(error)


@pytest.mark.parametrize(
    "path",
    [
        *("a.png", "./a.png", "deep/b.png", "deep//b.png", "deep/er/c.png", "deep/../a.png"),
        *("inside/b.png", "link.png", "out.png", "outside/secret.png", "loop/a.png", "pipe.png"),
        *("../secret.png", "/secret.png", "/etc/passwd", "no.png", "no/no.png", "a.png/x.png"),
        *("deep", "deep/", ".", "..", "", "a\0.png", "a\0/b.png", "x" * 5000, "http://host/d.png"),
    ],
)
def test_it_says_what_look_up_says(root: str, path: str) -> None:
    expected = outcome(lambda: look_up(path, root, CONFIG))
    assert outcome(lambda: ImageFiles(root, CONFIG).look_up(path)) == expected


def test_elsewhere_an_image_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    root = f"memory://{tmp_path.name}"
    fs.pipe_file(f"{root}/a.png", b"aaa")
    expected = look_up("a.png", root, CONFIG)
    asked: list[str] = []
    info = fs.info

    def note(path: str) -> object:
        asked.append(path)
        return info(path)

    monkeypatch.setattr(type(fs), "info", lambda self, path: note(path))
    files = ImageFiles(root, CONFIG)
    assert [files.look_up("a.png") for _ in range(3)] == [expected] * 3
    for _ in range(2):
        with pytest.raises(RowError, match="no file"):
            files.look_up("b.png")
    assert len(asked) == 3


def test_a_key_of_the_content_is_of_the_bytes(root: str) -> None:
    config = CONFIG.model_copy(update={"image_key": "content"})
    files = ImageFiles(root, config)
    _, key = files.look_up("a.png")
    os.utime(f"{root}/a.png", (1, 1))
    assert ImageFiles(root, config).look_up("a.png") == (f"{root}/a.png", key)
    assert key != ImageFiles(root, CONFIG).look_up("a.png")[1]


def test_absolute_paths_under_the_root(root: str) -> None:
    path = f"{root}/deep/b.png"
    assert ImageFiles(root, CONFIG).look_up(path) == look_up("deep/b.png", root, CONFIG)


def test_a_plain_file_costs_one_call_and_its_folder_is_resolved_once(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    lstat = os.lstat

    def note(path: str) -> os.stat_result:
        asked.append(path)
        return lstat(path)

    monkeypatch.setattr(lookup, "look_up", lambda path, root, config: pytest.fail(path))
    files = ImageFiles(root, CONFIG)
    files.look_up("deep/b.png")
    monkeypatch.setattr(os, "lstat", note)
    for _ in range(3):
        files.look_up("deep/b.png")
    assert asked == [f"{root}/deep/b.png"] * 3


def put(fs: Any, folder: str, count: int) -> list[str]:
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        fs.pipe_file(f"{folder}/{name}", b"." * number)
    return names


def test_a_folder_of_an_object_store_is_listed_when_many_of_its_files_are_named(
    s3: S3Server, tmp_path: Path
) -> None:
    root = f"s3://{BUCKET}/{tmp_path.name}"
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    names = put(fs, f"{root}/many", 3 * MIN_ASKED)
    few = put(fs, f"{root}/few", 5)
    expected = {name: look_up(f"many/{name}", root, CONFIG) for name in names}
    assert len({key for _, key in expected.values()}) == len(names)

    s3.requests.clear()
    files = ImageFiles(root, CONFIG)
    assert {name: files.look_up(f"many/{name}") for name in names} == expected
    assert (s3.count("HEAD"), s3.count("GET")) == (MIN_ASKED, 1)

    for name in few:
        files.look_up(f"few/{name}")
    with pytest.raises(RowError, match=r"no file .*many/no\.png"):
        files.look_up("many/no.png")
    with pytest.raises(RowError, match="is not under"):
        files.look_up("few/../many/000.png")

    fs.pipe_file(f"{root}/many/000.png", b"changed")
    assert ImageFiles(root, CONFIG).look_up("many/000.png") != expected["000.png"]


def test_a_folder_that_may_not_be_listed_is_asked_for_one_by_one(
    s3: S3Server, tmp_path: Path
) -> None:
    root = f"s3://{BUCKET}/{tmp_path.name}"
    names = put(fsspec.filesystem("s3", use_listings_cache=False), root, MIN_ASKED + 2)
    s3.faults = [Fault(f"GET /{BUCKET}", times=10**6, status=403)]
    files = ImageFiles(root, CONFIG)
    assert all(files.look_up(name)[0] == f"{root}/{name}" for name in names)
    assert s3.faults[0].times == 10**6 - 1, "it was tried once"
