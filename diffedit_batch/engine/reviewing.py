"""Finished edits looked at before they are handed out: scored, checked, the best of a row kept.

Threads restore pictures to their own size and prepare them; the thread that drives the device has
them looked at in batches, between network calls.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffedit_batch.config import ModelConfig, ScoresConfig
from diffedit_batch.engine.counters import Counters
from diffedit_batch.engine.micro_batches import MicroBatches
from diffedit_batch.engine.preparing import PreparedEdits
from diffedit_batch.engine.requests import EditResult
from diffedit_batch.engine.scores import CLIP_SCORES, best_of, clip_cosines
from diffedit_batch.errors import RowError
from diffedit_batch.models.clip import Clip
from diffedit_batch.models.lpips import Lpips
from diffedit_batch.models.safety import SafetyChecker
from diffedit_batch.models.transfer import HostCopy

_BATCH_SIZE = 16
"""Edits looked at in one call."""


@dataclass(eq=False)
class _Source:
    """A picture that is edited: as CLIP takes it and, once CLIP has looked, as CLIP sees it."""

    pixels: Tensor | None
    vector: Tensor | None = None


@dataclass(eq=False)
class _Row:
    """A request, its candidates by seed, and the results of those that are through."""

    source: _Source
    keep_best: str
    results: dict[int, EditResult | None]


@dataclass(frozen=True, eq=False)
class _Look:
    """An edit to be looked at; its picture as CLIP takes it and, with its source, as LPIPS does
    (None where it is the source), and as the safety checker does.
    """

    result: EditResult
    source: _Source
    pixels: Tensor | None
    pair: Tensor | None
    checked_pixels: Tensor | None


class Reviewer:
    """Adds to results what CLIP, LPIPS and the safety checker find, and of several candidates of a
    row returns the best.

    Args:
        clip: what scores edits.
        checker: what flags them.
        lpips: what compares them with their sources.
        num_threads: that prepare pictures.

    Attributes:
        counters: work done.
    """

    def __init__(
        self,
        clip: Clip | None = None,
        checker: SafetyChecker | None = None,
        lpips: Lpips | None = None,
        *,
        num_threads: int = 2,
    ) -> None:
        self.clip, self._checker, self._lpips = clip, checker, lpips
        self.counters = Counters()
        self._threads = ThreadPoolExecutor(num_threads, "review")
        self.forget()

    @classmethod
    def load(
        cls,
        scores: ScoresConfig,
        checked_model: ModelConfig | None = None,
        *,
        device: str = "cuda",
        num_threads: int = 2,
    ) -> "Reviewer":
        """A reviewer with the configured models on a device.

        Args:
            scores: which CLIP, and which LPIPS.
            checked_model: the diffusion model whose safety checker is asked; None: none is.
            device: `cuda`, `cuda:1`, `cpu`.
            num_threads: see the class.

        Raises:
            ModelError: one cannot be loaded or used.
        """
        clip = None if scores.clip is None else Clip.load(scores, device)
        checker = None if checked_model is None else SafetyChecker.load(checked_model, device)
        lpips = None if scores.lpips is None else Lpips.load(scores, device)
        return cls(clip, checker, lpips, num_threads=num_threads)

    @property
    def _has_models(self) -> bool:
        return any(one is not None for one in (self.clip, self._checker, self._lpips))

    def forget(self) -> None:
        """Drop everything under way."""
        self._rows: dict[str, _Row] = {}
        self._preparing: list[Future[_Look]] = []
        self._waiting: MicroBatches[_Look] = MicroBatches(_BATCH_SIZE)
        self._looking: list[tuple[list[_Look], HostCopy]] = []
        self._reviewed: list[EditResult] = []

    def expect(self, prepared: PreparedEdits) -> None:
        """Take note of edits whose results will come.

        Raises:
            ValueError: the best candidate of one is known to CLIP alone, and there is none.
        """
        source = _Source(prepared.clip_pixels)
        for request in prepared.edits.requests:
            if request.edit.asks_clip and self.clip is None:
                raise ValueError(f"keep_best {request.edit.keep_best!r} needs a CLIP model")
            seeds = [candidate.seed for candidate in prepared.candidates[request.id]]
            self._rows[request.id] = _Row(source, request.edit.keep_best, dict.fromkeys(seeds))

    def add(self, result: EditResult) -> None:
        """Take the result of a candidate; `step` returns that of its row."""
        row = self._rows[result.request.id]
        if result.error is not None or (not self._has_models and len(row.results) == 1):
            self._finish(result)
        else:
            self._preparing.append(self._threads.submit(self._prepare, result, row))

    def step(self, *, is_hurried: bool, is_idle: bool) -> list[EditResult]:
        """Have edits looked at, and return the results of rows whose candidates all were.

        Args:
            is_hurried: do not wait until there are enough for a full call.
            is_idle: nobody else has anything to do: wait for what is under way.
        """
        if is_idle:
            wait(self._preparing)
        preparing, self._preparing = self._preparing, []
        for future in preparing:
            if not future.done():
                self._preparing.append(future)
            elif not self._has_models:
                self._finish(future.result().result)
            else:
                self._waiting.add(None, future.result())
        while looks := self._waiting.pop(is_hurried=is_hurried and not self._preparing):
            self._look(looks)
        looking, self._looking = self._looking, []
        for looks, copy in looking:
            if copy.is_here or is_idle:
                self._deliver(looks, copy)
            else:
                self._looking.append((looks, copy))
        reviewed, self._reviewed = self._reviewed, []
        return reviewed

    def _prepare(self, result: EditResult, row: _Row) -> _Look:
        """What a thread can do for an edit: restore its picture, and all that takes none but it."""
        if len(row.results) > 1 and not row.keep_best.startswith("clip_"):
            getattr(result, row.keep_best)  # worked out once, and kept
        pixels = pair = checked_pixels = None
        if self.clip is not None and result.status == "edited":
            pixels = self.clip.prepare(result.image)
        if self._lpips is not None and result.status == "edited":
            pair = self._lpips.prepare(result.original, result.image)
        if self._checker is not None:
            checked_pixels = self._checker.prepare(result.image)
        return _Look(result, row.source, pixels, pair, checked_pixels)

    def _finish(self, result: EditResult) -> None:
        """Take a candidate of which there is no more to say."""
        row = self._rows[result.request.id]
        row.results[result.request.seed] = result
        results = [one for one in row.results.values() if one is not None]
        if len(results) == len(row.results):
            del self._rows[result.request.id]
            best = results[0] if len(results) == 1 else best_of(results, row.keep_best)
            self._reviewed.append(best)

    def _look(self, looks: list[_Look]) -> None:
        """Score and check edits, each in one call."""
        found = {}
        try:
            if self.clip is not None:
                found["cosines"] = self._score(looks, self.clip)
            if self._lpips is not None:
                found["lpips"] = self._compare(looks, self._lpips)
            if self._checker is not None:
                pixels = [one.checked_pixels for one in looks if one.checked_pixels is not None]
                found["is_flagged"] = self._checker.find_flagged(torch.stack(pixels))
                self.counters.safety_checks += len(pixels)
        except torch.OutOfMemoryError as error:
            if len(looks) > 1:
                self.counters.batch_halvings += 1
                self._waiting.shrink(None, looks)
            else:
                refused = RowError("edit", "OutOfMemory", " ".join(str(error).split()))
                self._finish(looks[0].result.with_found(error=refused))
            return
        self._looking.append((looks, HostCopy(found)))

    def _score(self, looks: Sequence[_Look], clip: Clip) -> Tensor:
        """Cosines of edits, (B, 3), see `clip_cosines`. Sources go in the same call where CLIP has
        not seen them yet.
        """
        new = list(dict.fromkeys(look.source for look in looks if look.source.vector is None))
        pixels = [one.pixels for one in new] + [one.pixels for one in looks]
        unseen = [one for one in pixels if one is not None]
        vectors = iter(clip.encode(torch.stack(unseen)) if unseen else ())
        self.counters.clip_encodes += len(unseen)
        for source in new:
            source.vector, source.pixels = next(vectors), None
        before, after, source_texts, target_texts = [], [], [], []
        for look in looks:
            request = look.result.request
            assert look.source.vector is not None
            before.append(look.source.vector)
            after.append(look.source.vector if look.pixels is None else next(vectors))
            source_texts.append(clip.text(request.source_prompt))
            target_texts.append(clip.text(request.target_prompt))
        return clip_cosines(*map(torch.stack, (before, after, source_texts, target_texts)))

    def _compare(self, looks: Sequence[_Look], lpips: Lpips) -> Tensor:
        """Distances of edits from their sources, (B,); 0 where nothing was changed."""
        pairs = [look.pair for look in looks if look.pair is not None]
        distances = iter(lpips.distances(torch.stack(pairs)) if pairs else ())
        self.counters.lpips_distances += len(pairs)
        none = torch.zeros((), device=lpips.device)
        return torch.stack([none if look.pair is None else next(distances) for look in looks])

    def _deliver(self, looks: list[_Look], copy: HostCopy) -> None:
        found = {name: tensor.tolist() for name, tensor in copy.wait().items()}
        cosines = found.pop("cosines", None)
        for number, look in enumerate(looks):
            columns: dict[str, Any] = {name: values[number] for name, values in found.items()}
            if cosines is not None:
                columns |= zip(CLIP_SCORES, cosines[number], strict=True)
            self._finish(look.result.with_found(**columns))
