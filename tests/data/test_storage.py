import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

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


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An output folder on a disk, and one on a stand-in for an object store."""
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    return Storage(f"memory://{tmp_path.name}/out")


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


def test_file_names_are_distinct_even_without_case() -> None:
    names = [file_names(row_id, "f") for row_id in ODD_IDS]
    assert len({name.lower() for pair in names for name in pair}) == 2 * len(ODD_IDS)


@pytest.mark.parametrize("row_id", ODD_IDS, ids=lambda row_id: repr(row_id)[:20])
def test_file_names_are_plain_and_stay_in_their_folder(row_id: str) -> None:
    for name, folder in zip(file_names(row_id, "f"), ("edited", "masks"), strict=True):
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
    edited, mask = file_names("Kätzchen 7/b", "f")
    assert PurePosixPath(edited).name.startswith("Katzchen_7_b-")
    assert PurePosixPath(mask).name == PurePosixPath(edited).name


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
