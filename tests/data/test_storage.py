import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pytest
from s3_server import BUCKET, Fault, S3Server

from diffedit_batch.data.storage import TEMPORARY, Storage, file_names
from diffedit_batch.errors import ConfigError, StorageError

ODD_IDS = [
    "plain",
    "a/b",
    "a_b",
    "a b",
    "a\\b",
    "A_B",
    "é",
    "e\u0301",
    "e",
    "猫",
    "犬",
    "",
    " ",
    ".",
    "..",
    "...",
    "../../etc/passwd",
    "/etc/passwd",
    "-rf",
    "--",
    ".hidden",
    "CON",
    "a\0b",
    "a\nb",
    "<script>alert(1)</script>",
    "\u202egnp.exe",
    "%2e%2e%2f",
    "x" * 60,
    "x" * 61,
    "x" * 10_000,
    "é" * 10_000,
    "." * 100 + "a",
    "\ud800",
]


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """A disk that fills up: writing more into one file fails in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_under(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_written_files_are_read_listed_and_removed(storage: Storage) -> None:
    storage.write("results/b.parquet", b"b")
    storage.write("results/a.parquet", b"")
    storage.write("results/a.txt", b"t")
    storage.write("results/a.parquet", b"new")
    assert storage.read("results/a.parquet") == b"new"
    assert storage.exists("results/b.parquet")
    assert storage.names("results", ".parquet") == ["a.parquet", "b.parquet"]
    storage.remove(["results/a.parquet", "results/gone.parquet", "results/a.parquet"])
    assert not storage.exists("results/a.parquet")
    assert storage.names("results", ".parquet") == ["b.parquet"]


def test_what_is_not_there(storage: Storage) -> None:
    assert storage.names("results", ".parquet") == []
    assert not storage.exists("_SUCCESS")
    with pytest.raises(FileNotFoundError):
        storage.read("_SUCCESS")
    storage.remove(["_SUCCESS"])
    storage.remove_temporary()


def test_nothing_but_the_file_is_left(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("edited/00/a.png", b"a")
    assert files_under(tmp_path) == ["edited/00/a.png"]


def test_relative_and_file_uris_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Storage("out").write("a", b"1")
    Storage(f"file://{tmp_path}/out/").write("b", b"2")
    assert files_under(tmp_path) == ["out/a", "out/b"]


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("results/a.parquet", b"old")
    with files_limited_to(1_000), pytest.raises(StorageError, match=r"a\.parquet"):
        storage.write("results/a.parquet", bytes(2_000))
    assert files_under(tmp_path) == ["results/a.parquet"]
    assert storage.read("results/a.parquet") == b"old"


def test_target_that_cannot_be_replaced(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("results/a.parquet/inside", b"")
    with pytest.raises(StorageError, match="cannot write"):
        storage.write("results/a.parquet", b"new")
    assert files_under(tmp_path) == ["results/a.parquet/inside"]


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        Storage(str(tmp_path / "out")).write("results/a.parquet", b"new")


def test_removing_what_cannot_be_removed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("results/a/b", b"")
    with pytest.raises(StorageError, match="cannot remove"):
        storage.remove(["results/a"])


def test_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match=r"output\.uri 's4://bucket'"):
        Storage("s4://bucket")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    versions = [bytes([number]) * 300_000 for number in range(2)]
    storage.write("a", versions[0])
    is_over = threading.Event()

    def rewrite() -> None:
        for number in range(30):
            storage.write("a", versions[number % 2])
        is_over.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    reads = 0
    while not is_over.is_set() or not reads:
        assert storage.read("a") in versions
        assert storage.names("", "a") == ["a"]
        reads += 1
    writer.join()


def test_leftovers_of_dead_writers_are_removed(storage: Storage) -> None:
    storage.fs.makedirs(storage.full(TEMPORARY), exist_ok=True)
    storage.fs.pipe_file(storage.full(f"{TEMPORARY}/dead"), b"half")
    storage.write("a", b"whole")
    storage.remove_temporary()
    assert storage.names(TEMPORARY, "") == []
    assert storage.read("a") == b"whole"


def test_created_once_and_never_again(storage: Storage) -> None:
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"second")
    assert storage.read("a/b") == b"first"
    assert storage.names(TEMPORARY, "") == []


def test_of_many_that_create_a_file_one_does(storage: Storage) -> None:
    outcomes: dict[bytes, bool] = {}

    def create(data: bytes) -> None:
        outcomes[data] = storage.create("a", data)

    threads = [threading.Thread(target=create, args=(bytes([n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [data for data, is_created in outcomes.items() if is_created]
    assert storage.read("a") == winner


def test_a_writer_whose_temporary_file_is_cleaned_away_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    replace = os.replace

    def clean_and_replace(source: str, target: str) -> None:
        monkeypatch.setattr(os, "replace", replace)
        storage.remove_temporary()
        replace(source, target)

    monkeypatch.setattr(os, "replace", clean_and_replace)
    storage.write("a", b"whole")
    assert storage.read("a") == b"whole"


def test_a_full_disk_is_waited_for_and_then_a_clear_error(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "patience_s", 0.5)
    storage = Storage(str(small_disk))
    storage.write("results/a", b"old")
    with pytest.raises(
        StorageError, match=r"cannot write .*/results/a: No space left .* \(tried \d+ times"
    ) as caught:
        storage.write("results/a", bytes(2_000_000))
    assert "Make room there; the same command then continues" in str(caught.value)
    assert files_under(small_disk) == ["results/a"]
    assert storage.read("results/a") == b"old"


def test_a_full_disk_on_which_room_is_made_is_no_error(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(small_disk))
    (small_disk / "filler").write_bytes(bytes(900_000))
    pauses: list[float] = []

    def make_room(seconds: float) -> None:
        pauses.append(seconds)
        (small_disk / "filler").unlink(missing_ok=True)

    monkeypatch.setattr(time, "sleep", make_room)
    storage.write("a", bytes(500_000))
    assert len(pauses) == 1
    assert files_under(small_disk) == ["a"]


def test_what_will_not_pass_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        tries.append(target)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    tries: list[str] = []
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        StorageError, match=r"Permission denied\. Allow this user to read and write"
    ):
        Storage(str(tmp_path)).write("a", b"")
    assert len(tries) == 1


@pytest.fixture
def remote(s3: S3Server, tmp_path: Path) -> Storage:
    """An output folder on an object store that breaks on request."""
    return Storage(f"s3://{BUCKET}/{tmp_path.name}/out")


@pytest.mark.parametrize("status", [500, 503])
def test_a_busy_or_broken_server_is_asked_again(s3: S3Server, remote: Storage, status: int) -> None:
    def survive(request: str, action: Callable[[], Any]) -> Any:
        s3.faults = [Fault(request, times=2, status=status)]
        result = action()
        assert s3.faults[0].times == 0, "the fault was not met"
        return result

    survive("PUT", lambda: remote.write("results/a", b"a"))
    assert survive("GET", lambda: remote.read("results/a")) == b"a"
    assert survive("GET|HEAD", lambda: remote.read_with("results/a", lambda f: f.read())) == b"a"
    assert survive("GET|HEAD", lambda: remote.exists("results/a"))
    assert survive("GET|HEAD", lambda: remote.names("results", "")) == ["a"]
    assert survive("PUT", lambda: remote.create("results/b", b"b"))
    survive("DELETE", lambda: remote.remove(["results/a"]))
    assert remote.names("results", "") == ["b"]


def test_a_create_whose_answer_was_lost_is_known_as_ours(s3: S3Server, remote: Storage) -> None:
    s3.faults = [Fault("PUT .*/a$", times=1, status=500, is_after=True)]
    assert remote.create("a", b"ours")
    assert not s3.faults[0].times
    s3.faults = [Fault("PUT .*/a$", times=1, status=500)]
    assert not remote.create("a", b"theirs")


def test_a_server_that_stays_broken_is_a_clear_error(
    s3: S3Server, remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "patience_s", 0.3)
    s3.faults = [Fault("", times=10**6, status=500)]
    actions: list[Callable[[], Any]] = [
        lambda: remote.write("a", b""),
        lambda: remote.create("a", b""),
        lambda: remote.read("a"),
        lambda: remote.exists("a"),
        lambda: remote.names("", ""),
        lambda: remote.remove(["a"]),
    ]
    for action in actions:
        with pytest.raises(
            StorageError, match=r"cannot \w+ bucket/.*: .*See that it can be reached"
        ):
            action()


def test_a_server_that_refuses_is_not_asked_again(s3: S3Server, remote: Storage) -> None:
    s3.faults = [Fault("PUT", times=2, status=403)]
    with pytest.raises(StorageError, match="Allow this user to read and write there"):
        remote.write("a", b"")
    assert s3.faults[0].times == 1


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    storage = Storage("s3://nobodys-bucket/out")
    assert storage.names("results", "") == []
    with pytest.raises(StorageError, match="cannot write nobodys-bucket/out/a"):
        storage.write("a", b"")


def test_a_slow_answer_is_not_waited_for_for_ever(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 2}})
    storage = Storage(f"s3://{BUCKET}/{tmp_path.name}/out")
    s3.faults = [Fault("PUT", times=1, delay_s=4.0), Fault("GET", times=1, delay_s=4.0)]
    storage.write("a", b"whole")
    assert storage.read("a") == b"whole"
    assert not any(fault.times for fault in s3.faults)


def test_no_server_at_all_is_a_clear_error(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "patience_s", 0.3)
    # Port 9 is where nobody listens.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StorageError, match=r"Could not connect .* See that it can be reached"):
        Storage(f"s3://{BUCKET}/{tmp_path.name}/out").write("a", b"")


def test_file_names_are_distinct_even_without_case() -> None:
    names = [file_names(row_id, "f") for row_id in ODD_IDS]
    assert len({name.lower() for three in names for name in three}) == 3 * len(ODD_IDS)


@pytest.mark.parametrize("row_id", ODD_IDS, ids=lambda row_id: repr(row_id)[:20])
def test_file_names_are_plain_and_stay_in_their_folder(row_id: str) -> None:
    for name, folder in zip(file_names(row_id, "f"), ("edited", "masks", "maps"), strict=True):
        top, shard, leaf = PurePosixPath(name).parts
        assert top == folder
        assert len(shard) == 2
        stem, digest = leaf.removesuffix(".png").rsplit("-", 1)
        assert digest.startswith(shard)
        assert len(digest) == 16
        assert 1 <= len(stem) <= 60
        assert set(digest + shard) <= set("0123456789abcdef")
        assert stem.isascii()
        assert all(letter.isalnum() or letter in "._-" for letter in stem)
        assert stem[0] not in ".-"


def test_file_names_are_readable() -> None:
    names = file_names("Kätzchen 7/b", "f")
    assert PurePosixPath(names.edited).name.startswith("Katzchen_7_b-")
    assert len({PurePosixPath(name).name for name in names}) == 1


def test_file_names_follow_id_and_fingerprint() -> None:
    assert file_names("a", "f") == file_names("a", "f")
    assert file_names("a", "f") != file_names("a", "g")
    assert file_names("a", "bc") != file_names("ab", "c")


@pytest.mark.parametrize("row_id", ["../../x", "/etc/passwd", "a\0b", "x" * 10_000, ".."])
def test_files_of_odd_ids_are_written_under_the_root(tmp_path: Path, row_id: str) -> None:
    root = tmp_path / "out"
    storage = Storage(str(root))
    names = file_names(row_id, "f")
    for name in names:
        storage.write(name, b"png")
    assert files_under(root) == sorted(names)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
