"""`--where`: an SQL expression over the columns of a manifest, evaluated by DuckDB.

The expression is checked and evaluated without access to files or network.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffedit_batch.errors import ConfigError

if TYPE_CHECKING:
    import duckdb


class RowFilter:
    """The rows for which an expression is true; not those for which it is false or null.

    Args:
        expression: e.g. `split = 'train' AND score > 0.5`, with the names of the manifest's
            columns.
        schema: of the manifest.

    Attributes:
        columns: the columns it needs.

    Raises:
        ConfigError: DuckDB is not installed, or the expression is no condition on such rows.
    """

    def __init__(self, expression: str, schema: pa.Schema) -> None:
        try:
            import duckdb
        except ImportError:
            raise ConfigError(
                f"--where {expression}",
                ["needs DuckDB: pip install 'diffedit_batch[where]'"],
            ) from None
        self._expression = expression
        self._names = schema.names
        self._error = duckdb.Error
        self._connection = duckdb.connect(
            config={
                "enable_external_access": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "threads": 1,
            }
        )
        text = expression.casefold()
        self.columns = [n for n in schema.names if n.replace('"', '""').casefold() in text]
        if len({name.casefold() for name in self.columns}) < len(self.columns):
            raise self._refusal("names columns that differ in case only, which SQL ignores")
        empty = schema.empty_table()
        self._check(empty.select(self.columns))
        for name in self.columns.copy():  # those whose name is only part of another word
            fewer = [other for other in self.columns if other != name]
            try:
                self._check(empty.select(fewer))
            except ConfigError:
                continue
            self.columns = fewer

    def mask(self, batches: Iterable[pa.RecordBatch]) -> NDArray[np.bool_]:
        """Whether each row of some batches of `columns` matches.

        Raises:
            ConfigError: the expression fails on their values.
        """
        masks = [self._mask(batch) for batch in batches]
        return np.concatenate(masks) if masks else np.zeros(0, np.bool_)

    def _mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        table = pa.Table.from_batches([batch])
        try:
            found = self._relation(table).project(self._expression).to_arrow_table().column(0)
        except self._error as error:
            raise self._refusal(str(error)) from None
        return np.asarray(found.fill_null(False).to_numpy(), np.bool_)

    def _check(self, empty: pa.Table) -> None:
        try:
            relation = self._relation(empty)
            relation.filter(self._expression)  # where aggregates and windows are refused
            result = relation.project(self._expression)
        except self._error as error:
            raise self._refusal(str(error)) from None
        if len(result.columns) != 1 or str(result.types[0]) != "BOOLEAN":
            raise self._refusal("is no condition: it must be true or false for every row")

    def _relation(self, table: pa.Table) -> "duckdb.DuckDBPyRelation":
        if not table.num_columns:  # of which DuckDB needs one
            table = table.append_column("row", pa.nulls(table.num_rows, pa.int8()))
        return self._connection.from_arrow(table)

    def _refusal(self, message: str) -> ConfigError:
        known = f"columns of the manifest: {', '.join(self._names)}"
        return ConfigError(f"--where {self._expression}", [message.partition("\n")[0], known])
