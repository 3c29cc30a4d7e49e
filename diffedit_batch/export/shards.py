"""Files of many samples each, of a size that fits in memory and that others like to load."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from diffedit_batch.export.samples import Sample

Files = dict[str, bytes]
"""Contents of files by their paths, which belong to one folder and may be written in any order."""

SHARD_BYTES = 256 << 20
"""A shard ends with the sample that makes it larger."""


class Shard(Protocol):
    """A file that grows."""

    def add(self, sample: Sample) -> None:
        """Add a sample, now or with the next ones."""

    def close(self) -> None:
        """Write what waits, and the end of the file."""


def sharded(
    samples: Iterable[Sample], suffix: str, start: Callable[[io.BytesIO], Shard]
) -> Iterator[Files]:
    """The samples in files `data/train-00000<suffix>`, ..., one at a time."""
    number = 0
    shard, buffer = None, io.BytesIO()
    for sample in samples:
        if shard is None:
            buffer = io.BytesIO()
            shard = start(buffer)
        shard.add(sample)
        if buffer.tell() >= SHARD_BYTES:
            shard.close()
            yield {f"data/train-{number:05}{suffix}": buffer.getvalue()}
            shard = None
            number += 1
    if shard is not None:
        shard.close()
        yield {f"data/train-{number:05}{suffix}": buffer.getvalue()}
