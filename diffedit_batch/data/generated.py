"""Texts that a model wrote, kept beside the results for people to read and correct.

What a person wrote (`text_files` tells it apart) holds whatever the generator. New texts are parts
under `_diffedit/` until a pass ends, so that a killed one continues.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from diffedit_batch.config import fingerprint
from diffedit_batch.data.storage import Storage
from diffedit_batch.data.text_files import Key, Kind, Text, encode_texts, read_texts
from diffedit_batch.errors import RowError


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
            for text in read_texts(self._storage, path, self.kind):
                known = texts.get(text.key)
                if known is None or not known.is_corrected or text.is_corrected:
                    texts[text.key] = text
        return texts

    @cached_property
    def _corrections(self) -> dict[str, Text]:
        """Corrected captions by the pixels they describe."""
        return {t.content_key: t for t in self._texts.values() if t.content_key and t.is_corrected}

    def _write(self, path: str, texts: Iterable[Text]) -> None:
        data = encode_texts(texts, self.kind)
        self._check_lease()
        self._storage.write(path, data)


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
