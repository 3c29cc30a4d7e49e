import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffedit_batch.data.images import encode_png, read_mask, read_picture, read_size
from diffedit_batch.errors import RowError
from diffedit_batch.schema import ImageRef

LIMITS = {"max_bytes": 1_000_000, "max_pixels": 1_000_000}
ORIENTATION = 0x0112
MAKE = 0x010F

Picture = NDArray[np.uint8]


def scene(height: int = 6, width: int = 10) -> Picture:
    """A picture without any symmetry."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(folder: Path, data: bytes) -> ImageRef:
    path = folder / "image"
    path.write_bytes(data)
    return ImageRef(uri=str(path))


def picture_of(folder: Path, data: bytes) -> Picture:
    return read_picture(stored(folder, data), **LIMITS)


def refusal(ref: ImageRef, *, max_bytes: int = 1_000_000, max_pixels: int = 1_000_000) -> RowError:
    with pytest.raises(RowError) as caught:
        read_picture(ref, max_bytes=max_bytes, max_pixels=max_pixels)
    assert caught.value.stage == "load"
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_pictures_come_back_unchanged(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    picture = picture_of(tmp_path, encoded(Image.fromarray(scene()), kind, **options))
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, scene())


def test_result_is_writable(tmp_path: Path) -> None:
    picture = picture_of(tmp_path, encoded(Image.fromarray(scene())))
    picture[0, 0] = 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "first_row", "first_column"),
    [
        (1, "top", "left"),
        (2, "top", "right"),
        (3, "bottom", "right"),
        (4, "bottom", "left"),
        (5, "left", "top"),
        (6, "right", "top"),
        (7, "right", "bottom"),
        (8, "left", "bottom"),
    ],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, kind: str, orientation: int, first_row: str, first_column: str
) -> None:
    # Four flat quarters survive JPEG; the sides are those of the EXIF standard's table.
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 24), np.uint8))
    sides = (first_row, first_column)
    flipped = upright[:: -1 if "bottom" in sides else 1, :: -1 if "right" in sides else 1]
    sensor = flipped if orientation < 5 else flipped.T
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(sensor)).convert("RGB")
    picture = picture_of(tmp_path, encoded(image, kind, exif=exif, quality=95))
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture[..., 0].astype(int) - upright).max() < 16


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
    ids=["no header", "offset outside", "cut", "orientation 99"],
)
def test_broken_exif_does_not_spoil_the_picture(tmp_path: Path, kind: str, exif: bytes) -> None:
    data = encoded(Image.fromarray(scene()), kind, exif=exif)
    assert picture_of(tmp_path, data).shape == (6, 10, 3)


def test_odd_tags_do_not_hide_the_orientation(tmp_path: Path) -> None:
    # A SHORT where text belongs reads well and cannot be written again.
    tags = struct.pack("<HHIHH", MAKE, 3, 1, 7, 0) + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + b"\0\0\0\0"
    assert picture_of(tmp_path, encoded(Image.fromarray(scene()), exif=exif)).shape == (10, 6, 3)


def test_palette_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert picture_of(tmp_path, encoded(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        picture = picture_of(tmp_path, encoded(image, transparency=transparency))
        assert picture.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    picture = picture_of(tmp_path, encoded(Image.fromarray(grey)))
    assert np.array_equal(picture, np.repeat(grey[..., None], 3, axis=2))


def test_bilevel_becomes_black_and_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert picture_of(tmp_path, encoded(image))[..., 0].tolist() == [[0, 255]]


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (200, 0, 0, 51))
    picture = picture_of(tmp_path, encoded(image))
    assert picture.tolist() == [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    assert picture_of(tmp_path, encoded(image)).tolist() == [[[100] * 3, [255] * 3]]


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = picture_of(tmp_path, encoded(image, "JPEG", quality=95))
    assert np.abs(picture.astype(int) - [255, 0, 0]).max() <= 4


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    picture = picture_of(tmp_path, encoded(Image.fromarray(deep)))
    assert picture[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_animation_gives_its_first_frame(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=9, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert (picture_of(tmp_path, data) == [255, 0, 0]).all()


def test_several_pictures_in_one_jpeg_give_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert (picture_of(tmp_path, data) > 250).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_image_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(Image.fromarray(scene(48, 64)), kind)
    error = refusal(stored(tmp_path, data[: int(len(data) * share)]))
    assert error.kind == "ImageUnreadable"


def test_corrupt_image_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(scene(48, 64))))
    data[len(data) // 2] ^= 0xFF
    assert refusal(stored(tmp_path, bytes(data))).kind == "ImageUnreadable"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"<!doctype html><title>404</title>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) show\n",
        encoded(Image.new("RGB", (8, 8)), "GIF"),
        encoded(Image.new("RGB", (8, 8)), "TIFF"),
        encoded(Image.new("RGB", (8, 8)), "BMP"),
        encoded(Image.new("RGB", (8, 8)), "PDF"),
    ],
    ids=["empty", "signature", "html", "svg", "eps", "gif", "tiff", "bmp", "pdf"],
)
def test_what_is_no_image_of_ours_is_refused(tmp_path: Path, data: bytes) -> None:
    assert refusal(stored(tmp_path, data)).kind == "ImageUnreadable"


@pytest.mark.parametrize(
    ("width", "height"),
    [(9_000, 9_000), (12_000, 12_000), (40_000, 40_000), (2**31 - 1, 1), (1, 2**31 - 1)],
)
def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    # Decoding it would find the data missing: another kind of error.
    ref = stored(tmp_path, png_header(width, height))
    assert refusal(ref, max_pixels=64_000_000).kind == "ImageTooLarge"


def test_limits_are_inclusive(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(scene(6, 10)))
    ref = stored(tmp_path, data)
    assert read_picture(ref, max_bytes=len(data), max_pixels=60).shape == (6, 10, 3)
    error = refusal(ref, max_bytes=len(data), max_pixels=59)
    assert error.kind == "ImageTooLarge"
    assert "10 x 6" in str(error)
    error = refusal(ref, max_bytes=len(data) - 1, max_pixels=60)
    assert error.kind == "ImageTooLarge"
    assert "max_bytes" in str(error)


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(ImageRef(uri=str(tmp_path / "no.png"))).kind == "ImageNotFound"


def test_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(ImageRef(uri=str(tmp_path))).kind == "ImageUnreadable"


@pytest.mark.timeout(20)
def test_fifo_and_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path / "fifo"), "/dev/zero"):
        assert refusal(ImageRef(uri=path)).kind == "ImageUnreadable"


def test_local_names_are_never_read_as_uris(tmp_path: Path) -> None:
    for name in ("a::b.png", "simplecache::c.png", "what?*[1].png"):
        path = tmp_path / name
        path.write_bytes(encoded(Image.fromarray(scene())))
        picture = read_picture(ImageRef(uri=str(path)), **LIMITS)
        assert np.array_equal(picture, scene())


def test_remote_file(tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}/a.png"
    assert refusal(ImageRef(uri=uri)).kind == "ImageNotFound"
    data = encoded(Image.fromarray(scene()))
    fsspec.filesystem("memory").pipe_file(uri, data)
    assert np.array_equal(read_picture(ImageRef(uri=uri), **LIMITS), scene())
    assert refusal(ImageRef(uri=uri), max_bytes=len(data) - 1).kind == "ImageTooLarge"


@pytest.mark.parametrize("shape", ["binary", "large_binary", "dictionary", "struct", "dotted"])
def test_parquet_cells_of_several_row_groups(tmp_path: Path, shape: str) -> None:
    shades = [0, 50, 100, 150, 200]
    cells = pa.array([encoded(Image.new("L", (4, 4), shade)) for shade in shades], pa.binary())
    name, column = "image", "image"
    if shape == "struct":
        paths = pa.array([f"{shade}.png" for shade in shades])
        cells = pa.StructArray.from_arrays([paths, cells], ["path", "bytes"])
        column = "image.bytes"
    elif shape == "dictionary":
        cells = cells.dictionary_encode()
    elif shape == "large_binary":
        cells = cells.cast(pa.large_binary())
    elif shape == "dotted":
        name = column = "image.bytes"
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"id": shades, name: cells, "image_2": shades}), path, row_group_size=2)
    for number, shade in enumerate(shades):
        ref = ImageRef(file=str(path), row_group=number // 2, row=number % 2, column=column)
        assert (read_picture(ref, **LIMITS) == shade).all()


def test_parquet_cell_that_is_null_empty_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image": pa.array([None, b"", b"x" * 100], pa.binary())}), path)
    refs = [ImageRef(file=str(path), row=row, column="image") for row in range(3)]
    assert refusal(refs[0]).kind == "ImageUnreadable"
    assert refusal(refs[1]).kind == "ImageUnreadable"
    assert refusal(refs[2], max_bytes=99).kind == "ImageTooLarge"


def test_mask_is_true_where_brighter_than_mid_grey(tmp_path: Path) -> None:
    ref = stored(tmp_path, encoded(Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))))
    mask = read_mask(ref, **LIMITS)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[False, False, True, True]]


def test_mask_is_checked_like_a_picture(tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        read_mask(stored(tmp_path, b"nothing"), **LIMITS)
    assert (caught.value.stage, caught.value.kind) == ("load", "ImageUnreadable")


def test_png_round_trip(tmp_path: Path) -> None:
    data = encode_png(scene())
    assert np.array_equal(picture_of(tmp_path, data), scene())
    assert data == encode_png(scene())
    mask = scene()[..., 0] > 127
    assert np.array_equal(read_mask(stored(tmp_path, encode_png(mask)), **LIMITS), mask)
    assert Image.open(io.BytesIO(encode_png(mask))).mode == "L"


def test_png_carries_no_metadata() -> None:
    assert Image.open(io.BytesIO(encode_png(scene()))).info == {}


def test_what_is_transparent_is_outside_a_mask(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    image.putpixel((1, 2), (255, 255, 255, 255))
    mask = read_mask(stored(tmp_path, encoded(image)), **LIMITS)
    assert np.argwhere(mask).tolist() == [[2, 1]]


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(Image.fromarray(scene())))
    (tmp_path / "a.png").symlink_to(tmp_path / "secret.png")
    assert refusal(ImageRef(uri=str(tmp_path / "a.png"))).kind == "ImageUnreadable"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_small_file_of_many_pixels_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """As subprocess, whose memory can be looked at: decoded, it would take 300 MB."""
    path = tmp_path / "bomb"
    Image.new("1" if kind == "PNG" else "RGB", (10_000, 10_000)).save(path, kind)
    assert path.stat().st_size < 200_000
    code = """
