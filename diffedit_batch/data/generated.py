"""Texts that a model wrote, kept beside the results for people to read and correct.

`prompts.parquet` has one row per concept, `captions.parquet` one per image. A row says which
generator wrote its text, and has a digest of the text as it was written: where the two no longer
agree, or there is no digest, a person has corrected or added it, and what the person wrote holds
whatever the generator. New texts are parts under `_diffedit/` until a pass ends, so that a killed
one continues.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import fingerprint
from diffedit_batch.data.parquet import open_parquet
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ManifestError, RowError

Key = tuple[str, ...]
"""What a text is about: `(concept,)`, or `(image, image_key)` as the manifest knows them."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Text:
    """One text, or several whose embeddings are averaged.

    Attributes:
        key: what it is about.
        texts: what was written.
        content_key: of the pixels it describes; empty for prompts.
        generator: what wrote it, empty where a person did.
        digest: of the texts as they were generated, empty where a person wrote them.
    """

    key: Key
    texts: tuple[str, ...]
    content_key: str = ""
    generator: str = ""
    digest: str = ""

    @property
    def is_corrected(self) -> bool:
        """Whether a person wrote it."""
        return self.digest != fingerprint(self.texts)


@dataclass(frozen=True)
class Kind:
    """Which texts a table holds.

    Attributes:
        name: of its file, and of the stage at which it fails.
        keys: columns that say what a text is about.
        column: the column of the text.
        schema: of the file.
    """

    name: str
    keys: tuple[str, ...]
    column: str
    schema: pa.Schema


PROMPTS = Kind(
    "prompts",
    ("concept",),
    "prompts",
    pa.schema(
        [
            ("concept", pa.string()),
            ("prompts", pa.list_(pa.string())),
            ("generator", pa.string()),
            ("digest", pa.string()),
        ]
    ),
)
CAPTIONS = Kind(
    "captions",
    ("image", "image_key"),
    "caption",
    pa.schema(
        [
            ("image", pa.string()),
            ("image_key", pa.string()),
            ("caption", pa.string()),
            ("content_key", pa.string()),
            ("generator", pa.string()),
            ("digest", pa.string()),
        ]
    ),
)


