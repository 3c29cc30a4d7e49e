"""Looking up the image files of many rows, with one call to the filesystem for each at most."""

import functools
import os
import posixpath
import stat

from diffedit_batch.config import InputConfig
from diffedit_batch.data import web
from diffedit_batch.data.listing import FolderListings
from diffedit_batch.data.locate import look_up, resolve


class ImageFiles:
    """What `locate.look_up` says of image paths, with fewer questions to the filesystem.

    On a local disk folders are resolved once; a plain file below one is then asked for its status
    alone. Whatever is not plain (links, what is missing or outside the root) goes to `look_up`,
    which also says what is wrong with it. On an object store folders of which many files are named
    are listed. What was found lately is remembered, for rows of one image often follow each other.
    Use one for one pass over the rows.

    Args:
        root: the folder all images must be under, as `locate.image_root` gives it.
        config: what is allowed, and what keys are made of.
    """

    def __init__(self, root: str, config: InputConfig) -> None:
        self._root = root
        self._config = config
        self._is_plain = "://" not in root and config.image_key == "stat"
        self._listings = FolderListings()
        self._look_up = functools.lru_cache(maxsize=4096)(self._look_up_any)
        self._resolve = functools.lru_cache(maxsize=4096)(self._resolve_folder)

    def look_up(self, path: str) -> tuple[str, str]:
        """The full path or URI of an image, and a key of its content.

        Raises:
            RowError: as of `locate.look_up`.
        """
        if self._is_plain and "://" not in path:
            folder, name = posixpath.split(path)
            resolved = self._resolve(folder)
            if resolved is not None and name not in ("", ".", ".."):
                file = f"{resolved}/{name}"
                try:
                    status = os.lstat(file)
                except (OSError, ValueError):
                    pass
                else:
                    if stat.S_ISREG(status.st_mode):
                        return file, f"{status.st_size}:{status.st_mtime_ns}"
        return self._look_up(path)

    def _look_up_any(self, path: str) -> tuple[str, str]:
        is_remote = "://" in path or "://" in self._root
        if is_remote and self._config.image_key == "stat":
            uri = resolve(path, self._root, self._config.allowed_schemes)
            key = None if uri.partition("://")[0] in web.SCHEMES else self._listings.key(uri)
            if key is not None:
                return uri, key
        return look_up(path, self._root, self._config)

    def _resolve_folder(self, folder: str) -> str | None:
        """The folder without links, or None where it is not under the root."""
        try:
            resolved = os.path.realpath(posixpath.join(self._root, folder))
        except (OSError, ValueError):
            return None
        is_inside = resolved == self._root or resolved.startswith(self._root.rstrip("/") + "/")
        return resolved.rstrip("/") if is_inside else None
