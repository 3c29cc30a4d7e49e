import hashlib
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from diffedit_batch.config import InputConfig
from diffedit_batch.data import web
from diffedit_batch.data.locate import find_manifest, image_root
from diffedit_batch.data.locate import look_up as look_up_with
from diffedit_batch.errors import ConfigError, RowError

OUTSIDE = [
    "..",
    "../secret.png",
    "a/../../secret.png",
    "/etc/passwd",
    "/dev/zero",
    "link/secret.png",
    "link-to-file.png",
    "a\0.png",
    "\0",
    "s3://bucket/a.png::file",
]
ELSEWHERE = [
    "file:///etc/passwd",
    "local:///etc/passwd",
    "memory://bucket/a.png",
    "ftp://host/a.png",
    "S3://bucket/a.png",
    "http://169.254.169.254/latest/",
    "http://[::ffff:169.254.169.254]/",
    "https://2130706433/",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one image and ways out of it."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b.png").write_bytes(b"12345")
    (folder / "link").symlink_to(tmp_path)
    (folder / "link-to-file.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "a" / "b.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return folder


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """The same on a filesystem that is not local."""
    uri = f"memory://{tmp_path.name}/root"
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{uri}/a/b.png", b"12345")
    fs.pipe_file(f"memory://{tmp_path.name}/secret.png", b"secret")
    fs.pipe_file(f"{uri}-2/c.png", b"neighbour")
    return uri


def look_up(path: str, root: str, **options: Any) -> tuple[str, str]:
    return look_up_with(path, root, InputConfig(manifest="m.parquet", **options))


def refusal(path: str, root: str) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        look_up(path, root)
    return caught.value.stage, caught.value.kind


@pytest.mark.parametrize("path", ["a/b.png", "./a//b.png", "a/../a/b.png", "inside.png"])
def test_paths_under_the_root_are_found(root: Path, path: str) -> None:
    uri, key = look_up(path, str(root))
    assert uri == str(root / "a" / "b.png")
    assert key.startswith("5:")


def test_absolute_paths_under_the_root_are_found(root: Path) -> None:
    assert look_up(str(root / "a" / "b.png"), str(root))[0] == str(root / "a" / "b.png")


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_leave_the_root_are_refused(root: Path, path: str) -> None:
    assert refusal(path, str(root)) == ("manifest", "PathOutsideRoot")


@pytest.mark.parametrize("path", ELSEWHERE)
def test_schemes_are_refused_that_are_not_allowed(root: Path, remote: str, path: str) -> None:
    for start in (str(root), remote):
        assert refusal(path, start) == ("manifest", "SchemeNotAllowed")


def test_missing_file_is_told_from_a_forbidden_one(root: Path) -> None:
    assert refusal("a/no.png", str(root)) == ("load", "ImageNotFound")


@pytest.mark.parametrize("path", ["x" * 10_000, "loop.png", "a/b.png/c.png"])
def test_paths_the_system_refuses_are_row_errors(root: Path, path: str) -> None:
    assert refusal(path, str(root))[0] == "load"


def test_key_follows_content_not_place(root: Path) -> None:
    _, key = look_up("a/b.png", str(root))
    copy = root / "copy.png"
    copy.write_bytes(b"12345")
    stamp = (root / "a" / "b.png").stat().st_mtime_ns
    os.utime(copy, ns=(stamp, stamp))
    assert look_up("copy.png", str(root))[1] == key
    copy.write_bytes(b"123456")
    os.utime(copy, ns=(stamp, stamp))
    assert look_up("copy.png", str(root))[1] != key
    copy.write_bytes(b"54321")
    os.utime(copy, ns=(stamp, stamp + 1))
    assert look_up("copy.png", str(root))[1] != key


def test_remote_paths_under_the_root_are_found(remote: str) -> None:
    for path in ("a/b.png", f"{remote}/a/b.png"):
        uri, key = look_up(path, remote)
        assert uri == f"{remote}/a/b.png"
        assert key.startswith("5:")


@pytest.mark.parametrize(
    "path",
    [
        *(path for path in OUTSIDE if not path.startswith(("link", "/"))),
        "a/./b.png",
        "/etc/passwd",
        "zip://x::file:///etc/passwd",
        "a/b.png::file",
        "x::simplecache",
    ],
)
def test_paths_that_leave_a_remote_root_are_refused(remote: str, path: str) -> None:
    assert refusal(path, remote) == ("manifest", "PathOutsideRoot")


def test_neighbours_of_a_remote_root_are_refused(remote: str) -> None:
    assert refusal(f"{remote}/../secret.png", remote) == ("manifest", "PathOutsideRoot")
    assert refusal(f"{remote}/%2e%2e/secret.png", remote) == ("manifest", "PathOutsideRoot")
    assert refusal(f"{remote}-2/c.png", remote) == ("manifest", "SchemeNotAllowed")


def test_missing_remote_file(remote: str) -> None:
    assert refusal("a/no.png", remote) == ("load", "ImageNotFound")


def test_remote_key_changes_with_equal_size(remote: str) -> None:
    _, key = look_up("a/b.png", remote)
    assert look_up("a/b.png", remote)[1] == key
    fsspec.filesystem("memory").pipe_file(f"{remote}/a/b.png", b"54321")
    assert look_up("a/b.png", remote)[1] != key


def test_a_manifest_is_in_its_folder_however_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = [str(tmp_path / "deep" / name) for name in ("a.parquet", "b.parquet")]
    for file in files:
        Path(file).touch()
    deep = str(tmp_path / "deep")
    assert find_manifest(files[0]) == (files[:1], deep)
    assert find_manifest(f"{deep}/*.parquet") == (files, deep)
    assert find_manifest(deep) == (files, deep)
    assert find_manifest(str(tmp_path)) == (files, str(tmp_path))


def test_a_remote_manifest_keeps_its_scheme() -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/m.parquet", b"")
    assert find_manifest("memory://bucket/m.parquet") == (
        ["memory:///bucket/m.parquet"],
        "memory:///bucket",
    )


def test_remote_roots_lose_their_last_slash() -> None:
    assert image_root("memory://b/images/") == "memory://b/images"


def test_root_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert image_root(str(tmp_path / "link")) == str(tmp_path / "real")


def test_file_uri_is_a_local_root(root: Path) -> None:
    # Taken for remote, it would be searched without a look at symbolic links.
    local = image_root(f"file://{root}")
    assert local == str(root)
    assert refusal("link/secret.png", local) == ("manifest", "PathOutsideRoot")


def test_unknown_scheme_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"input\.image_root 's4://bucket'"):
        image_root("s4://bucket")


