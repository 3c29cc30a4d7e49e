"""Parquet with the pictures inside, as the Hugging Face hub and its viewer want it.

Pictures are neither compressed again nor put into dictionaries, row groups are small because who
looks at one row reads all of its group, and pages end where contents do, so that what is uploaded
again is only what changed.
"""

import io
import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from diffedit_batch.export.samples import PICTURES, Sample
from diffedit_batch.export.shards import Files, sharded

GROUP_ROWS, GROUP_BYTES = 100, 64 << 20
"""Of a row group at most, but for its last sample."""

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
"""The one type that `datasets` takes for a picture."""


def write_parquet(samples: Iterable[Sample], schema: pa.Schema) -> Iterator[Files]:
    """The files of samples whose rows have these columns."""
    rest = [field for field in schema if field.name != "id"]
    pictures = [pa.field(name, _IMAGE) for name in PICTURES]
    features = {name: {"_type": "Image"} for name in PICTURES}
    # `datasets` infers the columns that are not named here, and reads no other key.
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    complete = pa.schema([schema.field("id"), *pictures, *rest], metadata)
    return sharded(samples, ".parquet", lambda buffer: _Shard(buffer, complete))


class _Shard:
    def __init__(self, buffer: io.BytesIO, schema: pa.Schema) -> None:
        leaves = {leaf: field.name for field in schema for leaf in _leaves(field.name, field.type)}
        self._schema = schema
        self._writer = pq.ParquetWriter(
            buffer,
            schema,
            compression={leaf: "none" if n in PICTURES else "zstd" for leaf, n in leaves.items()},
            use_dictionary=[leaf for leaf, name in leaves.items() if name not in PICTURES],
            write_page_index=True,
            use_content_defined_chunking=True,
        )
        self._group: list[Sample] = []
        self._num_bytes = 0

    def add(self, sample: Sample) -> None:
        self._group.append(sample)
        self._num_bytes += sum(len(one.data) for one in sample.pictures.values() if one)
        if len(self._group) >= GROUP_ROWS or self._num_bytes >= GROUP_BYTES:
            self._write()

    def close(self) -> None:
        if self._group:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        table = pa.concat_tables([sample.row for sample in self._group])
        for name in PICTURES:
            found = [sample.pictures[name] for sample in self._group]
            cells = [one and {"bytes": one.data, "path": one.name} for one in found]
            table = table.append_column(name, pa.array(cells, _IMAGE))
        table = table.select(self._schema.names).replace_schema_metadata(self._schema.metadata)
        self._writer.write_table(table)
        self._group, self._num_bytes = [], 0


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """What Parquet calls the columns of values behind a column."""
    if types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
