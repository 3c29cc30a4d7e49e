"""How the parts of results are named, and the 16 bytes that stand for rows and their versions."""

import hashlib
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import StorageError

FOLDER = "results"

Keys = NDArray[np.bytes_]
"""Keys of 16 bytes each, (N,): a million of them are 16 MB, and no Python objects."""


class PartName(NamedTuple):
    """`part-<epoch>-<number>.parquet`; compares by age.

    Attributes:
        epoch: of the lease under which it was written.
        number: of the part among those of its epoch, from 1.
    """

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"part-{self.epoch:06d}-{self.number:06d}.parquet"

    @property
    def path(self) -> str:
        """Where it lies in the output folder."""
        return f"{FOLDER}/{self}"


def part_names(storage: Storage) -> list[PartName]:
    """Every part there is, oldest first.

    Raises:
        StorageError: there is Parquet under the results that this job did not write.
    """
    found = []
    for name in storage.names(FOLDER, ".parquet"):
        match = re.fullmatch(r"part-(\d+)-(\d+)\.parquet", name)
        if match is None:
            raise not_ours(storage, name, "it is not named like a part")
        found.append(PartName(*map(int, match.groups())))
    return sorted(found)


def not_ours(storage: Storage, name: object, reason: object) -> StorageError:
    """The error for a file among the results that is no part."""
    return StorageError(
        f"cannot read {storage.uri}/{FOLDER}/{name}: {reason}."
        " It was not written by this job; move it away."
    )


def row_key(row_id: str) -> bytes:
    """16 bytes that stand for an id."""
    return hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def version_key(row_id: str, row_fingerprint: str) -> bytes:
    """16 bytes that stand for one version of one row. The fingerprint alone would merge rows that
    ask the same.
    """
    return hashlib.blake2b(
        f"{row_fingerprint}\0{row_id}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def as_keys(data: bytes | bytearray) -> Keys:
    """Concatenated keys as an array (N,)."""
    return np.frombuffer(bytes(data), dtype="S16")


def find(keys: Keys, wanted: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where wanted keys, (M,), are among sorted keys, (N,), and whether they are: (M,), (M,)."""
    places = np.minimum(keys.searchsorted(wanted), max(len(keys) - 1, 0))
    if not len(keys):
        return places, np.zeros(len(wanted), bool)
    return places, keys[places] == wanted


class Committed:
    """Which versions of rows have a result: 17 bytes for each.

    Args:
        keys: `version_key` of every result, (N,), in any order, repeated or not.
        is_failed: whether that result is a failure, (N,).
    """

    def __init__(self, keys: Keys, is_failed: NDArray[np.bool_]) -> None:
        order = np.lexsort((is_failed, keys))  # of one key, a success first
        keys = keys[order]
        is_first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        self._keys, self._is_failed = keys[is_first], is_failed[order][is_first]

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: bytes) -> bool | None:
        """Whether all a version has is failures; None where it has no result."""
        place = int(self._keys.searchsorted(key))
        if place == len(self._keys) or self._keys[place] != key.rstrip(b"\0"):
            return None
        return bool(self._is_failed[place])


class Asked:
    """The rows a run was asked for, and in which version: 32 bytes for each."""

    def __init__(self) -> None:
        self._rows, self._versions = bytearray(), bytearray()

    def add(self, row_id: str, row_fingerprint: str) -> tuple[bytes, bytes]:
        """Add a row, every id once; returns its `row_key` and `version_key`."""
        row, version = row_key(row_id), version_key(row_id, row_fingerprint)
        self._rows += row
        self._versions += version
        return row, version

    def in_order(self) -> tuple[Keys, Keys]:
        """`row_key` of every row, (N,), sorted, and its `version_key`, (N,)."""
        rows, versions = as_keys(self._rows), as_keys(self._versions)
        order = rows.argsort(kind="stable")
        return rows[order], versions[order]
