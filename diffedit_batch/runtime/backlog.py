"""Work that waits: requests, grouped by image within a window, cut into bundles."""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

WINDOW_ROWS = 2048
"""How far ahead rows of one image find each other."""

MAX_GROUP_ROWS = 32
"""More edits of one image are several groups, each of which inverts it anew."""


@dataclass(eq=False)
class Bundle:
    """Groups handed out together.

    Attributes:
        groups: requests, those of one image together; what a worker's method is given.
        causes: why the workers were lost that held its rows before, in order.
        num_deaths: how many of them are charged to it; once it is above 0 it is run with nothing
            beside it, so that the next death says for certain who is to blame.
        num_deaths_alone: how many of those held one row and nothing else.
    """

    groups: Sequence[tuple[Any, ...]]
    causes: tuple[str, ...] = ()
    num_deaths: int = 0
    num_deaths_alone: int = 0

    @property
    def num_rows(self) -> int:
        """Rows in all groups."""
        return sum(len(group) for group in self.groups)

    @property
    def num_lost_nodes(self) -> int:
        """Workers lost with their nodes, not charged to it."""
        return len(self.causes) - self.num_deaths

    @property
    def is_one_row_alone(self) -> bool:
        """Whether it is a single row that runs with nothing beside it."""
        return self.num_rows == 1 and self.num_deaths > 0


class Backlog:
    """Bundles to be handed out.

    Args:
        requests: each with the name of the group it belongs to.
        bundle_rows: rows in a bundle.
        num_workers: among whom the rest is shared when it runs low; may be changed.
    """

    def __init__(
        self, requests: Iterator[tuple[str, Any]], bundle_rows: int, num_workers: int
    ) -> None:
        self._requests = requests
        self._bundle_rows = bundle_rows
        self.num_workers = num_workers
        self._groups: OrderedDict[str, list[Any]] = OrderedDict()
        self._num_waiting = 0
        self._is_exhausted = False
        self._returned: deque[Bundle] = deque()
        self._is_new_due = False
        self._first: Bundle | None = None

    @property
    def has_new(self) -> bool:
        """Whether there are rows that were never handed out."""
        return bool(self._groups) or not self._is_exhausted

    @property
    def num_bundles(self) -> int:
        """About how many bundles wait, without those of rows beyond the window."""
        num_new = math.ceil(self._num_waiting / self._bundle_rows)
        return num_new + len(self._returned) + (self._first is not None)

    def put_back(self, bundle: Bundle, cause: str, *, is_charged: bool = True) -> None:
        """Return a bundle whose worker was lost; where the death is charged to it, in halves."""
        causes = (*bundle.causes, cause)
        if not is_charged:
            self._returned.append(replace(bundle, causes=causes))
            return
        requests = [(n, request) for n, group in enumerate(bundle.groups) for request in group]
        middle = math.ceil(len(requests) / 2)
        for half in (requests[:middle], requests[middle:]):
            if half:
                self._returned.append(
                    Bundle(
                        _regroup(half),
                        causes,
                        num_deaths=bundle.num_deaths + 1,
                        num_deaths_alone=bundle.num_deaths_alone + bundle.is_one_row_alone,
                    )
                )

    def peek(self) -> Bundle | None:
        """The bundle to hand out next, or None when there is no more."""
        if self._first is None:
            self._first = self._choose()
        return self._first

    def pop(self) -> Bundle:
        """Take the bundle that `peek` showed."""
        bundle, self._first = self._first, None
        assert bundle is not None, "ask peek first"
        return bundle

    def _choose(self) -> Bundle | None:
        """Returned bundles and new ones in turn, as long as there are both.

        What came back may die again and again; new rows that succeed in between are the witnesses
        that the workers themselves are well.
        """
        if self._returned and not self._is_new_due:
            self._is_new_due = True
            return self._returned.popleft()
        self._is_new_due = False
        new = self._next()
        return self._returned.popleft() if new is None and self._returned else new

    def _next(self) -> Bundle | None:
        self._fill()
        size = self._bundle_rows
        if self._is_exhausted and self.num_workers > 1:
            # Near the end smaller bundles let all workers finish together.
            size = min(size, math.ceil(self._num_waiting / (2 * self.num_workers)))
        groups: list[tuple[Any, ...]] = []
        num_rows = 0
        while self._groups and num_rows < size:
            image, requests = self._groups.popitem(last=False)
            groups.append(tuple(requests[:MAX_GROUP_ROWS]))
            num_rows += len(groups[-1])
            if len(requests) > MAX_GROUP_ROWS:
                self._groups[image] = requests[MAX_GROUP_ROWS:]
                self._groups.move_to_end(image, last=False)
        self._num_waiting -= num_rows
        return Bundle(groups) if groups else None

    def _fill(self) -> None:
        while not self._is_exhausted and self._num_waiting < WINDOW_ROWS:
            found = next(self._requests, None)
            if found is None:
                self._is_exhausted = True
                return
            group, request = found
            self._groups.setdefault(group, []).append(request)
            self._num_waiting += 1


def _regroup(requests: list[tuple[int, Any]]) -> list[tuple[Any, ...]]:
    groups: dict[int, list[Any]] = {}
    for number, request in requests:
        groups.setdefault(number, []).append(request)
    return [tuple(group) for group in groups.values()]