class TextTable:
    """The texts of one kind under an output folder, read when first asked for.

    Args:
        storage: the output folder.
        kind: which texts.
        find_generator: names what would write missing texts (model, parameters, seed); called
            once, when first needed, because it fails where the model is missing.
        run_id: names the parts this run writes.
        check_lease: called before anything is written; raises where this run must not any more.
    """

    def __init__(
        self,
        storage: Storage,
        kind: Kind,
        find_generator: Callable[[], str],
        run_id: str = "",
        check_lease: Callable[[], object] = lambda: None,
    ) -> None:
        self.kind = kind
        self.file = f"{kind.name}.parquet"
        self._storage = storage
        self._find_generator = find_generator
        self._run_id = run_id
        self._check_lease = check_lease
        self._folder = f"_diffedit/{kind.name}"
        self._num_parts = 0
        self._pending: list[Text] = []
        self._failures: dict[Key, RowError] = {}

    @cached_property
    def generator(self) -> str:
        """What would write missing texts. Raises ModelError."""
        return self._find_generator()

    def find(self, key: Key) -> tuple[str, ...] | None:
        """The texts to use, or None where they are still to be generated.

        Raises:
            RowError: they could not be generated.
        """
        if key in self._failures:
            raise self._failures[key]
        text = self._texts.get(key)
        if text is not None and (text.is_corrected or text.generator == self.generator):
            return text.texts
        return None

    def stamp(self, key: Key) -> list[object]:
        """What stands for the texts in fingerprints: known before they are generated, and the same
        when they are lost and generated again.
        """
        text = self._texts.get(key)
        if text is not None and text.is_corrected:
            return ["corrected", text.texts]
        return ["generated", self.generator]

    def add(self, texts: Iterable[Text]) -> None:
        """Keep texts as the generator wrote them; `flush` makes them last."""
        for text in texts:
            known = self._corrections.get(text.content_key)
            if known is not None:  # the image was copied or touched since a person corrected it
                text = replace(known, key=text.key)
            else:
                digest = fingerprint(text.texts)
                text = replace(text, generator=self.generator, digest=digest)
            self._texts[text.key] = text
            self._pending.append(text)

    def fail(self, key: Key, error: RowError) -> None:
        """Remember, for this run, that a text could not be generated."""
        self._failures[key] = error

    @property
    def failures(self) -> list[RowError]:
        """Why texts could not be generated in this run."""
        return list(self._failures.values())

    @property
    def num_pending(self) -> int:
        """Texts that a kill would lose."""
        return len(self._pending)

    def flush(self) -> None:
        """Write the texts added since the last flush as one part."""
        if self._pending:
            self._num_parts += 1
            name = f"{self._run_id}-{self._num_parts:06d}.parquet"
            self._write(f"{self._folder}/{name}", self._pending)
            self._pending = []

    def merge(self) -> None:
        """Write the file people read, with what parts hold, and remove the parts."""
        self.flush()
        parts = self._storage.names(self._folder, ".parquet")
        if parts:
            # Of an image that was touched, only the newest key is of use.
            newest = {(t.key[0], t.content_key): t for t in self._texts.values()}
            self._write(self.file, sorted(newest.values(), key=lambda text: text.key))
            self._storage.remove(f"{self._folder}/{part}" for part in parts)

    @cached_property
    def _texts(self) -> dict[Key, Text]:
        texts: dict[Key, Text] = {}
        parts = self._storage.names(self._folder, ".parquet")
        for path in (self.file, *(f"{self._folder}/{part}" for part in parts)):
            for text in self._read(path):
                known = texts.get(text.key)
                if known is None or not known.is_corrected or text.is_corrected:
                    texts[text.key] = text
        return texts

    @cached_property
    def _corrections(self) -> dict[str, Text]:
        """Corrected captions by the pixels they describe."""
        return {t.content_key: t for t in self._texts.values() if t.content_key and t.is_corrected}

    def _write(self, path: str, texts: Iterable[Text]) -> None:
        rows = [
            {
                **dict(zip(self.kind.keys, text.key, strict=True)),
                self.kind.column: text.texts if self.kind is PROMPTS else text.texts[0],
                "content_key": text.content_key,
                "generator": text.generator,
                "digest": text.digest,
            }
            for text in texts
        ]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=self.kind.schema), buffer)
        self._check_lease()
        self._storage.write(path, buffer.getvalue())

    def _read(self, path: str) -> Iterator[Text]:
        """The texts of a file, which people may have written. Raises ManifestError."""
        if not self._storage.exists(path):
            return
        full = self._storage.full(path)
        needed = {*self.kind.keys, self.kind.column}
        try:
            with open_parquet(io.BytesIO(self._storage.read(path))) as parquet:
                columns = set(self.kind.schema.names).intersection(parquet.schema.names)
                table = parquet.read(sorted(columns))
        except ManifestError as error:
            raise ManifestError(full, error.problems) from None
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(full, [f"is broken: {error}"]) from None
        if missing := needed - columns:
            raise ManifestError(full, [f"column {name!r} is missing" for name in sorted(missing)])
        problems = []
        for number, row in enumerate(table.to_pylist()):
            key = tuple(row[name] for name in self.kind.keys)
            cell = row[self.kind.column]
            texts = tuple(cell) if isinstance(cell, list) else (cell,)
            if not all(isinstance(value, str) for value in key):
                problems.append(f"row {number}: {' and '.join(self.kind.keys)} must be text")
            elif not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                problems.append(
                    f"row {number} ({key[0]!r}): {self.kind.column} must not be empty; write a text"
                    " or remove the row, to have it generated again"
                )
            else:
                yield Text(key, texts, *_optional(row))
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise ManifestError(full, problems[:_SHOWN] + more)


def _optional(row: dict[str, Any]) -> tuple[str, str, str]:
    """Content key, generator and digest of a row; empty where a person left them out."""
    content_key, generator, digest = (
        str(row.get(name) or "") for name in ("content_key", "generator", "digest")
    )
    return content_key, generator, digest


@dataclass(frozen=True)
class Generated:
    """All texts of a job that are generated."""

    prompts: TextTable
    captions: TextTable

    def merge(self) -> None:
        """Merge the parts of both tables, where there are any."""
        self.prompts.merge()
        self.captions.merge()

    def failures(self) -> Counter[str]:
        """Texts that could not be generated in this run, by `stage/type`."""
        errors = [error for table in (self.prompts, self.captions) for error in table.failures]
        return Counter(f"{error.stage}/{error.kind}" for error in errors)
