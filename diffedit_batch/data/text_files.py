"""The files of texts that a model wrote, which people read and correct.

`prompts.parquet` has one row per concept, `captions.parquet` one per image. A row says which
generator wrote its text, and has a digest of the text as it was written: where the two no longer
agree, or there is no digest, a person has corrected or added it.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import fingerprint
from diffedit_batch.data.parquet import open_parquet
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ManifestError

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


def read_texts(storage: Storage, path: str, kind: Kind) -> Iterator[Text]:
    """The texts of a file, which people may have written; none where there is no file.

    Raises:
        ManifestError: it cannot be read, or some of its rows cannot be used.
        StorageError: what holds it cannot be read.
    """
    if not storage.exists(path):
        return
    full = storage.full(path)
    needed = {*kind.keys, kind.column}
    try:
        with open_parquet(io.BytesIO(storage.read(path))) as parquet:
            columns = set(kind.schema.names).intersection(parquet.schema.names)
            table = parquet.read(sorted(columns))
    except ManifestError as error:
        raise ManifestError(full, error.problems) from None
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(full, [f"is broken: {error}"]) from None
    if missing := needed - columns:
        raise ManifestError(full, [f"column {name!r} is missing" for name in sorted(missing)])
    problems = []
    for number, row in enumerate(table.to_pylist()):
        key = tuple(row[name] for name in kind.keys)
        cell = row[kind.column]
        texts = tuple(cell) if isinstance(cell, list) else (cell,)
        if not all(isinstance(value, str) for value in key):
            problems.append(f"row {number}: {' and '.join(kind.keys)} must be text")
        elif not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            problems.append(
                f"row {number} ({key[0]!r}): {kind.column} must not be empty; write a text"
                " or remove the row, to have it generated again"
            )
        else:
            yield Text(key, texts, *_optional(row))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ManifestError(full, problems[:_SHOWN] + more)


def encode_texts(texts: Iterable[Text], kind: Kind) -> bytes:
    """The content of a file of texts."""
    rows = [
        {
            **dict(zip(kind.keys, text.key, strict=True)),
            kind.column: text.texts if kind is PROMPTS else text.texts[0],
            "content_key": text.content_key,
            "generator": text.generator,
            "digest": text.digest,
        }
        for text in texts
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=kind.schema), buffer)
    return buffer.getvalue()


def _optional(row: dict[str, Any]) -> tuple[str, str, str]:
    """Content key, generator and digest of a row; empty where a person left them out."""
    content_key, generator, digest = (
        str(row.get(name) or "") for name in ("content_key", "generator", "digest")
    )
    return content_key, generator, digest
