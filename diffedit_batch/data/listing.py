"""Keys of many files on an object store, a folder at a time."""

import posixpath
from collections import Counter

import fsspec

from diffedit_batch.data.files import info_key

MIN_ASKED = 100
"""Files of a folder that are asked for one by one before it is listed. A request lists a thousand
files: a manifest that names a few of a huge folder shall not pay for all the others.
"""
_MAX_NAMES = 2_000_000
"""Kept of all listings, about 200 bytes each; folders beyond them are not listed."""


class FolderListings:
    """What `files.stat_key` says of files on object stores, of which one request lists many.

    A folder is listed once, when many of its files have been asked for; use one for one pass over
    the rows.
    """

    def __init__(self) -> None:
        self._num_asked: Counter[str] = Counter()
        self._num_names = 0
        self._keys: dict[str, dict[str, str]] = {}

    def key(self, uri: str) -> str | None:
        """The key of a file, or None where it has to be asked for by itself."""
        folder, _, name = uri.rpartition("/")
        if folder not in self._keys:
            self._num_asked[folder] += 1
            if self._num_asked[folder] <= MIN_ASKED or self._num_names >= _MAX_NAMES:
                return None
            self._keys[folder] = _list(folder)
            self._num_names += len(self._keys[folder])
        return self._keys[folder].get(name)


def _list(folder: str) -> dict[str, str]:
    """Keys of the files of a folder by name; none where it may not be listed."""
    try:
        # Else the filesystem would keep the listing, and believe it in later passes.
        fs, path = fsspec.core.url_to_fs(folder, use_listings_cache=False)
        found = fs.ls(path, detail=True)
    except (OSError, ImportError, ValueError):
        return {}
    return {posixpath.basename(i["name"]): info_key(i) for i in found if i["type"] == "file"}
