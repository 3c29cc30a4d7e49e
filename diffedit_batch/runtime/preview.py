"""A preview: a sample of a job's rows as a job of its own, whose output stands beside the real one.

Its manifest holds the rows of the sample once for every variant of a sweep, with columns that say
so; all else (run, rerun, gallery) is what every job has.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import JobConfig
from diffedit_batch.data.columns import VARIANT_COLUMNS, resolve_columns
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.locate import find_manifest
from diffedit_batch.data.storage import Storage
from diffedit_batch.data.text_files import CAPTIONS, PROMPTS
from diffedit_batch.errors import ConfigError
from diffedit_batch.runtime.sample import Sample, sample_rows
from diffedit_batch.runtime.selection import Selection
from diffedit_batch.runtime.sweep import label, read_sweeps
from diffedit_batch.schema import RESULT_SCHEMA

SELECTION = Selection(prune=True)
"""Rows of another sample or sweep go."""

_MANIFEST = "manifest.parquet"


@dataclass(frozen=True)
class Preview:
    """A preview that is ready to be run.

    Attributes:
        config: of its job, to be run with `SELECTION`.
        num_rows: rows of the sample.
        num_variants: of each.
        num_kinds: see `Sample`.
        num_candidates: rows looked at.
        refused: those that cannot be edited, by `stage/type`.
    """

    config: JobConfig
    num_rows: int
    num_variants: int
    num_kinds: int
    num_candidates: int
    refused: Counter[str]


def make_preview(
    config: JobConfig, num_rows: int, *, sweeps: Sequence[str] = (), where: str | None = None
) -> Preview:
    """Draw the sample, and write its manifest beside the output of the job. The same arguments
    draw the same rows: what is done of them is not done again.

    Args:
        config: the job.
        num_rows: of the sample, see `sample_rows`.
        sweeps: see `read_sweeps`.
        where: as of `Selection`.

    Raises:
        ConfigError: a sweep is wrong, or there is no place beside the output.
        ManifestError: as of `sample_rows`, or a column of the manifest is in the way.
        OutputHeldError: another preview is at work there.
    """
    variants = read_sweeps(sweeps, config.edit)
    config = config.with_absolute_paths()
    scheme, _, path = config.output.uri.rpartition("://")
    if scheme and "/" not in path.strip("/"):
        problem = f"output.uri {config.output.uri!r} leaves no place beside it; name a folder in it"
        raise ConfigError("preview", [problem])
    sample = sample_rows(config, num_rows, where=where)
    table = _with_variants(sample, variants, config.input.columns)
    storage = Storage(config.output.preview_uri)
    with hold_lease(storage, "preview"):
        _write_if_new(storage, _MANIFEST, _as_parquet(table))
        for kind in (PROMPTS, CAPTIONS):  # with what people have corrected
            name = f"{kind.name}.parquet"
            real = Storage(config.output.uri)
            if real.exists(name):
                _write_if_new(storage, name, real.read(name))
    return Preview(
        _job(config, storage),
        len(sample.rows),
        len(variants),
        sample.num_kinds,
        sample.num_candidates,
        sample.refused,
    )


def _job(config: JobConfig, storage: Storage) -> JobConfig:
    """The preview as a job: like the real one, in another place and a smaller size."""
    given = config.input
    root = given.image_root or find_manifest(given.manifest)[1]
    workers = config.cluster.workers
    places = {"manifest": f"{storage.uri}/{_MANIFEST}", "image_root": root}
    return config.model_copy(
        update={
            "input": given.model_copy(update=places),
            # Failures are to be looked at, too.
            "output": config.output.model_copy(
                update={"uri": storage.uri, "max_failed_fraction": 1.0}
            ),
            # The few rows are done before a second model is loaded.
            "cluster": config.cluster.model_copy(
                update={"workers": 1 if workers == "auto" else workers}
            ),
        }
    )


def _with_variants(
    sample: Sample, variants: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]
) -> pa.Table:
    """The rows of a sample as they are written, once for every variant; those of a row together."""
    rows = sample.manifest.table()
    columns, overrides, _ = resolve_columns(rows.schema, mapping)
    names = columns | overrides
    ids = [row.id for row in sample.rows]
    is_sweep = any(variants)
    number = pa.array([n for n in range(len(ids)) for _ in variants])
    table = rows.take(number)
    labels = [label(variant) for _ in ids for variant in variants]
    of = [row_id for row_id in ids for _ in variants]
    own_ids = [f"{row_id} {said}" for row_id, said in zip(of, labels, strict=True)]
    table = _set(table, names.get("id", "id"), pa.array(own_ids if is_sweep else ids))
    if is_sweep:
        for name, values in zip(VARIANT_COLUMNS, (of, labels), strict=True):
            if name in table.column_names:
                problem = f"column {name!r} is what a sweep calls its own; rename it"
                raise ConfigError("--sweep", [problem])
            table = table.append_column(name, pa.array(values))
        for name in variants[0]:
            kind = RESULT_SCHEMA.field(name).type
            values = pa.array([variant[name] for _ in ids for variant in variants], kind)
            table = _set(table, names.get(name, mapping.get(name, name)), values)
    return table


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name not in table.column_names:
        return table.append_column(name, values)
    return table.set_column(table.column_names.index(name), name, values)


def _as_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer)
    return buffer.getvalue()


def _write_if_new(storage: Storage, path: str, data: bytes) -> None:
    """Leave a file that is the same: images in a manifest are known by its bytes, and a rerun
    should find nothing changed.
    """
    if not storage.exists(path) or storage.read(path) != data:
        storage.write(path, data)
