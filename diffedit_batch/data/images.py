"""Image bytes from untrusted places, decoded to upright RGB, or refused with a reason.

Only PNG, JPEG and WebP are opened, by the first frame; sizes are checked before anything is
decoded. Rotation by EXIF is applied; palette, grey, 16-bit and CMYK images become RGB, transparency
becomes white; metadata is not kept.
"""

import functools
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFilter, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from diffedit_batch.data.files import read_file
from diffedit_batch.data.parquet import open_parquet
from diffedit_batch.errors import ManifestError, RowError
from diffedit_batch.schema import ImageRef

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
FORMATS = tuple(SUFFIXES)
XMP = "XML:com.adobe.xmp"
"""The keyword of XMP in a PNG."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_HEADER_BYTES = 1 << 16
"""In which the header of nearly every picture ends."""


def read_picture(ref: ImageRef, *, max_bytes: int, max_pixels: int) -> NDArray[np.uint8]:
    """The picture as uint8 (H, W, 3).

    Raises:
        RowError: stage `load`; it is missing, too large, or no readable image.
    """
    return decode_picture(_read_bytes(ref, max_bytes), max_pixels)


def read_original(ref: ImageRef, *, max_bytes: int, max_pixels: int) -> tuple[bytes, str]:
    """The bytes of an image as they are stored, and what a file of them ends in (`.jpg`).

    Raises:
        RowError: as `read_picture`, but that only its head is looked at.
    """
    data = _read_bytes(ref, max_bytes)
    return data, SUFFIXES[str(_open(data, max_pixels).format)]


def read_mask(ref: ImageRef, *, max_bytes: int, max_pixels: int) -> NDArray[np.bool_]:
    """An own mask as bool (H, W): true where the picture is brighter than mid grey and opaque.

    Raises:
        RowError: as `read_picture`.
    """
    return decode_mask(_read_bytes(ref, max_bytes), max_pixels)


def decode_picture(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The picture in the bytes of a file, as `read_picture`."""
    return np.array(_to_rgb(_upright(_decode(data, max_pixels))))


def decode_mask(data: bytes, max_pixels: int) -> NDArray[np.bool_]:
    """The mask in the bytes of a file, as `read_mask`."""
    return _bright(_upright(_decode(data, max_pixels)))


def picture_of(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey, RGB or RGBA pixels, uint8 (H, W) or (H, W, 1 | 3 | 4), as uint8 (H, W, 3).

    Raises:
        RowError: stage `load`; the array is of another type or shape.
    """
    return np.array(_to_rgb(_image_of(pixels)))


def mask_of(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """A mask given as pixels like a picture, or as bool (H, W), as `read_mask`. Errors as of
    `picture_of`.
    """
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    return _bright(_image_of(pixels))


def read_size(ref: ImageRef, *, max_bytes: int, max_pixels: int) -> tuple[int, int]:
    """Width and height of the picture as it would be read, by its header alone: that its pixels can
    be decoded too is not said.

    Raises:
        RowError: as `read_picture`, as far as a header tells.
    """
    start = _read_bytes(ref, max_bytes, _HEADER_BYTES)
    try:
        image = _open(start, max_pixels)
    except RowError as error:
        if error.kind != "ImageUnreadable" or len(start) < _HEADER_BYTES:
            raise
        # A header may be long, and of a WebP Pillow wants to see all.
        image = _open(_read_bytes(ref, max_bytes), max_pixels)
    width, height = image.size
    # Pillow would decode a PNG to look for EXIF behind its pixels.
    is_told = image.format != "PNG" or "exif" in image.info
    is_on_its_side = is_told and _orientation(image) in _ON_ITS_SIDE
    return (height, width) if is_on_its_side else (width, height)


def encode_png(
    picture: NDArray[np.uint8] | NDArray[np.bool_], texts: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """A uint8 (H, W, 3) picture as RGB, a uint8 (H, W) map as 8-bit grey, or a bool (H, W) mask as
    such (0 and 255); with text chunks by keyword, in Unicode where Latin-1 does not do.
    """
    chunks = PngInfo()
    for keyword, text in texts.items():
        # The one keyword that readers of XMP look for, in no other kind of chunk.
        add = chunks.add_itxt if keyword == XMP else chunks.add_text
        add(keyword, text)
    pixels = picture * np.uint8(255) if picture.dtype == np.bool_ else picture
    buffer = io.BytesIO()
    # Photographs of 768 px: 67 ms and 725 kB; level 6 152 ms and 715 kB, level 1 39 ms and 812 kB.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4, pnginfo=chunks)
    return buffer.getvalue()


def blur(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture past recognition: large areas of colour are left of it."""
    radius = max(picture.shape[:2]) / 16
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _read_bytes(ref: ImageRef, max_bytes: int, num_bytes: int | None = None) -> bytes:
    """The bytes of an image; of a file, where `num_bytes` says so, only the first."""
    if ref.uri:
        return read_file(ref.uri, max_bytes, num_bytes)
    try:
        cell = _column(ref.file, ref.row_group, ref.column)[ref.row]
        if isinstance(cell, pa.DictionaryScalar):
            cell = cell.value
        buffer = cell.as_buffer() if cell.is_valid else b""
    except (OSError, pa.ArrowException, ManifestError) as error:
        raise RowError("load", "ImageUnreadable", f"{ref.file}: {error}") from error
    if len(buffer) > max_bytes:
        raise RowError(
            "load",
            "ImageTooLarge",
            f"{len(buffer):,} bytes, more than input.max_bytes {max_bytes:,}",
        )
    return bytes(buffer)


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    image = _open(data, max_pixels)
    with _refusing(data):
        image.load()
    return image


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the header was read."""
    with _refusing(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise RowError(
                "load",
                "ImageTooLarge",
                f"{width} x {height} pixels, more than input.max_pixels {max_pixels:,}",
            )
    return image


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises into one RowError."""
    try:
        with warnings.catch_warnings():
            # Our own limit decides, before decoding; Pillow's only warns at first. It also warns of
            # EXIF it cannot read.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except RowError:
        raise
    except UnidentifiedImageError:
        raise RowError(
            "load", "ImageUnreadable", f"not a {', '.join(FORMATS)} image ({len(data):,} bytes)"
        ) from None
    except Image.DecompressionBombError as error:
        raise RowError("load", "ImageTooLarge", str(error)) from None
    except Exception as error:  # whatever decoders meet in bytes from anywhere
        raise RowError("load", "ImageUnreadable", f"broken image: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says."""
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(image: Image.Image) -> object:
    """What the EXIF says, or nothing where it cannot be read."""
    try:
        # ImageOps.exif_transpose would also rewrite the other tags, and fail where they are odd.
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever Pillow's parser meets in bytes from anywhere
        return None


def _image_of(pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    is_known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not is_known or not pixels.size:
        raise RowError(
            "load",
            "ImageUnreadable",
            f"an array of {pixels.dtype} {pixels.shape}; expected uint8 (H, W) or (H, W, 1|3|4)",
        )
    return Image.fromarray(pixels)


def _bright(image: Image.Image) -> NDArray[np.bool_]:
    return np.asarray(np.array(_to_rgb(image, "black")).mean(axis=2) > 127.5)


def _to_rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


@functools.lru_cache(maxsize=2)
def _column(file: str, row_group: int, column: str) -> pa.ChunkedArray:
    """One binary column of one row group, kept for the neighbours that are read next."""
    with open_parquet(file) as table:
        return table.leaf(row_group, column)
