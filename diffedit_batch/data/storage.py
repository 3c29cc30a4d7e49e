"""A folder on a local disk or an object store, in which files appear whole or not at all."""

import os
import posixpath
import re
import unicodedata
import uuid
from collections.abc import Iterable

import fsspec
from fsspec.implementations.local import LocalFileSystem

from diffedit_batch.config import fingerprint
from diffedit_batch.errors import ConfigError, StorageError

TEMPORARY = "_diffedit/tmp"
PROBE = "_diffedit/probe"
"""There while a run edits, for workers to see that they write where the driver reads."""


class Storage:
    """The output folder of a job; paths are relative and use `/`.

    Args:
        uri: local path or URI of any scheme fsspec knows.
    """

    def __init__(self, uri: str) -> None:
        try:
            self.fs, self.root = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise ConfigError("config", [f"output.uri {uri!r}: {error}"]) from error
        self.uri = uri

    def write(self, path: str, data: bytes) -> None:
        """Make `path` appear with this content: temporary file and rename, or one PUT.

        Raises:
            StorageError: it could not be written; nothing half-written is left under `path`.
        """
        target = self.full(path)
        try:
            if not isinstance(self.fs, LocalFileSystem):
                self.fs.pipe_file(target, data)
                return
            os.makedirs(posixpath.dirname(target), exist_ok=True)
            temporary = self.full(f"{TEMPORARY}/{uuid.uuid4().hex}")
            os.makedirs(posixpath.dirname(temporary), exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                if os.path.exists(temporary):
                    os.remove(temporary)
                raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(f"cannot write {target}: {reason}") from error

    def read(self, path: str) -> bytes:
        """The content of `path`. Raises FileNotFoundError."""
        return bytes(self.fs.cat_file(self.full(path)))

    def exists(self, path: str) -> bool:
        """Whether `path` is there."""
        return bool(self.fs.exists(self.full(path)))

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files directly in `folder` that end in `suffix`, sorted."""
        self.fs.invalidate_cache()
        if not self.exists(folder):
            return []
        paths = self.fs.ls(self.full(folder), detail=False)
        return sorted(n for n in map(posixpath.basename, paths) if n.endswith(suffix))

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those already gone are no error.

        Raises:
            StorageError: one could not be removed.
        """
        for path in paths:
            try:
                self.fs.rm_file(self.full(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = error.strerror or str(error)
                raise StorageError(f"cannot remove {self.full(path)}: {reason}") from error

    def remove_temporary(self) -> None:
        """Remove what writers that died left behind."""
        self.remove(f"{TEMPORARY}/{name}" for name in self.names(TEMPORARY, ""))

    def full(self, path: str) -> str:
        """`path` as the filesystem below knows it."""
        return posixpath.join(self.root, path)


def file_names(row_id: str, row_fingerprint: str) -> tuple[str, str]:
    """Relative names of the edited picture and of the mask of a row.

    A readable slug of the id and a hash of id and fingerprint: distinct for distinct rows (ids that
    slug alike included), the same for every retry of one row, and never a path.
    """
    plain = unicodedata.normalize("NFKD", row_id).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", plain)[:60].strip("._-") or "row"
    digest = fingerprint([row_id, row_fingerprint])
    name = f"{digest[:2]}/{slug}-{digest[:16]}.png"
    return f"edited/{name}", f"masks/{name}"
