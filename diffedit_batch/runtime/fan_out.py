"""Handing bundles to whichever worker is free, whatever the workers do with them."""

import threading
from collections.abc import Callable
from typing import Any

from diffedit_batch.errors import ClusterError, RowError
from diffedit_batch.runtime.backlog import Backlog, Bundle
from diffedit_batch.runtime.pool import Done, WorkerPool

MAX_DEATHS_ALONE = 3
"""A request that takes this many workers with it, alone, is failed."""

MAX_LOST_NODES = 3
"""The loss of a node is not charged to the rows it held, unless it happens to them more often: a
row that takes nodes down must not do so for ever.
"""

_DEATHS_WITHOUT_A_RESULT = 8
"""And two for each worker: so many deaths in a row are no fault of the rows, unless other rows show
that the workers are well. Where workers hang, each death takes them `cluster.hang_timeout_s`.
"""


def fan_out(
    backlog: Backlog,
    pool: WorkerPool,
    stop: threading.Event,
    *,
    take: Callable[[Done], None],
    give_up: Callable[[Any, RowError, tuple[str, ...]], None],
    on_wait: Callable[[], None],
) -> None:
    """Hand out bundles and take results until there is no more, or `stop` is set and all that was
    handed out is back.

    Args:
        backlog: what is to be done.
        pool: who does it.
        stop: asks for an early end.
        take: is given every bundle that comes back.
        give_up: is given a request that killed too many workers, the error it fails with, and why
            each of its workers was lost.
        on_wait: called whenever something came back, and about once a second.

    Raises:
        DiffEditError: a worker reported an error that concerns the whole job.
        ClusterError: workers cannot be had or kept.
    """
    num_deaths, has_result = 0, False
    while True:
        backlog.num_workers = pool.num_workers
        while not stop.is_set():
            bundle = backlog.peek()
            if bundle is None or not pool.has_room(bundle):
                break
            pool.submit(backlog.pop())
        num_waiting = 0 if stop.is_set() else backlog.num_bundles
        pool.num_bundles_left = num_waiting + pool.num_in_flight
        if pool.num_in_flight == 0 and (stop.is_set() or backlog.peek() is None):
            return
        for event in pool.wait(timeout_s=1.0):
            if isinstance(event, Done):
                take(event)
                num_deaths, has_result = 0, True
                continue
            bundle = event.bundle
            if event.is_node_lost and bundle.num_lost_nodes < MAX_LOST_NODES:
                backlog.put_back(bundle, event.cause, is_charged=False)
            elif _is_to_blame(bundle):
                [[request]] = bundle.groups
                reason = f"{MAX_DEATHS_ALONE} workers died of this row alone: {event.cause}"
                give_up(
                    request,
                    RowError("worker", "WorkerDied", reason),
                    (*bundle.causes, event.cause),
                )
                num_deaths = 0
            else:
                backlog.put_back(bundle, event.cause)
                num_deaths += 1
            # When nothing but suspects is left, deaths in a row are what is to be expected.
            has_witness = has_result and not backlog.has_new
            if num_deaths > _DEATHS_WITHOUT_A_RESULT + 2 * pool.num_workers and not has_witness:
                raise ClusterError(
                    f"{num_deaths} times in a row a worker died before any row came back, so no"
                    " row is blamed; see the warnings above for why"
                )
        on_wait()


def _is_to_blame(bundle: Bundle) -> bool:
    return bundle.is_one_row_alone and bundle.num_deaths_alone + 1 >= MAX_DEATHS_ALONE