import resource, sys
from diffedit_batch.data.images import read_picture
from diffedit_batch.errors import RowError
from diffedit_batch.schema import ImageRef
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    read_picture(ImageRef(uri=sys.argv[1]), max_bytes=64_000_000, max_pixels=64_000_000)
except RowError as error:
    print(error.kind, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    error, peak_mib = done.stdout.split()
    assert error == "ImageTooLarge"
    assert int(peak_mib) < 60


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "iCCP"])
def test_text_that_unpacks_into_much_is_refused_or_left(tmp_path: Path, chunk: str) -> None:
    packed = zlib.compress(bytes(200_000_000), 9)
    head = {"zTXt": b"k\0\0", "iTXt": b"k\0\1\0\0\0", "iCCP": b"k\0\0"}[chunk]
    body = chunk.encode() + head + packed
    data = encoded(Image.fromarray(scene()))
    extra = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    ref = stored(tmp_path, data[:33] + extra + data[33:])
    tracemalloc.start()
    try:
        picture = read_picture(ref, **LIMITS)
        assert np.array_equal(picture, scene())
    except RowError as error:
        assert error.kind == "ImageUnreadable"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_a_size_is_that_of_the_picture(tmp_path: Path, kind: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(scene(30, 50)), kind, exif=exif)
    height, width = picture_of(tmp_path, data).shape[:2]
    assert read_size(stored(tmp_path, data), **LIMITS) == (width, height)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_size_is_read_without_the_pixels(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(scene(300, 500)), kind, compress_level=0, quality=100)
    assert len(data) > 100_000
    assert read_size(stored(tmp_path, data[:70_000]), **LIMITS) == (500, 300)
    assert refusal(stored(tmp_path, data[:70_000])).kind == "ImageUnreadable"


def test_a_long_header_is_read_to_its_end(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[MAKE] = "x" * 60_000
    exif[ORIENTATION] = 6
    image = Image.fromarray(scene(30, 50))
    data = encoded(image, "JPEG", exif=exif, icc_profile=b"y" * 100_000, quality=90)
    assert data.index(b"\xff\xc0") > 1 << 16
    assert read_size(stored(tmp_path, data), **LIMITS) == (30, 50)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "ImageUnreadable"),
        (b"no picture" * 10_000, "ImageUnreadable"),
        (png_header(5_000, 5_000), "ImageTooLarge"),
        (b"0" * 1_000_001, "ImageTooLarge"),
    ],
)
def test_a_header_is_refused_as_the_picture_would_be(
    tmp_path: Path, data: bytes, kind: str
) -> None:
    ref = stored(tmp_path, data)
    with pytest.raises(RowError) as caught:
        read_size(ref, **LIMITS)
    assert caught.value.kind == kind == refusal(ref).kind
    assert str(caught.value) == str(refusal(ref))
