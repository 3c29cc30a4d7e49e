"""The live view of a run on a terminal: how far it is, and what every worker delivers."""

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diffedit_batch.terminal.progress import duration, rate_of

if TYPE_CHECKING:
    from diffedit_batch.runtime.records import RunState
    from diffedit_batch.runtime.worker_state import WorkerState

_REDRAWN_EVERY_S = 0.2
_MAX_WORKERS = 8


@contextmanager
def live_view() -> Iterator[Callable[["RunState"], None]]:
    """What shows a run on stderr, until the run ends; what is printed meanwhile appears above."""
    console = Console(stderr=True)
    drawn = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(state: "RunState") -> None:
            nonlocal drawn
            now = time.monotonic()
            if state.phase or now - drawn >= _REDRAWN_EVERY_S:
                drawn = now
                live.update(view_of(state), refresh=True)

        yield show


def view_of(state: "RunState") -> RenderableType:
    """A run as it stands: a line for all of it, and one for each worker."""
    if state.phase:
        return Text(f"{state.phase} ...", "dim")
    parts: list[RenderableType] = [_headline(state)]
    workers = [worker for worker in state.workers if worker.is_ready]
    slowest = heapq.nsmallest(_MAX_WORKERS, workers, key=lambda worker: worker.rows_per_s)
    if workers:
        parts.append(_table_of([worker for worker in workers if worker in slowest]))
    else:
        parts.append(Text("workers are starting: they load the model", "dim"))
    if len(workers) > _MAX_WORKERS:
        parts.append(Text(f"and {len(workers) - _MAX_WORKERS} that are faster", "dim"))
    if state.lost_workers:
        parts.append(Text(f"workers lost: {len(state.lost_workers)}", "yellow"))
    return Group(*parts)


def _headline(state: "RunState") -> RenderableType:
    num_failed = state.counts["failed"]
    line = Table.grid(padding=(0, 2))
    line.add_row(
        ProgressBar(max(1, state.num_rows), state.num_done, width=24),
        Text(f"{state.num_done}/{state.num_rows} rows", "bold"),
        rate_of(state),
        Text(f"{num_failed} failed", "red" if num_failed else "dim"),
        "" if state.eta_s is None else f"{duration(state.eta_s)} left",
    )
    return line


def _table_of(workers: list["WorkerState"]) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("worker", no_wrap=True)
    table.add_column("device", no_wrap=True)
    for heading in ("rows", "failed", "rows/s", "GPU memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for worker in workers:
        info = worker.info
        table.add_row(
            info.name,
            info.device,
            str(worker.num_rows),
            str(worker.counts["failed"]),
            f"{worker.rows_per_s:.2f}",
            _gib(worker.gpu_memory_used_bytes, info.gpu_memory_bytes),
        )
    return table


def _gib(used: int, there: int) -> str:
    return f"{used / 2**30:.1f} of {there / 2**30:.1f} GiB" if there else "-"
