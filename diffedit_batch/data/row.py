"""One row of a manifest: its id, its fingerprint, and the request it becomes.

A rerun looks at every row of a manifest and needs of most no more than id and fingerprint; what
else there is to say of a row is worked out when it is first asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from diffedit_batch.config import EditConfig
from diffedit_batch.data.columns import CONCEPT_COLUMNS
from diffedit_batch.data.generated import TextTable
from diffedit_batch.data.text_files import Key
from diffedit_batch.errors import RowError
from diffedit_batch.redact import redact
from diffedit_batch.schema import EditRequest, ImageRef


class FoundImage(NamedTuple):
    """Where an image (or mask) is, and what stands for its content.

    Attributes:
        ref: None where there is none, or `error` says why not.
        key: of its content.
        path: path or URI as written, empty for unnamed bytes.
        group: equal for rows of one image.
        error: why it cannot be had.
    """

    ref: ImageRef | None
    key: str
    path: str
    group: str
    error: RowError | None = None

    @property
    def name(self) -> str:
        """The path for people to see: of a URI, without what may be secret."""
        return redact(self.path) if "://" in self.path else self.path


class Texts(NamedTuple):
    """The texts of a row, checked; the fields of its request."""

    source_prompt: tuple[str, ...]
    source_concept: str | None
    target_prompt: tuple[str, ...]
    target_concept: str | None
    caption: tuple[str, ...] | None
    negative_prompt: tuple[str, ...] | None
    source_negative_prompt: tuple[str, ...] | None


class Reading(NamedTuple):
    """What the cells of a row say.

    Attributes:
        image: the image.
        mask: its own mask.
        said: texts and concepts as they are written.
        texts: the same, checked; None where `error` says why not.
        seed: its own or the job's; None where it cannot be used.
        edit: its effective parameters, None where they cannot be used.
        needed: the generated texts it needs, by the field of its request they belong in.
        error: why it cannot be edited.
    """

    image: FoundImage
    mask: FoundImage
    said: Mapping[str, Any]
    texts: Texts | None
    seed: int | None
    edit: EditConfig | None
    needed: Mapping[str, tuple[TextTable, Key]]
    error: RowError | None


class _Outcome(NamedTuple):
    request: EditRequest | None
    error: RowError | None
    asked: dict[str, Any]
    missing: tuple[tuple[str, Key], ...]


class ManifestRow:
    """One row of the manifest, ready to be edited or refused.

    Attributes:
        id: unique in the manifest.
        fingerprint: changes when anything the result depends on does.
    """

    def __init__(
        self,
        row_id: str,
        fingerprint: str,
        reading: Reading,
        carried: Callable[[], pa.RecordBatch],
    ) -> None:
        self.id = row_id
        self.fingerprint = fingerprint
        self._reading = reading
        self._carried = carried

    @property
    def image(self) -> str:
        """The image as people know it: path or URI as written, empty for unnamed bytes."""
        return self._reading.image.name

    @property
    def group(self) -> str:
        """Equal for rows of one image."""
        return self._reading.image.group

    @property
    def image_key(self) -> str:
        """What stands for the content of the image, as `input.image_key` says."""
        return self._reading.image.key

    @property
    def request(self) -> EditRequest | None:
        """What to do, or None where `error` says why not."""
        return self._outcome.request

    @property
    def error(self) -> RowError | None:
        """Why the row cannot be edited."""
        return self._outcome.error

    @property
    def asked(self) -> dict[str, Any]:
        """Result columns that say what was asked, as far as it could be read."""
        return self._outcome.asked

    @property
    def missing(self) -> tuple[tuple[str, Key], ...]:
        """Texts that must be generated before the request can be carried out, each by the name of
        its table and its key there.
        """
        return self._outcome.missing

    @property
    def carried(self) -> pa.RecordBatch:
        """The manifest's other columns, one row."""
        return self._carried()

    @cached_property
    def _outcome(self) -> _Outcome:
        reading = self._reading
        if reading.error is not None:
            return _Outcome(None, reading.error, _asked(reading), ())
        assert reading.texts is not None
        assert reading.edit is not None
        assert reading.seed is not None
        request = EditRequest(
            id=self.id,
            edit=reading.edit,
            seed=reading.seed,
            image=reading.image.ref,
            mask=reading.mask.ref,
            fingerprint=self.fingerprint,
            **reading.texts._asdict(),
        )
        request, missing, error = _fill_in(request, reading.needed)
        return _Outcome(None if error else request, error, request.columns(), missing)


def _asked(reading: Reading) -> dict[str, Any]:
    """What a row that cannot be edited asked for."""
    asked = {
        name: said if name in CONCEPT_COLUMNS or isinstance(said, list) else [said]
        for name, said in reading.said.items()
        if said is not None
    }
    if reading.seed is not None:
        asked["seed"] = reading.seed
        asked |= reading.edit.model_dump() if reading.edit else {}
    return asked


def _fill_in(
    request: EditRequest, needed: Mapping[str, tuple[TextTable, Key]]
) -> tuple[EditRequest, tuple[tuple[str, Key], ...], RowError | None]:
    """The request with the generated texts there are, those still missing, and why one never will
    be there.
    """
    found: dict[str, Any] = {}
    missing = []
    error = None
    for field, (table, key) in needed.items():
        try:
            texts = table.find(key)
        except RowError as failed:
            error = failed
            continue
        if texts is None:
            missing.append((table.kind.name, key))
        else:
            found[field] = texts
    return replace(request, **found), () if error else tuple(missing), error
