"""The workers of the passes before editing: one writes prompts, one captions images.

Plain classes, usable without Ray. Two calls may run at once: while one holds the model, the other
reads its pictures.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import read_picture
from diffedit_batch.data.text_files import Key, Text
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import RowError
from diffedit_batch.runtime.device import prepare_device
from diffedit_batch.runtime.messages import WorkerInfo
from diffedit_batch.runtime.wanted import TextRequest

if TYPE_CHECKING:
    # The driver imports this module too and has no use for torch, which takes seconds to import.
    from diffedit_batch.models.captions import Captioner
    from diffedit_batch.models.prompts import PromptWriter

_MAX_REMEMBERED = 100_000


@dataclass(frozen=True)
class TextResult:
    """What became of a bundle: texts, why others could not be generated, and the work it took."""

    texts: list[Text] = field(default_factory=list)
    failures: dict[Key, RowError] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)


class PromptsWorker:
    """Loads the configured prompt writer and writes prompts for concepts.

    Args:
        config: the job.
        num_threads: CPU threads of the model; None leaves torch's choice.
    """

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self._config, self._num_threads = config, num_threads
        self._lock = threading.Lock()
        self._num_written = 0
        self._writer: PromptWriter

    def load(self) -> WorkerInfo:
        """Load the model. Raises ModelError."""
        from diffedit_batch.models.prompts import PromptWriter

        def load() -> None:
            config = self._config
            self._writer = PromptWriter.load(config.prompts, config.device, config.seed)

        return _load(load, self._config, self._num_threads)

    def generate(self, groups: Sequence[tuple[TextRequest, ...]]) -> TextResult:
        """Write prompts for concepts."""
        result = TextResult()
        for request in (request for group in groups for request in group):
            [concept] = request.key
            try:
                with self._lock:
                    prompts = self._writer.write(concept)
                result.texts.append(Text(request.key, prompts))
            except RowError as error:
                result.failures[request.key] = error
            result.counters.prompt_generations += 1
            self._num_written += 1
        return result

    def progress(self) -> int:
        """Concepts done so far."""
        return self._num_written


class CaptionsWorker:
    """Loads the configured captioner and captions images; images of equal pixels once.

    Args:
        config: the job.
        num_threads: CPU threads of the model; None leaves torch's choice.
    """

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self._config, self._num_threads = config, num_threads
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(config.engine.loader_threads, "load")
        self._known: dict[str, str | RowError] = {}
        self._num_steps = 0
        self._captioner: Captioner

    def load(self) -> WorkerInfo:
        """Load the model. Raises ModelError."""
        from diffedit_batch.models.captions import Captioner

        def load() -> None:
            self._captioner = Captioner.load(self._config.captions, self._config.device)

        return _load(load, self._config, self._num_threads)

    def generate(self, groups: Sequence[tuple[TextRequest, ...]]) -> TextResult:
        """Caption images; one that cannot be read fails as it would while editing."""
        from diffedit_batch.engine.pixels import content_key

        result = TextResult()
        requests = [request for group in groups for request in group]
        pictures: dict[str, NDArray[np.uint8]] = {}
        contents: dict[Key, str] = {}
        for request, picture in zip(requests, self._readers.map(self._read, requests), strict=True):
            if isinstance(picture, RowError):
                result.failures[request.key] = picture
                continue
            contents[request.key] = content = content_key(picture)
            pictures[content] = picture
        with self._lock:
            new = [content for content in pictures if content not in self._known]
            captions = self._captioner.caption([pictures[content] for content in new])
            if len(self._known) > _MAX_REMEMBERED:
                self._known = {content: self._known[content] for content in pictures.keys() - new}
            self._known.update(zip(new, captions, strict=True))
            found = {content: self._known[content] for content in pictures}
        self._num_steps += 1
        for key, content in contents.items():
            caption = found[content]
            if isinstance(caption, RowError):
                result.failures[key] = caption
            else:
                result.texts.append(Text(key, (caption,), content))
        result.counters.captions = len(new)
        return result

    def progress(self) -> int:
        """Pictures read and bundles captioned so far."""
        return self._num_steps

    def _read(self, request: TextRequest) -> NDArray[np.uint8] | RowError:
        limits = self._config.input
        assert request.image is not None
        try:
            return read_picture(
                request.image, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels
            )
        except RowError as error:
            return error
        finally:
            self._num_steps += 1


def _load(load: Callable[[], None], config: JobConfig, num_threads: int | None) -> WorkerInfo:
    started = time.perf_counter()
    name = prepare_device(config, num_threads)
    load()
    return WorkerInfo(socket.gethostname(), name, time.perf_counter() - started)
