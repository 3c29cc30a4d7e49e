"""The manifest, checked as a whole and read row by row."""

from collections.abc import Collection, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffedit_batch.config import JobConfig
from diffedit_batch.data.columns import CONCEPT_COLUMNS, resolve_columns, type_conflicts
from diffedit_batch.data.generated import Generated
from diffedit_batch.data.locate import find_manifest, image_root
from diffedit_batch.data.parquet import (
    MAX_CELL_BYTES,
    Block,
    ParquetTable,
    open_parquet,
)
from diffedit_batch.data.parquet_checks import MAX_ROWS
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.row_reader import RowReader
from diffedit_batch.data.where import RowFilter
from diffedit_batch.errors import ManifestError

_SHOWN = 5


class Manifest:
    """The rows of a job's manifest, checked as a whole on opening, streamed afterwards.

    Args:
        config: the job.
        model_key: what tells its model from others.
        generated: texts for rows that are given by concept or whose image is captioned.
        where: an SQL condition on its columns; rows that do not match are left out.

    Attributes:
        num_rows: rows, of those that match.
        carried_schema: the columns that have no meaning here.

    Raises:
        ManifestError: it cannot be used as a whole; names every problem.
        ConfigError: `where` is no condition on its columns.
    """

    def __init__(
        self,
        config: JobConfig,
        model_key: str,
        generated: Generated | None = None,
        where: str | None = None,
    ) -> None:
        self._config = config
        self._model_key = model_key
        self._generated = generated
        self.uri = config.input.manifest
        self.files, folder = find_manifest(self.uri)
        self._root = image_root(config.input.image_root or folder)
        self.num_rows = 0
        problems: list[str] = []
        first: pa.Schema | None = None
        for file in self.files:
            try:
                with open_parquet(file) as table:
                    self.num_rows += table.num_rows
                    schema = table.schema
            except ManifestError as error:
                problems += [f"{file}: {problem}" for problem in error.problems]
                continue
            except OSError as error:
                problems.append(f"{file}: cannot be opened: {error}")
                continue
            if first is None:
                first = schema
                self._columns, self._overrides, found = resolve_columns(
                    schema, config.input.columns
                )
                problems += found
            elif schema.names != first.names:
                problems.append(f"{file} has other columns than {self.files[0]}")
            elif not schema.equals(first, check_metadata=True):
                problems += type_conflicts(file, schema, first, config.input.columns)
            used = {*self._columns.values(), *self._overrides.values()}
            self.carried_schema = pa.schema([f for f in first if f.name not in used])
        if self.num_rows > MAX_ROWS:
            problems.append(f"{self.num_rows:,} rows are more than {MAX_ROWS:,}; cut it in several")
        if not problems:
            problems += self._id_problems()
        if problems:
            raise ManifestError(f"manifest {self.uri}", problems)
        self._matches: dict[tuple[str, int], NDArray[np.bool_]] | None = None
        self._is_cut = False
        if where is not None:
            assert first is not None, "a manifest has at least one file"
            self._matches = self._find_matches(RowFilter(where, first))
            self.num_rows = sum(int(mask.sum()) for mask in self._matches.values())

    def keep(self, numbers: Collection[int]) -> None:
        """Leave out all rows but some, by their numbers, counted from 0 among the rows there are
        now. Ids that are derived are then numbered among those kept.
        """
        wanted = np.zeros(self.num_rows, bool)
        wanted[[*numbers]] = True
        start, matches = 0, self._matches or self._all_rows()
        for place, mask in matches.items():
            end = start + int(mask.sum())
            kept = mask.copy()
            kept[mask] = wanted[start:end]
            matches[place], start = kept, end
        self._matches, self.num_rows = matches, int(wanted.sum())
        self._is_cut = True

    def table(self) -> pa.Table:
        """The rows as they are written, images included: for few rows. Cells that are too large are
        null.
        """
        found = []
        for file in self.files:
            with open_parquet(file) as table:
                for row_group in range(table.num_row_groups):
                    mask = None if self._matches is None else self._matches[file, row_group]
                    if mask is not None and not mask.any():
                        continue
                    for block in self._blocks(table, file, table.schema.names, row_group):
                        rows = pa.Table.from_batches([block.rows])
                        if mask is not None:
                            of_block = mask[block.start : block.start + rows.num_rows]
                            rows = rows.filter(pa.array(of_block))
                        found.append(rows)
        return pa.concat_tables(found, promote_options="permissive")

    @property
    def may_lack_texts(self) -> bool:
        """Whether any row may need a text that is generated."""
        return (
            not self._columns.keys().isdisjoint(CONCEPT_COLUMNS)
            or "caption_with" in self._overrides
            or self._config.edit.caption_with == "blip"
        )

    def rows(self) -> Iterator[ManifestRow]:
        """All rows in order, with what is generated by then. Images in the manifest are read, image
        files only looked up.

        Raises:
            ModelError: a row needs a generated text, and there is no model to generate it.
        """
        reader = RowReader(
            self._config,
            self._model_key,
            self._generated,
            self._root,
            self._columns,
            tuple(self._overrides),
        )
        for file in self.files:
            with open_parquet(file) as table:
                for row_group in range(table.num_row_groups):
                    yield from self._rows_of(table, file, row_group, reader)

    def _id_problems(self) -> list[str]:
        column = self._columns.get("id")
        if column is None:
            return []
        chunks: list[pa.Array] = []
        problems: list[str] = []
        for file in self.files:
            with open_parquet(file) as table:
                for block in self._blocks(table, file, [column]):
                    problems += list(block.too_large.values())[: _SHOWN - len(problems)]
                    # As text, which may be longer in all than 32-bit offsets reach.
                    chunks.append(block.rows.column(0).cast(pa.large_string()))
        ids = pa.chunked_array(chunks, pa.large_string())
        given = ids.filter(pc.fill_null(pc.not_equal(ids, ""), False))
        if pc.count_distinct(given).as_py() < len(given):
            numbers = given.value_counts()
            repeated = numbers.filter(pc.greater(numbers.field("counts"), 1)).field("values")
            shown = ", ".join(repr(value) for value in repeated[:_SHOWN].to_pylist())
            more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
            problems.append(f"column {column!r}: ids must be unique; repeated: {shown}{more}")
        if len(given) < len(ids):
            problems.append(
                f"column {column!r}: {len(ids) - len(given)} rows have no id; give every row one,"
                " or leave the column out"
            )
        return problems

    def _find_matches(self, row_filter: RowFilter) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """Which rows of each row group match, by file and number."""
        matches = {}
        for file in self.files:
            with open_parquet(file) as table:
                # A condition such as `true` names none; without cells there would be no rows.
                columns = row_filter.columns or table.schema.names[:1]
                for row_group in range(table.num_row_groups):
                    blocks = self._blocks(table, file, columns, row_group)
                    matches[file, row_group] = row_filter.mask(block.rows for block in blocks)
        return matches

    def _all_rows(self) -> dict[tuple[str, int], NDArray[np.bool_]]:
        matches = {}
        for file in self.files:
            with open_parquet(file) as table:
                for row_group in range(table.num_row_groups):
                    matches[file, row_group] = np.ones(table.rows_of(row_group), bool)
        return matches

    def _rows_of(
        self, table: ParquetTable, file: str, row_group: int, reader: RowReader
    ) -> Iterator[ManifestRow]:
        matches = None if self._matches is None else self._matches[file, row_group]
        # Ids that are derived number the rows that ask the same, whether they match or not.
        can_skip = "id" in self._columns or self._is_cut
        if matches is not None and not matches.any() and can_skip:
            return
        used = {*self._columns.values(), *self._overrides.values()}
        carried_names = [n for n in table.schema.names if n not in used]
        for block in self._blocks(table, file, table.schema.names, row_group):
            carried = block.rows.select(carried_names)
            cells = block.rows.select([*used]).to_pydict()
            ours = [cells[theirs] for theirs in self._columns.values()]
            overrides = [cells[theirs] for theirs in self._overrides.values()]
            for place in range(block.rows.num_rows):
                number = block.start + place
                is_match = matches is None or bool(matches[number])
                if is_match or not can_skip:
                    row = reader.read(
                        dict(zip(self._columns, [column[place] for column in ours], strict=True)),
                        tuple([column[place] for column in overrides]),
                        (file, row_group, number),
                        partial(carried.slice, place, 1),
                        block.too_large.get(place),
                    )
                    if is_match:
                        yield row

    def _blocks(
        self, table: ParquetTable, file: str, columns: list[str], row_group: int | None = None
    ) -> Iterator[Block]:
        # An image may be as large as an image file, and have its path beside it.
        max_bytes = {
            self._columns[name]: self._config.input.max_bytes + MAX_CELL_BYTES
            for name in ("image", "mask")
            if name in self._columns
        }
        groups = range(table.num_row_groups) if row_group is None else [row_group]
        try:
            for group in groups:
                yield from table.blocks(group, columns, max_bytes)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"manifest {self.uri}", [f"{file} is broken: {error}"]) from None
