"""Tar files for streaming, in the convention of WebDataset: the files of a row follow each other,
`KEY.json`, `KEY.source_image.jpg`, `KEY.edited_image.png` and so on.
"""

import base64
import io
import json
import math
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from typing import Any

from diffedit_batch.export.samples import Sample
from diffedit_batch.export.shards import Files, sharded


def write_webdataset(samples: Iterable[Sample]) -> Iterator[Files]:
    """The files of samples."""
    return sharded(samples, ".tar", _Shard)


class _Shard:
    def __init__(self, buffer: io.BytesIO) -> None:
        # Tar of 1988: whoever reads tar reads it, and our names are short and plain.
        self._tar = tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, sample: Sample) -> None:
        [row] = sample.row.to_pylist()
        text = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
        self._write(f"{sample.key}.json", text.encode("utf-8", "replace"))
        for name, picture in sample.pictures.items():
            if picture is not None:
                suffix = posixpath.splitext(picture.name)[1]
                self._write(f"{sample.key}.{name}{suffix}", picture.data)

    def close(self) -> None:
        self._tar.close()

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # of nobody, from 1970
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def _plain(value: Any) -> Any:
    """A cell as JSON can say it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
