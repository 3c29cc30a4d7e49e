"""A folder of picture files, with a table beside them whose columns `*_file_name` name them."""

import io
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.export.samples import NUM_THREADS, PICTURES, Sample
from diffedit_batch.export.shards import Files

_GROUP_ROWS = 1_000


def write_imagefolder(samples: Iterable[Sample], schema: pa.Schema) -> Iterator[Files]:
    """The files of samples whose rows have these columns; the table comes last."""
    names = [pa.field(f"{name}_file_name", pa.string()) for name in PICTURES]
    rest = [field for field in schema if field.name != "id"]
    complete = pa.schema([schema.field("id"), *names, *rest])
    buffer = io.BytesIO()
    writer = pq.ParquetWriter(buffer, complete, compression="zstd")
    rows: list[pa.Table] = []
    files: Files = {}
    for number, sample in enumerate(samples, 1):
        row = sample.row
        for name, picture in sample.pictures.items():
            path = None
            if picture is not None:
                # No folder of more files than a file browser, or the hub, can stand.
                path = f"{name}/{sample.key[-16:-14]}/{picture.name}"
                files[f"data/{path}"] = picture.data
            row = row.append_column(f"{name}_file_name", pa.array([path], pa.string()))
        rows.append(row.select(complete.names))
        if number % NUM_THREADS == 0:
            yield files
            files = {}
        if len(rows) == _GROUP_ROWS:
            writer.write_table(pa.concat_tables(rows))
            rows = []
    yield files
    if rows:
        writer.write_table(pa.concat_tables(rows))
    writer.close()
    yield {"data/metadata.parquet": buffer.getvalue()}
