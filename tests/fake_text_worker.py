"""Writers of prompts that cost nothing, for the driver's side of the passes."""

import os
import time
from collections.abc import Sequence

from diffedit_batch.config import JobConfig
from diffedit_batch.data.text_files import Text
from diffedit_batch.engine.counters import Counters
from diffedit_batch.errors import ModelError, RowError
from diffedit_batch.runtime.messages import WorkerInfo
from diffedit_batch.runtime.text_workers import TextResult
from diffedit_batch.runtime.wanted import TextRequest


class FakePromptsWorker:
    """Writes one prompt per concept; a concept of `die` or `blank` is an order."""

    def __init__(self, config: JobConfig, num_threads: int | None = None) -> None:
        self.config = config

    def load(self) -> WorkerInfo:
        return WorkerInfo("test", "cpu", 0.0)

    def progress(self) -> int:
        return 0

    def generate(self, groups: Sequence[tuple[TextRequest, ...]]) -> TextResult:
        result = TextResult(counters=Counters(prompt_generations=len(groups)))
        for [request] in groups:
            [concept] = request.key
            time.sleep(0.2)
            if concept == "die":
                os._exit(1)
            if concept == "blank":
                error = RowError("prompts", "DegeneratePrompts", "blank")
                result.failures[request.key] = error
            else:
                result.texts.append(Text(request.key, (f"a {concept}",)))
        return result


class HealthyPromptsWorker(FakePromptsWorker):
    """Writes prompts for every concept; for a blank one too."""

    def generate(self, groups: Sequence[tuple[TextRequest, ...]]) -> TextResult:
        texts = [Text(request.key, (f"a {request.key[0]}",)) for [request] in groups]
        return TextResult(texts, counters=Counters(prompt_generations=len(texts)))


class NoPromptsWorker(FakePromptsWorker):
    """Cannot load its model."""

    def load(self) -> WorkerInfo:
        raise ModelError("cannot load model 'x'")
