"""Where the files of a manifest are, and where its image paths lead."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from diffedit_batch.config import InputConfig
from diffedit_batch.data import web
from diffedit_batch.data.files import content_key, stat_key
from diffedit_batch.errors import ConfigError, ManifestError, RowError
from diffedit_batch.redact import has_credentials


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
    """The folder images are under, as `look_up` takes it.

    Raises:
        ConfigError: no filesystem is known for it.
    """
    if root.partition("://")[0] in web.SCHEMES:
        return root.rstrip("/")
    try:
        fs, path = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise ConfigError("config", [f"input.image_root {root!r}: {error}"]) from None
    return str(Path(path).resolve()) if isinstance(fs, LocalFileSystem) else root.rstrip("/")


def look_up(path: str, root: str, config: InputConfig) -> tuple[str, str]:
    """The full path or URI of an image, and a key of its content as `input.image_key` says.

    Raises:
        RowError: it is not there, or not where images may be: under the root, or behind a URI of
            `input.allowed_schemes`.
    """
    uri = resolve(path, root, config.allowed_schemes)
    key = content_key if config.image_key == "content" else stat_key
    return uri, key(uri, config.max_bytes)


def resolve(path: str, root: str, allowed_schemes: Sequence[str]) -> str:
    """The full path or URI of an image, whether it is there or not.

    Raises:
        RowError: it is not where images may be.
    """
    outside = RowError(
        "manifest",
        "PathOutsideRoot",
        f"{path[:200]!r} is not under {root}; set input.image_root to a folder above all images",
    )
    if "\0" in path:
        raise outside
    if "://" not in path and "://" not in root:
        return _resolve_local(path, root, outside)
    uri = path if "://" in path else f"{root}/{path}"
    if has_credentials(uri):
        raise RowError(
            "manifest",
            "CredentialsInUri",
            f"{uri!r} was written with a user or password; they belong in the environment",
        )
    scheme, _, name = uri.partition("://")
    if scheme in web.SCHEMES:
        name = name.partition("?")[0]
    elif "::" in uri:  # fsspec would open it as a chain of filesystems
        raise outside
    # Servers may resolve what is escaped.
    if posixpath.normpath(unquote(name)) != unquote(name).rstrip("/"):
        raise outside
    if uri.startswith(f"{root}/"):
        return uri
    if "://" not in path:
        raise outside
    if scheme not in allowed_schemes:
        raise RowError(
            "manifest",
            "SchemeNotAllowed",
            f"{uri[:200]!r} is not under {root}, and {scheme} is not in input.allowed_schemes",
        )
    return uri


def _resolve_local(path: str, root: str, outside: RowError) -> str:
    try:
        resolved = (Path(root) / path).resolve()
        if not resolved.is_relative_to(root):
            raise outside
    except (OSError, RuntimeError) as error:
        raise RowError("load", "ImageUnreadable", f"{path[:200]!r}: {error}") from None
    return str(resolved)
