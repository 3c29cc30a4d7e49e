"""Image bytes from untrusted places, decoded to upright RGB, or refused with a reason.

Only PNG, JPEG and WebP are opened, by the first frame; sizes are checked before anything is
decoded. Rotation by EXIF is applied; palette, grey, 16-bit and CMYK images become RGB, transparency
becomes white; metadata is not kept.
"""

import functools
import io
import stat
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diffedit_batch.errors import RowError
from diffedit_batch.schema import ImageRef

FORMATS = ("PNG", "JPEG", "WEBP")


def read_picture(ref: ImageRef, *, max_bytes: int, max_pixels: int) -> NDArray[np.uint8]:
    """The picture as uint8 (H, W, 3).

    Raises:
        RowError: stage `load`; it is missing, too large, or no readable image.
    """
    image = _decode(_read_bytes(ref, max_bytes), max_pixels)
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def read_mask(ref: ImageRef, *, max_bytes: int, max_pixels: int) -> NDArray[np.bool_]:
    """An own mask as bool (H, W): true where the picture is brighter than mid grey."""
    picture = read_picture(ref, max_bytes=max_bytes, max_pixels=max_pixels)
    return np.asarray(picture.mean(axis=2) > 127.5)


def encode_png(picture: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """A uint8 (H, W, 3) picture as RGB, or a bool (H, W) mask as 8-bit grey (0 and 255)."""
    pixels = picture * np.uint8(255) if picture.dtype == np.bool_ else picture
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _read_bytes(ref: ImageRef, max_bytes: int) -> bytes:
    if not ref.uri:
        data = bytes(_column(ref.file, ref.row_group, ref.column)[ref.row].as_py() or b"")
        size = len(data)
    else:
        try:
            if "://" in ref.uri:
                size = int(fsspec.open(ref.uri).fs.size(ref.uri) or 0)
            else:
                status = Path(ref.uri).stat()
                if not stat.S_ISREG(status.st_mode):
                    raise RowError("load", "ImageUnreadable", f"{ref.uri!r} is not a regular file")
                size = status.st_size
            if size <= max_bytes:
                with fsspec.open(ref.uri, "rb") as file:
                    data = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise RowError("load", "ImageNotFound", f"no file {ref.uri!r}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise RowError("load", "ImageUnreadable", f"{ref.uri!r}: {reason}") from error
    if size > max_bytes:
        raise RowError(
            "load",
            "ImageTooLarge",
            f"{size:,} bytes, more than input.max_bytes {max_bytes:,}",
        )
    return data


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit decides, before decoding; Pillow's own only warns at first.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise RowError(
                    "load",
                    "ImageTooLarge",
                    f"{width} x {height} pixels, more than input.max_pixels {max_pixels:,}",
                )
            image.load()
        return image
    except UnidentifiedImageError:
        raise RowError(
            "load", "ImageUnreadable", f"not a {', '.join(FORMATS)} image ({len(data):,} bytes)"
        ) from None
    except Image.DecompressionBombError as error:
        raise RowError("load", "ImageTooLarge", str(error)) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise RowError("load", "ImageUnreadable", f"broken image: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@functools.lru_cache(maxsize=4)
def _column(file: str, row_group: int, column: str) -> pa.ChunkedArray:
    """One binary column of one row group, kept for the neighbours that are read next."""
    with fsspec.open(file, "rb") as source:
        table = pq.ParquetFile(source).read_row_group(row_group, columns=[column])
    values = table.column(0)
    for name in column.split(".")[1:]:
        values = pa.chunked_array([chunk.field(name) for chunk in values.chunks])
    return values
