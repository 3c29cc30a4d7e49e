"""A folder on a local disk or an object store, in which files appear whole or not at all."""

import errno
import os
import posixpath
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import IO, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from diffedit_batch.config import fingerprint
from diffedit_batch.data.persistence import persist
from diffedit_batch.errors import ConfigError

T = TypeVar("T")

TEMPORARY = "_diffedit/tmp"
PROBE = "_diffedit/probe"
"""There while a run edits, for workers to see that they write where the driver reads."""


class Storage:
    """The output folder of a job; paths are relative and use `/`.

    Args:
        uri: local path or URI of any scheme fsspec knows.

    Attributes:
        patience_s: how long one operation is tried again before it is an error.
    """

    patience_s = 60.0

    def __init__(self, uri: str) -> None:
        try:
            # Other processes write there too: a listing is never to be remembered.
            self.fs, self.root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError("config", [f"output.uri {uri!r}: {error}"]) from error
        self.uri = uri
        self._is_local = isinstance(self.fs, LocalFileSystem)

    def write(self, path: str, data: bytes) -> None:
        """Make `path` appear with this content: temporary file and rename, or one PUT.

        Raises:
            StorageError: it could not be written; nothing half-written is left under `path`.
        """

        def write() -> None:
            if self._is_local:
                self._place(path, data, os.replace)
            else:
                self.fs.pipe_file(self.full(path), data)

        self._persist("write", path, write)

    def create(self, path: str, data: bytes) -> bool:
        """Like `write`, but only if there is nothing; whether `path` has this content now.

        Of several that create one path at once, exactly one succeeds: by a hard link on a disk, by
        a conditional PUT on an object store.
        """

        def create() -> bool:
            try:
                if self._is_local:
                    self._place(path, data, os.link)
                else:
                    self.fs.pipe_file(self.full(path), data, mode="create")
            except OSError:
                if not self._is_there(path):
                    raise
                # A first try may have succeeded, and only its answer have been lost.
                with suppress(FileNotFoundError):
                    return bytes(self.fs.cat_file(self.full(path))) == data
                return False  # whoever came first has removed it since
            return True

        return self._persist("write", path, create)

    def read(self, path: str) -> bytes:
        """The content of `path`. Raises FileNotFoundError, StorageError."""

        def read() -> bytes:
            return bytes(self.fs.cat_file(self.full(path)))

        return self._persist("read", path, read, FileNotFoundError)

    def read_with(self, path: str, reader: Callable[[IO[bytes]], T]) -> T:
        """What `reader` makes of the open file, of which only what it asks for is read.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it cannot be read, or `reader` says so of its content.
        """

        def read() -> T:
            with self.fs.open(self.full(path), "rb") as file:
                return reader(file)

        return self._persist("read", path, read, FileNotFoundError)

    def exists(self, path: str) -> bool:
        """Whether `path` is there. Raises StorageError where that cannot be said."""
        return self._persist("read", path, lambda: self._is_there(path))

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files directly in `folder` that end in `suffix`, sorted."""

        def names() -> list[str]:
            try:
                paths = self.fs.ls(self.full(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(n for n in map(posixpath.basename, paths) if n.endswith(suffix))

        return self._persist("list", folder, names)

    def find(self, folder: str) -> list[str]:
        """Every file under `folder`, as a path, sorted. Raises StorageError."""

        def find() -> list[str]:
            try:
                return sorted(self.fs.find(self.full(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []

        start = len(self.full(""))
        return [path[start:] for path in self._persist("list", folder, find)]

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those already gone are no error.

        Raises:
            StorageError: one could not be removed.
        """
        for path in paths:
            with suppress(FileNotFoundError):
                self._persist(
                    "remove", path, partial(self.fs.rm_file, self.full(path)), FileNotFoundError
                )

    def remove_temporary(self) -> None:
        """Remove what writers that died left behind. Only for the run that holds the lease."""
        self.remove(f"{TEMPORARY}/{name}" for name in self.names(TEMPORARY, ""))

    def full(self, path: str) -> str:
        """`path` as the filesystem below knows it."""
        return posixpath.join(self.root, path)

    def _is_there(self, path: str) -> bool:
        try:
            self.fs.info(self.full(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _place(self, path: str, data: bytes, place: Callable[[str, str], None]) -> None:
        """Put a whole file on a local disk, by a temporary one beside the results."""
        target, temporary = self.full(path), self.full(f"{TEMPORARY}/{uuid.uuid4().hex}")
        for name in (target, temporary):
            os.makedirs(posixpath.dirname(name), exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            place(temporary, target)
            _sync_folder(posixpath.dirname(target))
        except FileNotFoundError as error:
            # The run that holds the lease has cleaned up.
            raise BlockingIOError(errno.EAGAIN, "its temporary file is gone") from error
        finally:
            with suppress(FileNotFoundError):
                os.remove(temporary)

    def _persist(
        self, verb: str, path: str, action: Callable[[], T], *expected: type[OSError]
    ) -> T:
        what = f"{verb} {self.full(path)}"
        return persist(what, action, patience_s=self.patience_s, expected=expected)


def _sync_folder(path: str) -> None:
    """Make a new name survive a power cut, not only the file behind it."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class FileNames(NamedTuple):
    """Relative names of the pictures of a row."""

    edited: str
    mask: str
    map: str


def file_names(row_id: str, row_fingerprint: str) -> FileNames:
    """What the edited picture, the mask and the soft map of a row are called.

    A readable slug of the id and a hash of id and fingerprint: distinct for distinct rows (ids that
    slug alike included), the same for every retry of one row, and never a path.
    """
    plain = unicodedata.normalize("NFKD", row_id).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", plain)[:60].strip("._-") or "row"
    digest = fingerprint([row_id, row_fingerprint])
    name = f"{digest[:2]}/{slug}-{digest[:16]}.png"
    return FileNames(f"edited/{name}", f"masks/{name}", f"maps/{name}")
