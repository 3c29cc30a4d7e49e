"""The rows that count: of all results of an id the one that `finalize` would keep."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.parts import row_key

_IDENTITY = ["id", "fingerprint", "status", "run_id", "finished_at"]


class CurrentRows:
    """The result of every id that `finalize` would keep if no row had changed: of one version a
    success beats a failure, then the newest wins.

    Rows are read part by part, also while a run is at work: those that it merges into other parts
    meanwhile come once even so.

    Args:
        ledger: the results.
        is_wanted: which columns.

    Attributes:
        schema: these columns, of all parts together.
        counts: the rows by status.

    Raises:
        StorageError: there are no results, or they cannot be read, or do not fit together.
    """

    def __init__(
        self, ledger: Ledger, is_wanted: Callable[[pa.Field], bool] = lambda field: True
    ) -> None:
        self._ledger = ledger
        self.schema = pa.schema([field for field in ledger.schema() if is_wanted(field)])
        self._best: dict[bytes, tuple[Any, ...]] = {}
        for table in ledger.scan(_IDENTITY):
            for row_id, *result in _cells(table):
                known = self._best.setdefault(row_key(row_id), tuple(result))
                is_of_one_version = known[0] == result[0]
                if not (is_of_one_version and result[1] == "failed" and known[1] != "failed"):
                    self._best[row_key(row_id)] = tuple(result)
        self.counts = Counter(str(result[1]) for result in self._best.values())

    def tables(self) -> Iterator[pa.Table]:
        """The rows, all tables of the same columns.

        Raises:
            StorageError: they cannot be read.
        """
        names = self.schema.names
        left = dict(self._best)

        def is_current(row_id: str, *result: object) -> bool:
            key = row_key(row_id)
            if left.get(key) != result:
                return False
            del left[key]
            return True

        def columns(schema: pa.Schema) -> list[str]:
            there = [name for name in names if name in schema.names]
            return [*_IDENTITY, *(name for name in there if name not in _IDENTITY)]

        for table in self._ledger.scan(columns):
            current = table.filter(
                pa.array([is_current(*row) for row in _cells(table)], pa.bool_())
            )
            complete = pa.concat_tables(
                [self.schema.empty_table(), current], promote_options="permissive"
            )
            yield complete.select(names).cast(self.schema)


def _cells(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in _IDENTITY), strict=True)
