"""The end of a run: one row per id, few parts, no file that no row lists.

No Python object is kept for a row: a million of them are arrays of keys.
"""

import io
import logging
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffedit_batch.data.ledger import Ledger, failures, version_keys
from diffedit_batch.data.parquet import open_parquet
from diffedit_batch.data.parts import Asked, Keys, PartName, as_keys, find, row_key
from diffedit_batch.errors import StorageError
from diffedit_batch.schema import FILE_COLUMNS

logger = logging.getLogger(__name__)

SMALL_PART_ROWS = 10_000
"""Parts with fewer rows are merged when a run finishes."""

REPLACED = "_diffedit/replaced.parquet"
"""Paths that are about to be removed, in this order, for the next run if this one is killed."""


@dataclass
class Balance:
    """What stands in the output after finalize: rows by status, and rows by part file; and how many
    rows went because their id left the manifest.
    """

    counts: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    num_pruned: int = 0


@dataclass(frozen=True)
class _Index:
    """The rows of some parts, part by part in the order of their age.

    Attributes:
        parts: the parts, P of them.
        starts: place of the first row of every part, and the number of all rows, (P + 1,).
        rows: `row_key` of every row, (N,).
        versions: `version_key` of every row, (N,).
        is_failed: whether it is a failure, (N,).
    """

    parts: list[PartName]
    starts: NDArray[np.int64]
    rows: Keys
    versions: Keys
    is_failed: NDArray[np.bool_]

    def of_part(self, number: int) -> slice:
        """Where the rows of a part are."""
        return slice(int(self.starts[number]), int(self.starts[number + 1]))


def remove_replaced(ledger: Ledger) -> bool:
    """Remove what a run that was killed in its end had left to remove; whether there was any.

    Parts go first, then the files of their superseded rows: what a part lists is there.
    """
    try:
        paths = ledger.storage.read_with(REPLACED, _read_paths)
    except FileNotFoundError:
        return False
    for batch in paths.to_batches(max_chunksize=1000):
        ledger.check_lease()
        ledger.storage.remove(batch["path"].to_pylist())
    ledger.storage.remove([REPLACED])
    return True


def finalize(ledger: Ledger, asked: Asked, *, prune: bool = False) -> Balance:
    """Leave exactly one row per id, in few parts, and remove the files of superseded rows.

    A success beats a failure of the same version, then the newest wins. Ids that left the manifest
    keep their newest row. New parts are written before old ones go, and what is to go is written
    down first: a kill in between leaves duplicates for the next run, which begins with
    `remove_replaced`, and never a hole.

    Args:
        ledger: the results, held by this run.
        asked: every row this run was asked for.
        prune: drop the rows of ids that are not among them, and their files.

    Raises:
        StorageError: a row of this run has no result (its rows do not balance).
        LeaseLostError: another run has taken over.
    """
    adopted, late = ledger.adopted_and_late()
    index = _read_index(ledger, adopted)
    best = _choose(ledger, index, asked)
    num_ids = len(best)
    if prune:
        best = best[find(asked.in_order()[0], index.rows[best])[1]]
    parts, replaced, orphans = _rewrite(ledger, index, best)
    orphans += _orphans_of_late(ledger, _read_index(ledger, late), index, best)
    gone = pa.array([part.path for part in (*replaced, *late)], pa.string())
    if len(gone):
        buffer = io.BytesIO()
        table = pa.table({"path": pa.chunked_array([gone, *orphans])})
        pq.write_table(table, buffer, compression="zstd")
        ledger.check_lease()
        ledger.storage.write(REPLACED, buffer.getvalue())
        remove_replaced(ledger)
    balance = Balance(parts=dict(sorted(parts.items())), num_pruned=num_ids - len(best))
    for table in ledger.scan(["status"]):
        for entry in pc.value_counts(table["status"]).to_pylist():
            status = entry["values"]
            balance.counts[status] = balance.counts.get(status, 0) + entry["counts"]
    return balance


def _read_paths(file: IO[bytes]) -> pa.Table:
    with open_parquet(file, check_sizes=False) as table:
        return table.read(["path"])


def _read_index(ledger: Ledger, parts: list[PartName]) -> _Index:
    sizes, rows, versions, is_failed = [0], bytearray(), bytearray(), [np.zeros(0, bool)]
    for part in parts:
        try:
            table = ledger.read(part, ["id", "fingerprint", "status"])
        except FileNotFoundError:
            raise _rows_missing(ledger, "some") from None
        sizes.append(table.num_rows)
        rows += b"".join(map(row_key, table["id"].to_pylist()))
        versions += version_keys(table)
        is_failed.append(failures(table))
    starts = np.cumsum(sizes, dtype=np.int64)
    return _Index(parts, starts, as_keys(rows), as_keys(versions), np.concatenate(is_failed))


