"""Work that waits: requests, grouped by image within a window, cut into bundles."""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        num_deaths: workers that died while holding its rows; once it is above 0 it is run with
            nothing beside it, so that the next death says for certain who is to blame.
        num_deaths_alone: how many of them held one row and nothing else.
    """

    groups: Sequence[tuple[Any, ...]]
    num_deaths: int = 0
    num_deaths_alone: int = 0

    @property
    def num_rows(self) -> int:
        """Rows in all groups."""
        return sum(len(group) for group in self.groups)

    @property
    def is_one_row_alone(self) -> bool:
        """Whether it is a single row that runs with nothing beside it."""
        return self.num_rows == 1 and self.num_deaths > 0


class Backlog:
    """Bundles to be handed out.

    Args:
        requests: each with the name of the group it belongs to.
        bundle_rows: rows in a bundle.
        num_workers: among whom the rest is shared when it runs low.
    """

    def __init__(
        self, requests: Iterator[tuple[str, Any]], bundle_rows: int, num_workers: int
    ) -> None:
        self._requests = requests
        self._bundle_rows = bundle_rows
        self._num_workers = num_workers
        self._groups: OrderedDict[str, list[Any]] = OrderedDict()
        self._num_waiting = 0
        self._is_exhausted = False
        self._returned: deque[Bundle] = deque()

    def put_back(self, bundle: Bundle) -> None:
        """Return a bundle whose worker died; it goes out again first, in halves if it can be."""
        requests = [(n, request) for n, group in enumerate(bundle.groups) for request in group]
        middle = math.ceil(len(requests) / 2)
        for half in (requests[:middle], requests[middle:]):
            if half:
                self._returned.append(
                    Bundle(
                        _regroup(half),
                        num_deaths=bundle.num_deaths + 1,
                        num_deaths_alone=bundle.num_deaths_alone + bundle.is_one_row_alone,
                    )
                )

    def peek(self) -> Bundle | None:
        """The bundle to hand out next, or None when there is no more."""
        if not self._returned:
            bundle = self._next()
            if bundle is None:
                return None
            self._returned.append(bundle)
        return self._returned[0]

    def pop(self) -> Bundle:
        """Take the bundle that `peek` showed."""
        return self._returned.popleft()

    def _next(self) -> Bundle | None:
        self._fill()
        size = self._bundle_rows
        if self._is_exhausted and self._num_workers > 1:
            # Near the end smaller bundles let all workers finish together.
            size = min(size, math.ceil(self._num_waiting / (2 * self._num_workers)))
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
