"""Handing bundles to whichever worker is free, whatever the workers do with them."""

import threading
from collections.abc import Callable
from typing import Any

from diffedit_batch.errors import ClusterError, RowError
from diffedit_batch.runtime.backlog import Backlog, Bundle
from diffedit_batch.runtime.pool import Done, WorkerPool

MAX_DEATHS_ALONE = 3
"""A request that takes this many workers with it, alone, is failed."""

_DEATHS_WITHOUT_A_RESULT = 8


def fan_out(
    backlog: Backlog,
    pool: WorkerPool,
    stop: threading.Event,
    *,
    take: Callable[[Done], None],
    give_up: Callable[[Any, RowError, int], None],
    on_wait: Callable[[], None],
) -> None:
    """Hand out bundles and take results until there is no more, or `stop` is set and all that was
    handed out is back.

    Args:
        backlog: what is to be done.
        pool: who does it.
        stop: asks for an early end.
        take: is given every bundle that comes back.
        give_up: is given a request that killed too many workers, why, and how many it had.
        on_wait: called whenever something came back, and about once a second.

    Raises:
        DiffEditError: a worker reported an error that concerns the whole job.
        ClusterError: workers cannot be had or kept.
    """
    num_deaths = 0
    while True:
        while not stop.is_set():
            bundle = backlog.peek()
            if bundle is None or not pool.has_room(bundle):
                break
            pool.submit(backlog.pop())
        if pool.num_in_flight == 0 and (stop.is_set() or backlog.peek() is None):
            return
        for event in pool.wait(timeout_s=1.0):
            num_deaths += 1
            if isinstance(event, Done):
                take(event)
                num_deaths = 0
            elif _is_to_blame(event.bundle):
                [[request]] = event.bundle.groups
                reason = f"{MAX_DEATHS_ALONE} workers died of this row alone: {event.cause}"
                give_up(
                    request,
                    RowError("worker", "WorkerDied", reason),
                    event.bundle.num_deaths + 1,
                )
                num_deaths = 0
            else:
                backlog.put_back(event.bundle)
            if num_deaths > _DEATHS_WITHOUT_A_RESULT + 2 * pool.num_workers:
                # What kills every worker is no fault of the rows.
                raise ClusterError(
                    f"{num_deaths} times in a row a worker died before any row came back; see the"
                    " warnings above for why"
                )
        on_wait()


def _is_to_blame(bundle: Bundle) -> bool:
    return bundle.is_one_row_alone and bundle.num_deaths_alone + 1 >= MAX_DEATHS_ALONE
