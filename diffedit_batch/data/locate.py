"""Where the files of a manifest are, and where its image paths lead: under the root only."""

import posixpath
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from diffedit_batch.errors import ConfigError, ManifestError, RowError

_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "last_modified", "LastModified", "created")
"""What tells two contents of one size apart, in the words of different filesystems."""


def find_manifest(uri: str) -> tuple[list[str], str]:
    """The Parquet files a manifest URI means (file, folder or glob), and the folder they are in.

    Raises:
        ManifestError: there are none.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        folder = posixpath.dirname(path)
        if fs.isdir(path):
            folder = path
            found = [p for p in fs.find(path) if p.endswith(".parquet")]
        elif fs.isfile(path):
            found = [path]
        else:
            found = [p for p in fs.glob(path) if fs.isfile(p)]
            folder = posixpath.dirname(min(found, default=path))
    except (OSError, ImportError, ValueError) as error:
        raise ManifestError(f"manifest {uri}", [f"cannot be opened: {error}"]) from None
    found = sorted(p for p in found if not _is_hidden(p, path))
    if not found:
        raise ManifestError(f"manifest {uri}", ["no such Parquet file, folder or glob"])
    if "://" in uri:
        return [fs.unstrip_protocol(p) for p in found], fs.unstrip_protocol(folder)
    return found, folder


def _is_hidden(file: str, start: str) -> bool:
    """Whether a file, or a folder between `start` and it, is what writers hide from readers."""
    below = posixpath.relpath(file, start).split("/") if file.startswith(f"{start}/") else []
    return any(name.startswith(("_", ".")) for name in [*below, posixpath.basename(file)])


def image_root(root: str) -> str:
    """The folder all images must be under, as `look_up` takes it.

    Raises:
        ConfigError: no filesystem is known for it.
    """
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
