"""The committed results: which rows are done, and how parts are added.

A part in place *is* the marker of its rows, and the only one.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffedit_batch.data.lease import Lease, newest_holder
from diffedit_batch.data.parquet import ParquetTable, open_parquet
from diffedit_batch.data.parts import (
    Committed,
    Keys,
    PartName,
    as_keys,
    not_ours,
    part_names,
    row_key,
    version_key,
)
from diffedit_batch.data.persistence import is_passing
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ManifestError, StorageError
from diffedit_batch.schema import LATER_COLUMNS, RESULT_SCHEMA

T = TypeVar("T")

_FILTERED = ["status", "filter_reasons"]
"""The second is missing in parts of earlier versions."""

Columns = list[str] | Callable[[pa.Schema], list[str]]


class Ledger:
    """The results of one output folder.

    Args:
        storage: the folder.
        lease: what allows to write; None to read only.
    """

    def __init__(self, storage: Storage, lease: Lease | None = None) -> None:
        self.storage = storage
        self.lease = lease
        self._num_parts = 0

    def parts(self) -> list[PartName]:
        """The parts there are, oldest first."""
        return self.adopted_and_late()[0]

    def committed(self) -> Committed:
        """Every version of a row that has a result."""
        versions, is_failed = bytearray(), [np.zeros(0, bool)]
        for table in self.scan(["id", "fingerprint", "status"]):
            versions += version_keys(table)
            is_failed.append(failures(table))
        return Committed(as_keys(versions), np.concatenate(is_failed))

    def committed_since(self, run_id: str) -> set[bytes]:
        """`version_key` of every row with a result of this run or a later one."""
        return {
            version_key(row["id"], row["fingerprint"])
            for table in self.scan(["id", "fingerprint", "run_id"])
            for row in table.filter(pc.field("run_id") >= run_id).to_pylist()
        }

    def error_types(self) -> dict[bytes, str]:
        """`version_key` of every row that failed: its newest error as `stage/type`."""
        return {
            version_key(row["id"], row["fingerprint"]): f"{row['error_stage']}/{row['error_type']}"
            for table in self.scan(["id", "fingerprint", "status", "error_stage", "error_type"])
            for row in table.filter(pc.field("status") == "failed").to_pylist()
        }

    def ids(self) -> Keys:
        """`row_key` of every id that has a result, sorted: 16 bytes each."""
        keys = bytearray()
        for table in self.scan(["id"]):
            keys += b"".join(map(row_key, table["id"].to_pylist()))
        return np.unique(as_keys(keys))

    def counts(self) -> dict[str, int]:
        """Rows by status, superseded ones included."""
        counts = {"edited": 0, "unchanged": 0, "failed": 0}
        for table in self.scan(["status"]):
            for entry in pc.value_counts(table["status"]).to_pylist():
                counts[entry["values"]] += entry["counts"]
        return counts

    def filter_reasons(self) -> tuple[int, dict[str, int]]:
        """Rows that are not good enough, and how many by each reason; superseded ones included."""
        num_rows, reasons = 0, Counter[str]()
        for table in self.scan(lambda schema: [n for n in _FILTERED if n in schema.names]):
            if "filter_reasons" in table.column_names:
                found = [cell for cell in table["filter_reasons"].to_pylist() if cell]
                num_rows += len(found)
                reasons.update(chain.from_iterable(found))
        return num_rows, dict(reasons.most_common())

    def schema(self) -> pa.Schema:
        """The columns of all parts together.

        Raises:
            StorageError: there are no parts, or one cannot be read, or they do not fit together.
        """
        schemas = []
        for part in self.parts():
            with suppress(FileNotFoundError):
                schemas.append(self._open(part, lambda table: _completed(table.schema)))
        if not schemas:
            raise StorageError(
                f"{self.storage.uri} holds no results of this job (no results/*.parquet); a run"
                " writes the first ones within minutes"
            )
        try:
            return pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise StorageError(
                f"parts under {self.storage.uri}/results do not fit together: {error}"
            ) from error

    def type_problems(self, carried: pa.Schema) -> list[str]:
        """Why columns carried from a manifest cannot stand beside those of earlier runs."""
        problems = []
        for part in self.parts()[-1:]:
            there = self._open(part, lambda table: table.schema)
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
        """Add one part; its PNGs must be in place. Returns its name.

        Raises:
            LeaseLostError: another run has taken over; nothing was written.
            StorageError: it could not be written.
        """
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        epoch = self.check_lease()
        self._num_parts += 1
        part = PartName(epoch, self._num_parts)
        self.storage.write(part.path, buffer.getvalue())
        return str(part)

    def check_lease(self) -> int:
        """The epoch of this run, which still holds the output. Raises LeaseLostError."""
        assert self.lease is not None, "this ledger was opened to be read only"
        self.lease.check()
        return self.lease.holder.epoch

    def adopted_and_late(self) -> tuple[list[PartName], list[PartName]]:
        """The parts there are, and those that came after their run had lost its lease."""
        holder = self.lease.holder if self.lease else newest_holder(self.storage)
        parts = part_names(self.storage)
        if holder is None:
            return parts, []
        adopted = [part for part in parts if holder.adopts(part)]
        return adopted, [part for part in parts if not holder.adopts(part)]

    def scan(self, columns: Columns) -> Iterator[pa.Table]:
        """These columns of all parts, and of those into which a run that ends just now merges
        some.

        Args:
            columns: their names, or what picks them from the columns a part has.
        """
        seen: set[PartName] = set()
        while new := [part for part in self.parts() if part not in seen]:
            for part in new:
                seen.add(part)
                with suppress(FileNotFoundError):
                    yield self.read(part, columns)

    def read(self, part: PartName, columns: Columns | None = None) -> pa.Table:
        """The rows of a part; all columns, or those named or picked, in their order. A part of an
        earlier version is read as if it had the columns that came later, empty.

        Raises:
            FileNotFoundError: it is gone; a run that ends merges parts.
            StorageError: it cannot be read, or was not written by this job.
        """

        def read(table: ParquetTable) -> pa.Table:
            schema = _completed(table.schema)
            names = columns(schema) if callable(columns) else columns or schema.names
            found = table.read([name for name in names if name in table.schema.names])
            for name in names:
                if name not in found.column_names and name in LATER_COLUMNS:
                    empty = pa.repeat("", found.num_rows)
                    found = found.append_column(schema.field(name), empty)
            return found.select(names)

        return self._open(part, read)

    def _open(self, part: PartName, use: Callable[[ParquetTable], T]) -> T:
        def read(file: IO[bytes]) -> T:
            try:
                with open_parquet(file, check_sizes=False) as table:
                    return use(table)
            except (pa.ArrowException, OSError, KeyError, ManifestError) as error:
                if is_passing(error):
                    raise
                reason = "; ".join(error.problems) if isinstance(error, ManifestError) else error
                raise not_ours(self.storage, part, reason) from error

        return self.storage.read_with(part.path, read)


def _completed(schema: pa.Schema) -> pa.Schema:
    """The columns of a part, with those that came later."""
    for name in LATER_COLUMNS:
        if name not in schema.names:
            schema = schema.append(RESULT_SCHEMA.field(name))
    return schema


def version_keys(table: pa.Table) -> bytes:
    """`version_key` of every row of a table with `id` and `fingerprint`, one after the other."""
    return b"".join(map(version_key, table["id"].to_pylist(), table["fingerprint"].to_pylist()))


def failures(table: pa.Table) -> NDArray[np.bool_]:
    """Whether each row of a table with `status` is a failure."""
    return np.asarray(pc.equal(table["status"], "failed"), dtype=bool)


def read_json(storage: Storage, path: str) -> Any:
    """The JSON document at `path`, or None where there is none."""
    try:
        return json.loads(storage.read(path))
    except FileNotFoundError:
        return None
