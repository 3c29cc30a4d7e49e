"""The gallery of an output: a folder of static pages that needs neither server nor network."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from diffedit_batch import __version__
from diffedit_batch.data.columns import VARIANT_COLUMNS
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError, StorageError
from diffedit_batch.report.pictures import Pictures
from diffedit_batch.report.row_pictures import PICTURED, add_pictures
from diffedit_batch.report.rows import (
    SCORES,
    count_reasons,
    encode_columns,
    failures,
    read_rows,
    scores_of,
    script,
    variants,
)
from diffedit_batch.report.sources import Sources, read_records
from diffedit_batch.schema import EDIT_PARAMETERS, RESULT_SCHEMA

_PAGE = Path(__file__).parent / "gallery"
_INDEX_ROWS, _DETAIL_ROWS = 5_000, 200
"""Rows of a file that is loaded at the start, and of one that is loaded when one of its rows is
opened; the first is a multiple of the second.
"""

_INDEXED = (
    *("id", "status", "source_prompt", "target_prompt", "source_concept", "target_concept"),
    *("width", "height", "run_id"),
)
_REASONS = "filter_reasons"
_MESSAGE = 300
"""Characters of an error on a card."""
_NUM_THREADS = min(32, 2 * (os.cpu_count() or 1))


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: to open in a browser.
        num_rows: that are shown.
        num_made, num_reused: pictures.
        missing: rows without a picture they should have, by which and why.
    """

    page: Path
    num_rows: int
    num_made: int
    num_reused: int
    missing: Counter[str]


def build_report(
    output_uri: str,
    folder: Path | None = None,
    image_root: str | None = None,
    on_progress: Callable[[int, int], None] = lambda num_done, num_rows: None,
) -> Report:
    """Write the gallery of an output; pictures of an earlier one are reused.

    Args:
        output_uri: output folder of a job, whether a run has finished, is at work or was killed.
        folder: where to; None: `report` in the output folder.
        image_root: where the source images are, if not where the runs found them.
        on_progress: called with the rows whose pictures are there, and all rows.

    Raises:
        ConfigError: `folder` is needed, or holds something else.
        StorageError: there are no results, they cannot be read, or the gallery cannot be written.
    """
    storage = Storage(output_uri)
    folder = find_folder(output_uri, folder)
    table = read_rows(Ledger(storage))
    records = read_records(storage)
    sources = Sources(storage, records, image_root)
    try:
        return _write(storage, table, records, sources, folder, on_progress)
    except OSError as error:
        raise StorageError(
            f"the gallery cannot be written to {folder}: {error.strerror or error}. Make room, or"
            " name another folder with --to; pictures that are there are reused"
        ) from error


def _write(
    storage: Storage,
    table: pa.Table,
    records: list[dict[str, Any]],
    sources: Sources,
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> Report:
    for file in _PAGE.iterdir():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)
    pictures = Pictures(folder / "pictures")
    data = folder / "data" / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    data.mkdir(parents=True)
    show = partial(add_pictures, storage, sources, pictures)
    missing: Counter[str] = Counter()
    pool = ThreadPoolExecutor(_NUM_THREADS)
    try:
        for number, start in enumerate(range(0, table.num_rows, _INDEX_ROWS)):
            rows = table.slice(start, _INDEX_ROWS)
            shown = []
            for columns, why in pool.map(show, rows.select(PICTURED).to_pylist()):
                shown.append(columns)
                missing.update(why)
                on_progress(start + len(shown), table.num_rows)
            _write_index(data / f"rows-{number}.js", number, rows, shown)
            _write_details(data, start, rows)
    finally:
        pool.shutdown(cancel_futures=True)
    meta = _describe(storage, table, records, data.name, folder)
    _place(folder / "data.js", script("gallery.start", json.dumps(meta, allow_nan=False)))
    for other in data.parent.iterdir():
        if other != data:
            shutil.rmtree(other)
    pictures.remove_unused()
    return Report(
        folder / "index.html", table.num_rows, pictures.num_made, pictures.num_reused, missing
    )


