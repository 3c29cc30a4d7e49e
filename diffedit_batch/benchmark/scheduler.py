"""What it costs to keep workers busy: workers that sleep instead of editing, all else as in a job.

Backlog, pool and fan-out are those of the driver, on a Ray that starts here. How well they do is
told by what is left of the workers' time beside their sleep.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from diffedit_batch.benchmark.report import Column, Report, Table
from diffedit_batch.benchmark.timing import Spread
from diffedit_batch.config import JobConfig
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import ClusterError, ConfigError, RowError
from diffedit_batch.runtime.backlog import Backlog
from diffedit_batch.runtime.fan_out import fan_out
from diffedit_batch.runtime.messages import BundleResult, Group, WorkerInfo
from diffedit_batch.runtime.pool import Done, WorkerPool
from diffedit_batch.runtime.session import ray_session
from diffedit_batch.schema import EditRequest

logger = logging.getLogger(__name__)

_CPUS_PER_WORKER = 0.01
"""Sleep needs none: any number of workers finds its place on any machine."""

_BUNDLE_ROWS = 16

_COLUMNS = (
    Column("num_workers", "workers"),
    Column("num_groups", "groups"),
    Column("seconds", "seconds"),
    Column("efficiency", "efficiency", is_share=True),
    Column("overhead_per_group_ms", "overhead a group, ms"),
    Column("overhead_per_row_ms", "overhead a row, ms"),
    Column("driver_ms_per_row", "driver's processor time a row, ms"),
    Column("tail_s", "tail, s"),
    Column("start_s", "start, s"),
)
_NOTES = (
    "Efficiency: the workers' sleep over what they had: their number times the seconds from the"
    " first bundle handed out to the last one back. Their start is not in it.",
    "Overhead: the workers' time awake, over groups or rows.",
    "Tail: from the first worker that has no more to do to the end.",
)


class SleepingWorker:
    """A worker whose groups take as long to edit as their first seed says, in microseconds.

    Like an editor, it does one thing at a time, however many bundles it holds.
    """

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self._device = threading.Lock()
        self._num_slept = 0

    def load(self) -> WorkerInfo:
        """Nothing to load."""
        return WorkerInfo(str(os.getpid()), "sleep", 0.0)

    def edit(self, groups: Sequence[Group]) -> BundleResult:
        """Sleep for every group; the rows say which worker did."""
        with self._device:
            for group in groups:
                time.sleep(group[0].seed / 1e6)
                self._num_slept += 1
        rows: list[dict[str, Any]] = [
            {"id": request.id, "status": "edited", "worker": os.getpid()}
            for group in groups
            for request in group
        ]
        return BundleResult(rows, Counters(unet_evals=len(rows)), {})

    def progress(self) -> int:
        """Groups slept for."""
        return self._num_slept


def measure_scheduler(
    *,
    worker_counts: Sequence[int],
    num_groups: int,
    rows_per_group: int,
    group_s: float,
    repeats: int = 1,
) -> Report:
    """Efficiency, overhead and tail for each number of workers.

    Args:
        worker_counts: numbers of workers.
        num_groups: pictures.
        rows_per_group: edits of each.
        group_s: seconds that the edits of a picture take together.
        repeats: measurements of each.

    Raises:
        ConfigError: a number is not positive.
        ClusterError: workers cannot be had or kept.
    """
    if min(*worker_counts, num_groups, rows_per_group, repeats, 1) < 1 or group_s <= 0:
        raise ConfigError("benchmark of the scheduler", ["all numbers must be positive"])
    rows = []
    configs = [_config(num_workers) for num_workers in worker_counts]
    with ray_session(configs[0]):
        for config, num_workers in zip(configs, worker_counts, strict=True):
            logger.info("%d workers, %d groups of %g s", num_workers, num_groups, group_s)
            runs = [_run(config, num_groups, rows_per_group, group_s) for _ in range(repeats)]
            spreads = {key: Spread.of(run[key] for run in runs) for key in runs[0]}
            rows.append({"num_workers": num_workers, "num_groups": num_groups, **spreads})
    return Report(
        name="scheduler",
        title="Scheduler: workers that sleep",
        device="cpu",
        settings={
            "group_s": group_s,
            "rows_per_group": rows_per_group,
            "rows_per_bundle": configs[0].bundle_rows,
            "repeats": repeats,
        },
        tables=[Table("Workers", _COLUMNS, rows)],
        notes=_NOTES,
    )


def _config(num_workers: int) -> JobConfig:
    cluster = {
        "address": "local",
        "workers": num_workers,
        "gpus_per_worker": 0.0,
        "cpus_per_worker": _CPUS_PER_WORKER,
    }
    return JobConfig.model_validate(
        {
            "model": {"id": "demo"},
            "input": {"manifest": "none"},
            "output": {"uri": "none"},
            "engine": {"batch_size": _BUNDLE_ROWS},
            "cluster": cluster,
        }
    )


def _run(
    config: JobConfig, num_groups: int, rows_per_group: int, group_s: float
) -> dict[str, float]:
    """One measurement, by the columns of the table."""
    started = time.perf_counter()
    pool = WorkerPool(config, SleepingWorker, "edit")
    last_seen: dict[int, float] = {}
    num_rows = 0

    def take(event: Done) -> None:
        nonlocal num_rows
        num_rows += len(event.result.rows)
        last_seen[event.result.rows[0]["worker"]] = time.perf_counter()

    def give_up(request: EditRequest, error: RowError, causes: tuple[str, ...]) -> None:
        raise error

    try:
        while pool.num_ready < pool.num_workers:
            pool.wait(timeout_s=1.0)
        ready, driver_s = time.perf_counter(), time.process_time()
        backlog = Backlog(
            _requests(num_groups, rows_per_group, group_s),
            config.bundle_rows,
            pool.num_workers,
        )
        fan_out(
            backlog,
            pool,
            threading.Event(),
            take=take,
            give_up=give_up,
            on_wait=lambda: None,
        )
        ended, driver_s = time.perf_counter(), time.process_time() - driver_s
    finally:
        pool.close()
        pool.wait_until_gone()
    if num_rows != num_groups * rows_per_group:
        raise ClusterError(f"{num_rows} rows came back of {num_groups * rows_per_group}")
    had_s, slept_s = (ended - ready) * pool.num_workers, num_groups * group_s
    return {
        "seconds": ended - ready,
        "efficiency": slept_s / had_s,
        "overhead_per_group_ms": 1e3 * (had_s - slept_s) / num_groups,
        "overhead_per_row_ms": 1e3 * (had_s - slept_s) / num_rows,
        "driver_ms_per_row": 1e3 * driver_s / num_rows,
        # Who was given nothing at all had nothing to do from the first.
        "tail_s": ended
        - (min(last_seen.values()) if len(last_seen) == pool.num_workers else ready),
        "start_s": ready - started,
    }


def _requests(
    num_groups: int, rows_per_group: int, group_s: float
) -> Iterator[tuple[str, EditRequest]]:
    for group in range(num_groups):
        for row in range(rows_per_group):
            request = EditRequest(
                f"{group}-{row}",
                ("a red circle on grass",),
                ("a blue star on sand",),
                seed=round(group_s * 1e6),
            )
            yield str(group), request
