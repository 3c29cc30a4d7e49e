"""Where image paths of a manifest lead: under their root, or nowhere."""

import posixpath
from pathlib import Path

import fsspec

from diffedit_batch.errors import RowError


def image_root(configured: str | None, first_file: str) -> str:
    """The folder all images must be under: as configured, else that of the manifest."""
    root = configured or posixpath.dirname(first_file)
    return root.rstrip("/") if "://" in root else str(Path(root).resolve())


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
        stamp = info.get("ETag") or info.get("md5Hash") or info.get("mtime")
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
