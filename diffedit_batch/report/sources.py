"""Where the source pictures of results are: what the records of runs say of their manifests."""

import threading
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import ValidationError

from diffedit_batch.config import JobConfig
from diffedit_batch.data.generated import Generated, TextTable
from diffedit_batch.data.ledger import read_json
from diffedit_batch.data.locate import find_manifest, image_root
from diffedit_batch.data.lookup import ImageFiles
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.parquet import open_parquet
from diffedit_batch.data.parquet_checks import is_string
from diffedit_batch.data.storage import Storage
from diffedit_batch.data.text_files import CAPTIONS, PROMPTS
from diffedit_batch.errors import DiffEditError, RowError
from diffedit_batch.schema import ImageRef


class Source(NamedTuple):
    """A source picture: where it is, what stands for its content, and how large it may be."""

    ref: ImageRef
    key: str
    max_bytes: int
    max_pixels: int


def read_records(storage: Storage) -> list[dict[str, Any]]:
    """The records of the runs that ended, oldest first."""
    names = storage.names("runs", ".json")
    return [record for name in names if (record := read_json(storage, f"runs/{name}"))]


class Sources:
    """The source pictures of an output; may be asked by several threads.

    Args:
        storage: the output.
        records: of its runs, oldest first.
        root: where image files are, if not where the runs found them.
    """

    def __init__(
        self, storage: Storage, records: list[dict[str, Any]], root: str | None = None
    ) -> None:
        self._jobs: dict[str, _Job] = {}
        self._newest: _Job | None = None
        for record in records:
            try:
                config = JobConfig.model_validate(record["config"])
            except (ValidationError, KeyError):
                continue  # of another version
            if root is not None:
                places = config.input.model_copy(update={"image_root": root})
                config = config.model_copy(update={"input": places})
            self._jobs[record["run_id"]] = self._newest = _Job(storage, config)
        if not self._jobs and root is not None:
            self._newest = _Job(storage, _unrecorded(root))

    def find(self, row_id: str, image: str, run_id: str) -> Source:
        """The source picture of a row.

        Args:
            row_id: its id.
            image: its path or URI as the manifest had it; empty for unnamed bytes.
            run_id: the run that made its result. A run that was killed left no record: then the
                newest one tells.

        Raises:
            RowError: it cannot be had; says why.
        """
        job = self._jobs.get(run_id) or self._newest
        if job is None:
            raise _missing(
                "no run has ended yet, so nothing says where the images are; name their folder with"
                " --image-root"
            )
        return job.find(row_id, image)


class _Job:
    """The images of one job's manifest."""

    def __init__(self, storage: Storage, config: JobConfig) -> None:
        self._storage, self._config = storage, config
        self._lock = threading.Lock()

    def find(self, row_id: str, image: str) -> Source:
        limits = (self._config.input.max_bytes, self._config.input.max_pixels)
        manifest = self._config.input.manifest
        error = _missing(f"it was bytes in {manifest}, which is gone or another one by now")
        if image:
            try:
                if isinstance(self._files, RowError):
                    raise self._files
                uri, key = self._files.look_up(image)
                return Source(ImageRef(uri), f"{uri} {key}", *limits)
            except RowError as not_found:
                error = not_found
        with self._lock:  # one thread reads the manifest, the others wait for it
            cell = self._cells.get(row_id)
        if cell is None:
            raise error
        return Source(*cell, *limits)

    @cached_property
    def _files(self) -> ImageFiles | RowError:
        """The image files, or why nothing says where they are."""
        place = self._config.input.image_root
        try:
            root = image_root(place or find_manifest(self._config.input.manifest)[1])
        except DiffEditError as error:
            reason = " ".join(str(error).split())
            return _missing(f"{reason}; name the folder of the images with --image-root")
        return ImageFiles(root, self._config.input)

    @cached_property
    def _cells(self) -> dict[str, tuple[ImageRef, str]]:
        """Images that are bytes in the manifest, with what stands for their content, by row id."""
        try:
            files, _ = find_manifest(self._config.input.manifest)
            with open_parquet(files[0]) as table:
                column = self._config.input.columns.get("image", "image")
                if is_string(table.schema.field(column).type):
                    return {}
            texts = [TextTable(self._storage, kind, lambda: "") for kind in (PROMPTS, CAPTIONS)]
            return {
                row.id: (row.request.image, row.group)
                for row in Manifest(self._config, "", Generated(*texts)).rows()
                if row.request and row.request.image and row.request.image.file
            }
        except (DiffEditError, OSError, KeyError):
            return {}  # gone, or another one by now; what the look-up found wrong is said then


def _missing(why: str) -> RowError:
    return RowError("load", "ImageNotFound", why)


def _unrecorded(root: str) -> JobConfig:
    """Of a job that left no record, all that matters here."""
    return JobConfig.model_validate(
        {
            "model": {"id": "unknown"},
            "input": {"manifest": f"{root}/manifest.parquet", "image_root": root},
            "output": {"uri": "unknown"},
        }
    )
