"""Images by their headers: how large they are, and which cannot be read, before a run pays for
them.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from diffedit_batch.config import InputConfig
from diffedit_batch.data.images import read_size
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.errors import RowError
from diffedit_batch.schema import ImageRef

_NUM_THREADS = 16


@dataclass
class _Image:
    ref: ImageRef
    row_id: str
    num_rows: int = 0


@dataclass(frozen=True)
class ImageCheck:
    """What the headers of some images said.

    Attributes:
        num_images: that were looked at.
        sizes: rows by (width, height) of their image.
        num_unreadable: images that cannot be read.
        unreadable: their rows, by `stage/type`.
        examples: one message of each kind.
    """

    num_images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    num_unreadable: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


class ImageDraw:
    """Distinct images of rows, and some of them drawn evenly and always the same: those with the
    smallest hashes.

    Args:
        most: how many are drawn; None: all of them.
        is_by_content: whether the keys of images are those of their content.

    Attributes:
        num_images: distinct images.
    """

    def __init__(self, most: int | None, *, is_by_content: bool) -> None:
        self._most = most
        self._is_by_content = is_by_content
        self._seen: set[int] = set()
        self._contents: set[int] = set()
        self._drawn: dict[int, _Image] = {}
        self._largest: list[int] = []  # a heap of negated hashes of what is drawn

    @property
    def num_images(self) -> int:
        """Distinct images."""
        return len(self._seen)

    @property
    def num_repeated(self) -> int | None:
        """Images with the content of another one; None where their content is not known."""
        return self.num_images - len(self._contents) if self._is_by_content else None

    def add(self, row: ManifestRow, ref: ImageRef) -> None:
        """Count a row and its image."""
        number = _hash(row.group)
        if number in self._seen:
            if number in self._drawn:
                self._drawn[number].num_rows += 1
            return
        self._seen.add(number)
        if self._is_by_content:
            self._contents.add(_hash(row.image_key))
        if self._most is not None and len(self._drawn) >= self._most:
            if number > -self._largest[0]:
                return
            del self._drawn[-heapq.heappop(self._largest)]
        heapq.heappush(self._largest, -number)
        self._drawn[number] = _Image(ref, row.id, 1)

    def check(self, limits: InputConfig) -> ImageCheck:
        """What the headers of those drawn say."""
        drawn = list(self._drawn.values())
        sizes: Counter[tuple[int, int]] = Counter()
        unreadable: Counter[str] = Counter()
        examples: dict[str, str] = {}
        num_unreadable = 0
        for image, size in zip(drawn, read_sizes([d.ref for d in drawn], limits), strict=True):
            if isinstance(size, RowError):
                kind = f"{size.stage}/{size.kind}"
                num_unreadable += 1
                unreadable[kind] += image.num_rows
                examples.setdefault(kind, f"row {image.row_id!r}: {size}")
            else:
                sizes[size] += image.num_rows
        return ImageCheck(len(drawn), sizes, num_unreadable, unreadable, examples)


def read_sizes(refs: Sequence[ImageRef], limits: InputConfig) -> list[tuple[int, int] | RowError]:
    """(width, height) of images, or why they cannot be read; files by several threads."""

    def read(ref: ImageRef) -> tuple[int, int] | RowError:
        try:
            return read_size(ref, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        except RowError as error:
            return error

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = {ref: pool.submit(read, ref) for ref in set(refs) if ref.uri}
        # Cells row group by row group, each of which is read once.
        cells = sorted({r for r in refs if not r.uri}, key=lambda r: (r.file, r.row_group, r.row))
        sizes = {ref: read(ref) for ref in cells}
        sizes |= {ref: future.result() for ref, future in found.items()}
    return [sizes[ref] for ref in refs]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
