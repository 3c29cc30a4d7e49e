"""The committed results: which rows are done, and how parts are added, merged and finished.

Parts are `results/part-<run id>-<number>.parquet`; run ids begin with a UTC time, so names sort by
age. A part in place *is* the marker of its rows, and the only one.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffedit_batch.data.parquet import ParquetTable, open_parquet
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ManifestError, StorageError

logger = logging.getLogger(__name__)

SMALL_PART_ROWS = 10_000
"""Parts with fewer rows are merged when a run finishes."""

_INDEX_COLUMNS = ["id", "fingerprint", "status", "edited_file_name", "mask_file_name"]


def row_key(row_id: str) -> bytes:
    """16 bytes that stand for an id: what a million of them may cost in memory."""
    return hashlib.blake2b(row_id.encode(), digest_size=16).digest()


def version_key(row_id: str, row_fingerprint: str) -> bytes:
    """16 bytes that stand for one version of one row. The fingerprint alone would merge rows that
    ask the same.
    """
    return hashlib.blake2b(
        f"{row_fingerprint}\0{row_id}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


@dataclass
class _Version:
    part: str
    row: int
    key: bytes
    is_failed: bool
    files: tuple[str, str]


@dataclass
class Balance:
    """What stands in the output after finalize: rows by status, and rows by part file; and how many
    rows went because their id left the manifest.
    """

    counts: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    num_pruned: int = 0


class Ledger:
    """The results of one output folder, written by one run."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._run_id = run_id
        self._num_parts = 0

    def committed(self) -> dict[bytes, bool]:
        """`version_key` of every row that has a result: whether all it has is failures."""
        done: dict[bytes, bool] = {}
        for version, _ in self._versions():
            done[version.key] = version.is_failed and done.get(version.key, True)
        return done

    def committed_since(self, run_id: str) -> set[bytes]:
        """`version_key` of every row with a result of this run or a later one."""
        return {
            version_key(row["id"], row["fingerprint"])
            for _, table in self._scan(["id", "fingerprint", "run_id"])
            for row in table.filter(pc.field("run_id") >= run_id).to_pylist()
        }

    def error_types(self) -> dict[bytes, str]:
        """`version_key` of every row that failed: its newest error as `stage/type`."""
        return {
            version_key(row["id"], row["fingerprint"]): f"{row['error_stage']}/{row['error_type']}"
            for _, table in self._scan(["id", "fingerprint", "status", "error_stage", "error_type"])
            for row in table.filter(pc.field("status") == "failed").to_pylist()
        }

    def ids(self) -> NDArray[np.bytes_]:
        """`row_key` of every id that has a result, sorted: 16 bytes each."""
        keys = bytearray()
        for _, table in self._scan(["id"]):
            for row_id in table.column("id").to_pylist():
                keys += row_key(row_id)
        return np.unique(np.frombuffer(keys, "S16"))

    def counts(self) -> dict[str, int]:
        """Rows by status, superseded ones included."""
        counts = {"edited": 0, "unchanged": 0, "failed": 0}
        for _, table in self._scan(["status"]):
            for status in table.column("status").to_pylist():
                counts[status] += 1
        return counts

    def type_problems(self, carried: pa.Schema) -> list[str]:
        """Why columns carried from a manifest cannot stand beside those of earlier runs."""
        problems = []
        for part in self._storage.names("results", ".parquet")[-1:]:
            with self._open(part) as table:
                there = table.schema
            for new in carried:
                if new.name not in there.names:
                    continue
                old = there.field(new.name)
                try:
                    pa.unify_schemas(
                        [pa.schema([old]), pa.schema([new])], promote_options="permissive"
                    )
                except pa.ArrowException:
                    problems.append(
                        f"column {new.name!r} has type {new.type}, in the results of earlier runs"
                        f" {old.type}; rename it, or choose another output.uri"
                    )
        return problems

    def commit(self, table: pa.Table) -> str:
        """Add one part; its PNGs must be in place. Returns its name."""
        self._num_parts += 1
        name = f"part-{self._run_id}-{self._num_parts:06d}.parquet"
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._storage.write(f"results/{name}", buffer.getvalue())
        return name

    def finalize(self, current: Mapping[bytes, bytes], *, prune: bool = False) -> Balance:
        """Leave exactly one row per id, in few parts, and remove the files of superseded rows.

        A success beats a failure of the same version, then the newest wins. Ids that left the
        manifest keep their newest row. New parts are written before old ones go: a kill in between
        leaves duplicates for the next finalize, never a hole.

        Args:
            current: `row_key` to `version_key` of every row this run was asked for.
            prune: drop the rows of ids that are not among them, and their files.

        Raises:
            StorageError: a row of this run has no result (its rows do not balance).
        """
        best: dict[bytes, _Version] = {}
        superseded: list[_Version] = []
        for version, key in self._versions():
            rival = best.setdefault(key, version)
            if rival is version:
                continue
            wanted = current.get(key)
            if self._rank(rival, wanted) > self._rank(version, wanted):
                version, rival = rival, version
            best[key] = version
            superseded.append(rival)
        missing = sum(key not in best or best[key].key != wanted for key, wanted in current.items())
        if missing:
            raise StorageError(
                f"{missing} rows have no result under {self._storage.uri}/results: they were"
                " removed while this run was writing, or another run shares the folder."
                " Run the same command again."
            )
        pruned = best.keys() - current.keys() if prune else set()
        superseded += [best.pop(key) for key in pruned]
        kept: dict[str, list[int]] = {}
        for version in best.values():
            kept.setdefault(version.part, []).append(version.row)
        parts = self._rewrite(kept, {version.part for version in superseded})
        alive = {name for version in best.values() for name in version.files}
        self._storage.remove(
            {name for v in superseded for name in v.files if name and name not in alive}
        )
        balance = Balance(parts=parts, num_pruned=len(pruned))
        for _, table in self._scan(["status"]):
            for status in table.column("status").to_pylist():
                balance.counts[status] = balance.counts.get(status, 0) + 1
        return balance

    @staticmethod
    def _rank(version: _Version, wanted: bytes | None) -> tuple[bool, bool, str, int]:
        return (version.key == wanted, not version.is_failed, version.part, version.row)

    def _versions(self) -> Iterator[tuple[_Version, bytes]]:
        for part, table in self._scan(_INDEX_COLUMNS):
            for number, row in enumerate(table.to_pylist()):
                files = (row["edited_file_name"], row["mask_file_name"])
                key = version_key(row["id"], row["fingerprint"])
                yield (
                    _Version(part, number, key, row["status"] == "failed", files),
                    row_key(row["id"]),
                )

    def _rewrite(self, kept: Mapping[str, list[int]], stale: set[str]) -> dict[str, int]:
        """Merge small and stale parts into new ones; return every part with its number of rows."""
        all_parts = self._storage.names("results", ".parquet")
        small = [part for part in all_parts if len(kept.get(part, ())) < SMALL_PART_ROWS]
        replaced = sorted({*stale, *(small if len(small) > 1 else ())})
        parts = {part: len(kept.get(part, ())) for part in all_parts if part not in replaced}
        pending: list[pa.Table] = []
        for part in [*replaced, None]:
            if part is not None and part in kept:
                pending.append(self._read(part).take(sorted(kept[part])))
            num_rows = sum(table.num_rows for table in pending)
            if num_rows >= SMALL_PART_ROWS or (part is None and num_rows):
                parts[self.commit(self._merge(pending))] = num_rows
                pending = []
        self._storage.remove(f"results/{part}" for part in replaced)
        return dict(sorted(parts.items()))

    def _merge(self, tables: list[pa.Table]) -> pa.Table:
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise StorageError(
                f"parts under {self._storage.uri}/results have columns of one name and different"
                f" types: {error}. Rename the column in the manifest, or write to another folder."
            ) from error

    def _scan(self, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
        for part in self._storage.names("results", ".parquet"):
            yield part, self._read(part, columns)

    def _read(self, part: str, columns: list[str] | None = None) -> pa.Table:
        with self._open(part) as table:
            return table.read(columns or table.schema.names)

    @contextmanager
    def _open(self, part: str) -> Iterator[ParquetTable]:
        path = self._storage.full(f"results/{part}")
        try:
            with (
                self._storage.fs.open(path, "rb") as file,
                open_parquet(file, check_sizes=False) as table,
            ):
                yield table
        except (pa.ArrowException, OSError, KeyError, ManifestError) as error:
            reason = "; ".join(error.problems) if isinstance(error, ManifestError) else error
            raise StorageError(
                f"cannot read {self._storage.uri}/results/{part}: {reason}."
                " It was not written by this job; move it away."
            ) from error


def read_json(storage: Storage, path: str) -> Any:
    """The JSON document at `path`, or None where there is none."""
    try:
        return json.loads(storage.read(path))
    except FileNotFoundError:
        return None
