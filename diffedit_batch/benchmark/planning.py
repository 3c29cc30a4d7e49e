"""What it costs to find the few rows to do among many that are done."""

import multiprocessing
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import JobConfig
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.models.identity import identify
from diffedit_batch.runtime.backlog import Backlog
from diffedit_batch.runtime.selection import UNDONE, Selector
from diffedit_batch.runtime.wanted import open_generated
from diffedit_batch.schema import RESULT_SCHEMA, EditRequest

_ROWS_AT_ONCE = 100_000


@dataclass(frozen=True)
class PlanningCost:
    """What planning cost, in a process of its own.

    Attributes:
        num_rows: rows of the manifest.
        num_done: rows with a committed result.
        num_images: image files, each looked up once for every row that names it.
        num_to_do: rows found to be done.
        seconds: on the clock, from the opened config to the first bundle of work, by step: `check`
            the manifest as a whole, read the `ledger`, `select` the rows.
        cpu_seconds: the same, of the processor.
        start_rss_mb: memory before, with all modules loaded.
        peak_rss_mb: largest memory of the process, in 2^20 bytes.
    """

    num_rows: int
    num_done: int
    num_images: int
    num_to_do: int
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    start_rss_mb: float
    peak_rss_mb: float

    def as_markdown(self) -> str:
        """A table of the steps."""
        lines = [
            f"{self.num_rows:,} rows, {self.num_done:,} done, {self.num_images:,} image files;"
            f" {self.num_to_do:,} to do; peak memory {self.peak_rss_mb:,.0f} MiB"
            f" ({self.start_rss_mb:,.0f} before)",
            "",
            "| step | seconds | CPU seconds |",
            "|---|---|---|",
        ]
        total = {"total": sum(self.seconds.values())}
        cpu_total = {"total": sum(self.cpu_seconds.values())}
        for step, seconds in (self.seconds | total).items():
            lines.append(f"| {step} | {seconds:.1f} | {(self.cpu_seconds | cpu_total)[step]:.1f} |")
        return "\n".join(lines)


def measure_planning(
    folder: Path, *, num_rows: int, num_done: int, num_images: int
) -> PlanningCost:
    """Write a manifest and the results of its first rows under `folder`, and plan what is left."""
    # Each in a process of its own: a process begins with the peak of the one that started it.
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(1) as pool:
        config = pool.apply(_write, (folder, num_rows, num_done, num_images))
    with processes.Pool(1) as pool:
        return pool.apply(_plan, (config, num_done, num_images))


def _write(folder: Path, num_rows: int, num_done: int, num_images: int) -> JobConfig:
    config = _write_manifest(folder, num_rows, num_images)
    _write_results(config, num_done)
    return config


def _plan(config: JobConfig, num_done: int, num_images: int) -> PlanningCost:
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}
    start_rss_mb = _peak_rss_mb()

    @contextmanager
    def step(name: str) -> Iterator[None]:
        clock, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[name] = round(time.perf_counter() - clock, 2)
        cpu_seconds[name] = round(time.process_time() - cpu, 2)

    storage = Storage(config.output.uri)
    with step("check"):
        manifest = Manifest(config, _model_key(config), open_generated(config, storage))
    with step("ledger"):
        selector = Selector(UNDONE, manifest, Ledger(storage))
    num_to_do = 0

    def requests() -> Iterator[tuple[str, EditRequest | None]]:
        nonlocal num_to_do
        for row in selector.rows_to_do():
            num_to_do += 1
            yield row.group, row.request

    with step("select"):
        Backlog(requests(), config.bundle_rows, num_workers=1).peek()
    return PlanningCost(
        num_rows=manifest.num_rows,
        num_done=num_done,
        num_images=num_images,
        num_to_do=num_to_do,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        start_rss_mb=start_rss_mb,
        peak_rss_mb=_peak_rss_mb(),
    )


def _peak_rss_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _model_key(config: JobConfig) -> str:
    model = identify(config.model)
    return f"{model.id}@{model.revision}"


def _write_manifest(folder: Path, num_rows: int, num_images: int) -> JobConfig:
    """Rows with an id, two prompts, two parameters and a column to carry."""
    for number in range(num_images):
        image = folder / "images" / f"{number // 1000:04}" / f"{number:07}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"%d" % number)
    numbers = np.arange(num_rows)
    images = numbers % num_images
    colours = np.array(["red", "green", "blue", "yellow"])
    table = pa.table(
        {
            "id": [f"row-{number:08}" for number in numbers],
            "image": [f"images/{n // 1000:04}/{n:07}.png" for n in images],
            "source_prompt": [f"a {colours[n % 4]} circle on grass, {n}" for n in images],
            "target_prompt": [f"a {colours[n % 3]} star on sand, {n}" for n in numbers],
            "guidance_scale": np.array([3.0, 5.0, 7.5])[numbers % 3],
            "seed": numbers % 100,
            "note": [f"note {number}" for number in numbers],
        }
    )
    path = folder / "manifest.parquet"
    pq.write_table(table, path)
    tree = {
        "model": {"id": "demo"},
        "input": {"manifest": str(path)},
        "output": {"uri": str(folder / "output")},
    }
    return JobConfig.model_validate(tree)


def _write_results(config: JobConfig, num_done: int) -> None:
    """What a run would have committed of the first rows, their pictures left out."""
    storage = Storage(config.output.uri)
    with hold_lease(storage, "benchmark") as lease:
        ledger = Ledger(storage, lease)
        rows = islice(Manifest(config, _model_key(config)).rows(), num_done)
        while versions := [(row.id, row.fingerprint) for row in islice(rows, _ROWS_AT_ONCE)]:
            names = [file_names(*version) for version in versions]
            known = {
                "id": [row_id for row_id, _ in versions],
                "fingerprint": [fingerprint for _, fingerprint in versions],
                "status": ["edited"] * len(versions),
                "edited_file_name": [name.edited for name in names],
                "mask_file_name": [name.mask for name in names],
                "map_file_name": [name.map for name in names],
            }
            columns = []
            for field in RESULT_SCHEMA:
                if field.name in known:
                    columns.append(pa.array(known[field.name], field.type))
                else:
                    blank = None if field.nullable else _blank(field.type)
                    columns.append(pa.array([blank] * len(versions), field.type))
            ledger.commit(pa.Table.from_arrays(columns, schema=RESULT_SCHEMA))


def _blank(kind: pa.DataType) -> str | int:
    return "" if pa.types.is_string(kind) else 0
