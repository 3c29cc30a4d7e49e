"""The pictures of a gallery, in two sizes, made once and named by their content.

Photographs and soft maps are JPEG, which takes a tenth of the time of WebP; masks are PNG that can
be laid over a photograph of the same shape.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter

from diffedit_batch.config import fingerprint

SMALL, LARGE = 320, 768
"""Longest sides in pixels, on a card and in the detail view; nothing is enlarged."""

_OVERLAY = (255, 0, 170)
_INSIDE, _OUTLINE = 6, 15
"""Opacity of the overlay, of 15."""


class Pictures:
    """A folder of pictures; may be used by several threads.

    Attributes:
        num_made, num_reused: pictures, each of two files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._used: dict[str, Future[None]] = {}
        self._there = {name for name in folder.glob("*/*") if name.is_file()}
        self.num_made = self.num_reused = 0

    def add(self, kind: str, content: str, read: Callable[[], Image.Image]) -> str:
        """Have a picture in the folder; returns what JavaScript knows it by.

        Args:
            kind: `photo`, `mask` or `map`.
            content: what stands for its content.
            read: the whole picture, RGB, or grey if no photo; called if there are no files yet.

        Raises:
            Exception: what `read` raises.
        """
        key = fingerprint([kind, content, SMALL, LARGE])[:20]
        with self._lock:
            done = self._used.get(key)
            if is_first := done is None:
                done = self._used[key] = Future()
        if not is_first:
            done.result()  # another thread makes it, or could not
            return key
        try:
            self._make(key, "png" if kind == "mask" else "jpg", read)
        except BaseException as error:
            done.set_exception(error)
            raise
        done.set_result(None)
        return key

    def remove_unused(self) -> None:
        """Remove pictures of rows that are no longer shown."""
        for path in self._there:
            key = path.stem.removesuffix("-small")
            if key not in self._used or path.suffix == ".part":
                path.unlink(missing_ok=True)

    def _make(self, key: str, suffix: str, read: Callable[[], Image.Image]) -> None:
        folder = self._folder / key[:2]
        files = (folder / f"{key}.{suffix}", folder / f"{key}-small.{suffix}")
        is_there = self._there.issuperset(files)
        with self._lock:
            self.num_reused += is_there
            self.num_made += not is_there
        if is_there:
            return
        picture = read()
        folder.mkdir(parents=True, exist_ok=True)
        for path, side in zip(files, (LARGE, SMALL), strict=True):
            picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            # A report that is killed must not leave half a picture for the next one to reuse.
            unfinished = path.with_suffix(".part")
            if suffix == "png":
                _overlay(picture).save(unfinished, "PNG", transparency=_OPACITIES)
            else:
                # Small ones are looked at enlarged, and cost little.
                fine = {"quality": 92, "subsampling": 0} if max(picture.size) <= SMALL else {}
                picture.save(unfinished, "JPEG", **{"quality": 85, **fine})
            unfinished.replace(path)


_OPACITIES = bytes(17 * level for level in range(16))


def _overlay(mask: Image.Image) -> Image.Image:
    """The mask as one colour in 16 opacities, with a firm outline; without its transparency."""
    width = 3 if max(mask.size) <= SMALL else 5
    outline = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(width)))
    inside = mask.point([value * _INSIDE // 255 for value in range(256)])
    edge = outline.point([value * _OUTLINE // 255 for value in range(256)])
    overlay = ImageChops.lighter(inside, edge)
    overlay.putpalette(_OVERLAY * 16)
    return overlay
