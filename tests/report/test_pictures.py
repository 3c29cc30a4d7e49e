import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffedit_batch.report.pictures import LARGE, SMALL, Pictures


def files(folder: Path, key: str, suffix: str) -> list[Image.Image]:
    names = (f"{key}.{suffix}", f"{key}-small.{suffix}")
    found = []
    for name in names:
        with Image.open(folder / key[:2] / name) as picture:
            found.append(picture.convert("RGBA"))
    return found


def test_large_pictures_shrink_and_small_ones_stay(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    large = pictures.add("photo", "large", lambda: Image.new("RGB", (2000, 1000), "red"))
    small = pictures.add("photo", "small", lambda: Image.new("RGB", (30, 20), "red"))
    assert [one.size for one in files(tmp_path, large, "jpg")] == [
        (LARGE, LARGE // 2),
        (SMALL, SMALL // 2),
    ]
    assert [one.size for one in files(tmp_path, small, "jpg")] == [(30, 20)] * 2


def test_a_mask_is_seen_where_it_is_white_and_through_where_it_is_black(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[:, :30] = 255
    pictures = Pictures(tmp_path)
    key = pictures.add("mask", "m", lambda: Image.fromarray(mask))
    for picture in files(tmp_path, key, "png"):
        pixels = np.array(picture)
        opacity = pixels[:, :, 3]
        assert (opacity[:, 32:] == 0).all()
        assert (opacity[:, :28] == 6 * 17).all()
        assert (opacity[:, 29] == 255).all(), "a firm outline"
        assert (pixels[opacity > 0, :3] == (255, 0, 170)).all()


def test_one_picture_asked_for_by_many_threads_is_read_once(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    reads = []
    everybody = threading.Barrier(8)

    def read() -> Image.Image:
        reads.append(1)
        return Image.new("RGB", (9, 9))

    def add(_: int) -> str:
        everybody.wait()
        return pictures.add("photo", "one", read)

    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(add, range(8)))
    assert (len(keys), len(reads), pictures.num_made) == (1, 1, 1)


def test_what_cannot_be_read_leaves_nothing_and_a_killed_writer_is_cleaned_up(
    tmp_path: Path,
) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "abc.part").write_bytes(b"half")
    pictures = Pictures(tmp_path)

    def fail() -> Image.Image:
        raise OSError("broken")

    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            pictures.add("photo", "one", fail)
    pictures.remove_unused()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
