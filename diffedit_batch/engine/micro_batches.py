"""Pictures and latents gathered for the VAE, which takes them in batches of its own size."""

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class MicroBatches(Generic[T]):
    """Things that wait until there are enough of one shape.

    Args:
        size: of a full batch.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[Hashable, list[T]] = {}

    def add(self, shape: Hashable, item: T) -> None:
        """Let an item wait for others of its shape."""
        self._waiting.setdefault(shape, []).append(item)

    def pop(self, *, is_hurried: bool) -> list[T]:
        """A full batch of one shape; with `is_hurried` also a smaller one. Empty without any."""
        for shape, items in self._waiting.items():
            if is_hurried or len(items) >= self._size:
                batch, rest = items[: self._size], items[self._size :]
                del self._waiting[shape]
                if rest:
                    self._waiting[shape] = rest
                return batch
        return []

    def shrink(self, shape: Hashable, batch: list[T]) -> None:
        """Take back a batch that did not fit the device, and make the next ones half as large."""
        self._size = len(batch) // 2
        self._waiting[shape] = batch + self._waiting.get(shape, [])
