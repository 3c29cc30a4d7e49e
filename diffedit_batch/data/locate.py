"""Where image paths of a manifest lead: under their root, or nowhere."""

import posixpath
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from diffedit_batch.errors import ConfigError, RowError

_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "last_modified", "LastModified", "created")
"""What tells two contents of one size apart, in the words of different filesystems."""


def image_root(configured: str | None, first_file: str) -> str:
    """The folder all images must be under: as configured, else that of the manifest.

    Raises:
        ConfigError: no filesystem is known for it.
    """
    root = configured or posixpath.dirname(first_file)
    try:
        fs, path = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise ConfigError("config", [f"input.image_root {root!r}: {error}"]) from None
    return str(Path(path).resolve()) if isinstance(fs, LocalFileSystem) else root.rstrip("/")


def look_up(path: str, root: str) -> tuple[str, str]:
    """The full URI of an image path and a key of its content by size and age.

    Raises:
        RowError: it is not there, or not under the root.
    """
    outside = RowError(
        "manifest",
        "PathOutsideRoot",
        f"{path!r} is not under {root}; set input.image_root to a folder above all images",
    )
    if "\0" in path:
        raise outside
    if "://" in root:
        if "::" in path:  # fsspec would open it as a chain of filesystems
            raise outside
        uri = path if "://" in path else f"{root}/{path}"
        if posixpath.normpath(uri.partition("://")[2]) != uri.partition("://")[2] or not (
            uri.startswith(f"{root}/")
        ):
            raise outside
        fs, name = fsspec.core.url_to_fs(uri)
        try:
            info = fs.info(name)
        except FileNotFoundError:
            raise RowError("load", "ImageNotFound", f"no file {uri!r}") from None
        except OSError as error:
            raise RowError("load", "ImageUnreadable", f"{uri[:200]!r}: {error}") from None
        stamp = next((info[name] for name in _STAMPS if info.get(name)), None)
        return uri, f"{info['size']}:{stamp}"
    if "://" in path:
        raise outside
    try:
        resolved = (Path(root) / path).resolve()
        if not resolved.is_relative_to(root):
            raise outside
        status = resolved.stat()
    except FileNotFoundError:
        raise RowError("load", "ImageNotFound", f"no file {path!r} under {root}") from None
    except (OSError, RuntimeError) as error:
        raise RowError("load", "ImageUnreadable", f"{path[:200]!r}: {error}") from None
    return str(resolved), f"{status.st_size}:{status.st_mtime_ns}"