def _choose(ledger: Ledger, index: _Index, asked: Asked) -> NDArray[np.intp]:
    """The row to keep of every id there is, in the order of their keys."""
    rows, versions = asked.in_order()
    is_wanted = _matches(index.rows, index.versions, rows, versions)
    # Stable, so that of equals the newest comes last.
    order = np.lexsort((~index.is_failed, is_wanted, index.rows))
    in_order = index.rows[order]
    is_last = np.append(in_order[1:] != in_order[:-1], True)[: len(order)]
    best: NDArray[np.intp] = order[is_last]
    has_result = _matches(rows, versions, index.rows[best], index.versions[best])
    if not has_result.all():
        raise _rows_missing(ledger, str(np.count_nonzero(~has_result)))
    return best


def _rewrite(
    ledger: Ledger, index: _Index, best: NDArray[np.intp]
) -> tuple[dict[str, int], list[PartName], list[pa.Array]]:
    """Merge small and stale parts into new ones.

    Returns:
        Every part that counts now with its number of rows, the parts that are to go, and the files
        of rows that do.
    """
    is_kept = np.zeros(len(index.rows), bool)
    is_kept[best] = True
    is_alive = _are_alive(index.rows, index.versions, index, best)
    sizes = np.diff(index.starts)
    num_kept = np.diff(np.append(0, np.cumsum(is_kept))[index.starts])
    is_small = num_kept < SMALL_PART_ROWS
    is_replaced = (num_kept < sizes) | (is_small & (np.count_nonzero(is_small) > 1))
    parts = {str(index.parts[n]): int(num_kept[n]) for n in np.flatnonzero(~is_replaced)}
    pending: list[pa.Table] = []
    orphans: list[pa.Array] = []

    def flush() -> None:
        if num_rows := sum(table.num_rows for table in pending):
            parts[ledger.commit(_merge(ledger, pending))] = num_rows
        pending.clear()

    replaced = np.flatnonzero(is_replaced).tolist()
    for number in replaced:
        rows = index.of_part(number)
        table = ledger.read(index.parts[number])
        orphans += _files(table.select(FILE_COLUMNS).filter(pa.array(~is_alive[rows])))
        pending.append(table.filter(pa.array(is_kept[rows])))
        if sum(table.num_rows for table in pending) >= SMALL_PART_ROWS:
            flush()
    flush()
    return parts, [index.parts[number] for number in replaced], orphans


def _orphans_of_late(
    ledger: Ledger, late: _Index, index: _Index, best: NDArray[np.intp]
) -> list[pa.Array]:
    """Files that only parts list which came after their run had lost its lease."""
    orphans: list[pa.Array] = []
    is_alive = _are_alive(late.rows, late.versions, index, best)
    for number, part in enumerate(late.parts):
        logger.warning("removing %s, which came after its run had lost its lease", part)
        is_orphan = ~is_alive[late.of_part(number)]
        orphans += _files(ledger.read(part, list(FILE_COLUMNS)).filter(pa.array(is_orphan)))
    return orphans


def _merge(ledger: Ledger, tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise StorageError(
            f"parts under {ledger.storage.uri}/results have columns of one name and different"
            f" types: {error}. Rename the column in the manifest, or write to another folder."
        ) from error


def _rows_missing(ledger: Ledger, num_missing: str) -> StorageError:
    return StorageError(
        f"{num_missing} rows have no result under {ledger.storage.uri}/results: they were removed"
        " while this run was writing. Run the same command again."
    )


def _files(table: pa.Table) -> list[pa.Array]:
    """The names of the files that rows list."""
    chunks = (chunk for name in FILE_COLUMNS for chunk in table[name].chunks)
    return [chunk.filter(pc.not_equal(chunk, "")) for chunk in chunks]


def _matches(
    rows: Keys, versions: Keys, sorted_rows: Keys, their_versions: Keys
) -> NDArray[np.bool_]:
    """Whether each of `rows` is among `sorted_rows` in the same version."""
    places, is_there = find(sorted_rows, rows)
    is_there[is_there] = their_versions[places[is_there]] == versions[is_there]
    return is_there


def _are_alive(
    rows: Keys, versions: Keys, index: _Index, best: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Whether the files of rows are those of a row that is kept: files are named by version."""
    good = best[~index.is_failed[best]]
    return _matches(rows, versions, index.rows[good], index.versions[good])
