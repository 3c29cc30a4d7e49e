"""What the driver spends on a row, whatever the row costs its worker."""

import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.benchmark.report import Column, Report, Table
from diffedit_batch.benchmark.timing import Spread
from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import encode_png
from diffedit_batch.errors import ClusterError, ConfigError
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.records import RunState

logger = logging.getLogger(__name__)

_SIDE = 16
"""Of the pictures, px: reading and writing them is the worker's, and is to be short."""

_BUNDLE_ROWS = 64
"""As on a GPU."""

_COLUMNS = (
    Column("num_rows", "rows"),
    Column("driver_ms_per_row", "driver's processor time a row, ms"),
)
_NOTES = (
    "A job whose prompts agree: every row is read, found to change nothing and written by a real"
    " worker, without a network evaluation.",
    "From the first results to the end of the run: rows planned, handed out, committed, and the"
    " parts merged. Processor time of all threads of the driver's process, Ray's among them.",
)


def measure_driver(*, num_rows: int, rows_per_image: int, repeats: int) -> Report:
    """The driver's processor time for a row of a job with one worker.

    Args:
        num_rows: of the manifest.
        rows_per_image: rows of each picture.
        repeats: jobs.

    Raises:
        ConfigError: a number is not positive, or the rows come back all at once.
        ClusterError: rows failed.
    """
    if min(rows_per_image, repeats) < 1 or num_rows <= 4 * _BUNDLE_ROWS:
        wanted = f"rows must be more than {4 * _BUNDLE_ROWS}, the other numbers positive"
        raise ConfigError("benchmark of the driver", [wanted])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        _write_manifest(folder, num_rows, rows_per_image)
        runs = []
        for number in range(repeats):
            logger.info("job %d of %d", number + 1, repeats)
            runs.append(_run(_config(folder, f"output-{number}"), num_rows))
    spreads = {key: Spread.of(run[key] for run in runs) for key in runs[0]}
    return Report(
        name="driver",
        title="The driver: rows that cost their worker nothing",
        device="cpu",
        settings={
            "rows_per_image": rows_per_image,
            "rows_per_bundle": _BUNDLE_ROWS,
            "repeats": repeats,
        },
        tables=[Table("Rows", _COLUMNS, [{"num_rows": num_rows, **spreads}])],
        notes=_NOTES,
    )


def _write_manifest(folder: Path, num_rows: int, rows_per_image: int) -> None:
    num_images = -(-num_rows // rows_per_image)
    for number in range(num_images):
        picture = np.full((_SIDE, _SIDE, 3), number % 256, np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(picture))
    rows = range(num_rows)
    prompts = [f"a red circle on grass, {number}" for number in rows]
    table = {
        "id": [f"row-{number}" for number in rows],
        "image": [f"{number // rows_per_image}.png" for number in rows],
        "source_prompt": prompts,
        "target_prompt": prompts,
    }
    pq.write_table(pa.table(table), folder / "manifest.parquet")


def _config(folder: Path, output: str) -> JobConfig:
    return JobConfig.model_validate(
        {
            "model": {"id": "demo"},
            "input": {"manifest": str(folder / "manifest.parquet")},
            "output": {"uri": str(folder / output)},
            "engine": {"batch_size": _BUNDLE_ROWS},
            "cluster": {"address": "local", "workers": 1, "gpus_per_worker": 0.0},
        }
    )


def _run(config: JobConfig, num_rows: int) -> dict[str, float]:
    """One job, by the columns of the table."""
    first: list[tuple[int, float]] = []

    def sample(state: RunState) -> None:
        if state.counts and not first:
            first.append((state.counts.total(), time.process_time()))

    state = run_job(config, on_progress=sample)
    if state.counts["unchanged"] != num_rows:
        raise ClusterError(f"of {num_rows} rows came back: {dict(state.counts)}")
    ((num_before, cpu_s),) = first
    spent_s = time.process_time() - cpu_s
    return {"driver_ms_per_row": 1e3 * spent_s / (num_rows - num_before)}
