"""Image files wherever they are: their bytes, and a key that changes with them."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from diffedit_batch.data import web
from diffedit_batch.errors import RowError

_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "last_modified", "LastModified", "created")
"""What tells two contents of one size apart, in the words of different filesystems."""


def read_file(uri: str, max_bytes: int, num_bytes: int | None = None) -> bytes:
    """The bytes of a file, by local path or URI.

    Args:
        uri: the file.
        max_bytes: larger ones are refused.
        num_bytes: only the first so many, where that spares reading the others.

    Raises:
        RowError: stage `load`; it is missing, no regular file, unreadable or too large.
    """
    if _is_web(uri):
        return web.fetch(uri, max_bytes)
    end = max_bytes + 1 if num_bytes is None else min(num_bytes, max_bytes + 1)
    with _explained(uri):
        if "://" in uri:
            fs, path = fsspec.core.url_to_fs(uri)
            size = int(fs.size(path) or 0)
            data = fs.cat_file(path, end=end) if 0 < size <= max_bytes else b""
        else:
            with _open_local(uri) as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(end) if size <= max_bytes else b""
    if max(size, len(data)) > max_bytes:
        raise RowError(
            "load",
            "ImageTooLarge",
            f"{max(size, len(data)):,} bytes, more than input.max_bytes {max_bytes:,}",
        )
    return bytes(data)


def stat_key(uri: str, max_bytes: int) -> str:
    """Size and age of a file, or its hash where a web server tells no age.

    Raises:
        RowError: as `read_file`.
    """
    if _is_web(uri):
        return web.stamp(uri) or content_key(uri, max_bytes)
    with _explained(uri):
        if "://" in uri:
            fs, path = fsspec.core.url_to_fs(uri)
            return info_key(fs.info(path))
        status = Path(uri).stat()
        return f"{status.st_size}:{status.st_mtime_ns}"


def info_key(info: Mapping[str, Any]) -> str:
    """The same of what an fsspec filesystem says about a file."""
    stamp = next((info[name] for name in _STAMPS if info.get(name)), None)
    return f"{info['size']}:{stamp}"


def content_key(uri: str, max_bytes: int) -> str:
    """The hash of a file, as that of bytes in a manifest.

    Raises:
        RowError: as `read_file`.
    """
    return hashlib.sha256(read_file(uri, max_bytes)).hexdigest()


def _is_web(uri: str) -> bool:
    return uri.partition("://")[0] in web.SCHEMES and "://" in uri


@contextmanager
def _open_local(path: str) -> Iterator[BinaryIO]:
    """A regular file opened once, so that what is checked is what is read.

    Its path was resolved when the manifest was read: a link in its place now is not what was
    looked at. Without `O_NONBLOCK` opening a pipe would wait for its other end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RowError("load", "ImageUnreadable", f"{path!r} is not a regular file")
        yield file


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RowError("load", "ImageNotFound", f"no file {uri!r}") from None
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RowError("load", "ImageUnreadable", f"{uri[:200]!r}: {reason}") from error