def find_folder(output_uri: str, folder: Path | None) -> Path:
    """Where the gallery of an output goes, see `build_report`.

    Raises:
        ConfigError: `folder` is needed, or holds something else.
    """
    if folder is None:
        storage = Storage(output_uri)
        if not isinstance(storage.fs, LocalFileSystem):
            problem = f"{storage.uri} is not on a local disk; name a folder that is with --to"
            raise ConfigError("report", [problem])
        folder = Path(storage.full("report"))
    is_ours = (folder / "gallery.css").is_file()
    if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
        problem = f"{folder} holds something that is no gallery; name another folder with --to"
        raise ConfigError("report", [problem])
    return folder


def _write_index(path: Path, number: int, rows: pa.Table, shown: list[dict[str, str]]) -> None:
    """What cards, filters and search need of some rows."""
    indexed = [*_INDEXED, *(VARIANT_COLUMNS if variants(rows) else ())]
    scored = [name for name in (*SCORES, _REASONS) if name in rows.column_names]
    columns: dict[str, Any] = {name: rows[name].to_pylist() for name in (*indexed, *scored)}
    stages, kinds = rows["error_stage"].to_pylist(), rows["error_type"].to_pylist()
    columns["cause"] = [
        f"{stage}/{kind}" if stage else "" for stage, kind in zip(stages, kinds, strict=True)
    ]
    columns["message"] = [text[:_MESSAGE] for text in rows["error_message"].to_pylist()]
    columns["finished"] = rows["finished_at"].cast(pa.int64()).to_pylist()
    columns |= {name: [one[name] for one in shown] for name in shown[0]}
    path.write_bytes(script("gallery.receive", f'"rows",{number}', encode_columns(columns)))


def _write_details(data: Path, start: int, rows: pa.Table) -> None:
    """Everything else that is known of some rows."""
    known = {*_INDEXED, *SCORES, _REASONS}
    columns = rows.select([name for name in rows.column_names if name not in known])
    for offset in range(0, rows.num_rows, _DETAIL_ROWS):
        number = (start + offset) // _DETAIL_ROWS
        cells = columns.slice(offset, _DETAIL_ROWS).to_pydict()
        text = script("gallery.receive", f'"details",{number}', encode_columns(cells))
        (data / f"details-{number}.js").write_bytes(text)


def _describe(
    storage: Storage, table: pa.Table, records: list[dict[str, Any]], data: str, folder: Path
) -> dict[str, Any]:
    """What the page knows from the start."""
    causes = failures(table)
    statuses = Counter(table["status"].to_pylist())
    models = Counter(
        zip(table["model_id"].to_pylist(), table["model_revision"].to_pylist(), strict=True)
    )
    is_inside = folder.resolve() == Path(storage.full("report")).resolve()
    return {
        "name": storage.full("").rstrip("/").rpartition("/")[2],
        "version": __version__,
        "createdAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "isComplete": storage.exists("_SUCCESS"),
        "data": data,
        "numRows": table.num_rows,
        "numAsked": records[-1]["num_rows"] if records else None,
        "indexRows": _INDEX_ROWS,
        "detailRows": _DETAIL_ROWS,
        "statuses": dict(statuses),
        "failures": causes,
        "hasMaps": bool(pc.any(pc.not_equal(table["map_file_name"], "")).as_py()),
        "scores": scores_of(table),
        "reasons": count_reasons(table),
        "parameters": list(EDIT_PARAMETERS),
        "variants": variants(table),
        "carried": [name for name in table.column_names if name not in RESULT_SCHEMA.names],
        "models": [list(model) for model, _ in models.most_common()],
        "runs": [
            {name: record.get(name) for name in ("run_id", "outcome", "started_at", "counts")}
            for record in records
        ],
        # Files of the output are reached from where the report stands by default.
        "output": "../" if is_inside else "",
    }


def _place(path: Path, data: bytes) -> None:
    """Put a whole file in the place of the one a browser may be reading."""
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(path)
