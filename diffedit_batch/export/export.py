"""Copies of an output in forms that other tools open: Parquet with pictures inside, a folder of
pictures with a table, tar files; each with a dataset card.

The committed results stay what they are, the ledger of the job, which every run reads and merges.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from diffedit_batch.data.current import CurrentRows
from diffedit_batch.data.ledger import Ledger, read_json
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError
from diffedit_batch.export.card import Card
from diffedit_batch.export.imagefolder import write_imagefolder
from diffedit_batch.export.parquet import write_parquet
from diffedit_batch.export.samples import NUM_THREADS, PICTURES, Sample, read_samples
from diffedit_batch.export.shards import Files
from diffedit_batch.export.webdataset import write_webdataset
from diffedit_batch.report.sources import Sources, read_records
from diffedit_batch.schema import FILE_COLUMNS

DATA_FILES = {
    "parquet": "data/*.parquet",
    "imagefolder": "data/**",
    "webdataset": "data/*.tar",
}
"""The forms, with the files that hold the data."""

_MARK = "_diffedit/export.json"
"""Says that a folder is an export, whole or not."""


@dataclass
class Export:
    """What was written.

    Attributes:
        num_rows: that have pictures.
        num_failed: that have none.
        num_files: of data.
        missing: pictures that rows should have, by which and why.
    """

    num_rows: int = 0
    num_failed: int = 0
    num_files: int = 0
    missing: Counter[str] = field(default_factory=Counter)


def export_output(
    output_uri: str,
    target_uri: str,
    form: str,
    image_root: str | None = None,
    on_progress: Callable[[int, int], None] = lambda num_done, num_rows: None,
) -> Export:
    """Write the rows that have pictures, whether a run has finished, is at work or was killed.

    Files appear whole, and `README.md`, the card, last: a folder that has it is a whole export. The
    same rows give the same bytes; what an earlier export left is replaced or removed.

    Args:
        output_uri: output folder of a job.
        target_uri: folder to write to, local or on an object store.
        form: one of `DATA_FILES`.
        image_root: where the source images are, if not where the runs found them.
        on_progress: called with the rows that were read, and all rows.

    Raises:
        ConfigError: the target holds something else, or a column of the manifest has a name that is
            needed.
        StorageError: there are no results, or they cannot be read, or nothing can be written.
    """
    storage, target = Storage(output_uri), Storage(target_uri)
    rows = CurrentRows(Ledger(storage))
    schema = pa.schema([column for column in rows.schema if column.name not in FILE_COLUMNS])
    _check_names(schema, form)
    _take(target, form)
    export = Export(num_failed=rows.counts["failed"])
    num_expected = rows.counts.total() - export.num_failed
    card = Card(target.full("").rstrip("/").rpartition("/")[2], rows.counts)

    def watched(samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            card.add(sample)
            export.num_rows += 1
            export.missing.update(sample.missing)
            on_progress(export.num_rows, num_expected)
            yield sample

    samples = watched(
        read_samples(storage, rows, Sources(storage, read_records(storage), image_root))
    )
    if form == "parquet":
        groups = write_parquet(samples, schema)
    elif form == "imagefolder":
        groups = write_imagefolder(samples, schema)
    else:
        groups = write_webdataset(samples)
    written = _write(target, groups)
    export.num_files = len(written)
    target.remove(path for path in target.find("data") if path not in written)
    _write_card(target, card, form)
    return export


def _check_names(schema: pa.Schema, form: str) -> None:
    """Refuse columns that the form could not tell from its own."""
    problems = [
        f"column {name!r} of the manifest has the name of a picture; rename it there and run again"
        for name in PICTURES
        if name in schema.names
    ]
    if form == "imagefolder":
        problems += [
            f"column {name!r} of the manifest would be taken for the name of a picture by whoever"
            " loads the folder; choose another format"
            for name in schema.names
            if name.endswith(("file_name", "file_names"))
        ]
    if problems:
        raise ConfigError("export", problems)


def _take(target: Storage, form: str) -> None:
    """Make the target ours, and what it holds so far no whole export any more."""
    is_ours = read_json(target, _MARK) is not None
    if not is_ours and any(not path.startswith("_diffedit/tmp/") for path in target.find("")):
        problem = f"{target.uri} holds something that is no export; name another folder with --to"
        raise ConfigError("export", [problem])
    target.write(_MARK, json.dumps({"format": form}).encode())
    target.remove(["README.md", "samples.png"])
    target.remove_temporary()


def _write(target: Storage, groups: Iterable[Files]) -> set[str]:
    """Write files as they come; returns their paths."""
    written: set[str] = set()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for files in groups:
            list(pool.map(target.write, files, files.values()))
            written.update(files)
    return written


def _write_card(target: Storage, card: Card, form: str) -> None:
    picture = card.picture()
    if picture is not None:
        target.write("samples.png", picture)
    target.write("README.md", card.text(DATA_FILES[form]).encode())
