"""How a run stands, for people who wait for it and for programs that watch it."""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from diffedit_batch.runtime.records import RunState

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0

Show = Callable[["RunState"], None]


@contextmanager
def progress(*, is_quiet: bool = False, as_json: bool = False) -> Iterator[Show]:
    """What `on_progress` of a run is to be: a live view on a terminal; elsewhere a line every ten
    seconds, of JSON if that is asked for; or nothing.
    """
    # What Ray prints of lost workers must not come between the lines of a summary, nor of JSON.
    if as_json:
        logger.setLevel(logging.INFO)
        with redirect_stdout(cast(IO[str], _Logged())):
            yield _nothing if is_quiet else _every_ten_seconds(_log)
    elif is_quiet:
        with redirect_stdout(sys.stderr):
            yield _nothing
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from diffedit_batch.terminal.live import live_view

        with live_view() as show:
            yield show
    else:
        with redirect_stdout(sys.stderr):
            yield _every_ten_seconds(lambda state: print(line_of(state), flush=True))


def line_of(state: "RunState") -> str:
    """How a run stands, in one line."""
    if state.phase:
        return state.phase
    workers = f"workers: {state.num_workers}" if state.num_workers else "workers are starting"
    parts = [
        f"{state.num_done}/{state.num_rows} rows",
        rate_of(state),
        f"{state.counts['failed']} failed",
        workers,
    ]
    if state.eta_s is not None:
        parts.append(f"{duration(state.eta_s)} left")
    return ", ".join(parts)


def rate_of(state: "RunState") -> str:
    """How fast rows come. The first take as long as all that share their network calls."""
    return f"{state.rows_per_s:.2f} rows/s" if state.rows_per_s else "none back yet"


def duration(seconds: float) -> str:
    """Seconds as people say them, in two units at most."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _every_ten_seconds(show: Show) -> Show:
    shown = time.monotonic()

    def show_at_times(state: "RunState") -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= _LINE_EVERY_S:
            shown = now
            show(state)

    return show_at_times


def _nothing(state: "RunState") -> None:
    pass


class _Logged(io.TextIOBase):
    """A stdout whose text becomes log records."""

    def write(self, text: str) -> int:
        """Log a text, unless it is a mere line end."""
        if text.strip():
            logger.warning("%s", text.strip())
        return len(text)


def _log(state: "RunState") -> None:
    fields = {
        "run_id": state.run_id,
        "phase": state.phase or "edit",
        "num_rows": state.num_rows,
        "num_done": state.num_done,
        "num_left": state.num_left,
        "num_failed": state.counts["failed"],
        "num_workers": state.num_workers,
        "rows_per_s": round(state.rows_per_s, 3),
        "eta_s": None if state.eta_s is None else round(state.eta_s),
        "workers": {
            worker.info.name: {
                "num_rows": worker.num_rows,
                "rows_per_s": round(worker.rows_per_s, 3),
                "gpu_memory_used_bytes": worker.gpu_memory_used_bytes,
            }
            for worker in state.workers
            if worker.is_ready
        },
    }
    logger.info(line_of(state), extra=fields)