def test_a_content_key_follows_the_bytes_alone(root: Path, remote: str) -> None:
    file = root / "a" / "b.png"
    key = hashlib.sha256(b"12345").hexdigest()
    assert look_up("a/b.png", str(root), image_key="content") == (str(file), key)
    assert look_up("a/b.png", remote, image_key="content")[1] == key
    os.utime(file, ns=(1, 1))
    assert look_up("a/b.png", str(root), image_key="content")[1] == key
    file.write_bytes(b"54321")
    os.utime(file, ns=(1, 1))
    assert look_up("a/b.png", str(root), image_key="content")[1] != key


def test_a_content_key_is_not_made_of_what_is_too_large(root: Path) -> None:
    with pytest.raises(RowError) as caught:
        look_up("a/b.png", str(root), image_key="content", max_bytes=4)
    assert caught.value.kind == "ImageTooLarge"
    assert look_up("a/b.png", str(root), image_key="stat", max_bytes=4)


def test_allowed_schemes_lead_anywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store that is there: s3fs need not be installed for this test."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("memory://bucket/a.png", b"123")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda uri: (memory, uri.partition("://")[2]))
    for scheme in ("s3", "gs"):
        uri = f"{scheme}://bucket/a.png"
        assert look_up(uri, str(root))[0] == uri
        with pytest.raises(RowError, match=r"not in input\.allowed_schemes"):
            look_up(uri, str(root), allowed_schemes=[])
    for path in ("s3://bucket/../a.png", "s3://bucket//a.png", "s3://bucket/a.png::file://x"):
        assert refusal(path, str(root)) == ("manifest", "PathOutsideRoot")


@pytest.mark.parametrize("root", ["http://images.example/set", "https://images.example/set/"])
def test_a_web_server_may_be_the_root(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "stamp", lambda url: f"stamp of {url}")
    start = image_root(root)
    for path in ("a/b.png", "a b.png?size=1"):
        assert look_up(path, start) == (f"{start}/{path}", f"stamp of {start}/{path}")
    for path in ("../x.png", "a/%2e%2e/%2e%2e/x.png", "a/./b.png"):
        assert refusal(path, start) == ("manifest", "PathOutsideRoot")
    assert refusal("http://images.example/other.png", start) == ("manifest", "SchemeNotAllowed")


def test_a_web_image_without_a_version_is_known_by_its_content(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "stamp", lambda url: None)
    monkeypatch.setattr(web, "fetch", lambda url, max_bytes: b"12345")
    url = "https://images.example/a.png"
    _, key = look_up(url, str(root), allowed_schemes=["https"])
    assert key == hashlib.sha256(b"12345").hexdigest()


def test_a_store_that_is_not_installed_is_a_row_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(uri: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(RowError, match="Install s3fs"):
        look_up("s3://bucket/a.png", str(root))
