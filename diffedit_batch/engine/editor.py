"""`DiffEditor`: requested edits in, edited pictures out, on one device.

    editor = DiffEditor.load(ModelConfig(id="demo"), device="cpu")
    request = EditRequest("1", ("a red circle on grass",), ("a blue circle on grass",))
    [result] = editor.edit([ImageEdits(picture, [request])])
    result.image, result.mask

Rows that edit one picture share its encoding, their inversions and the source half of their masks.
A row that tries several seeds is as many rows until the best of them is handed out.

Here is the order in which things happen to rows; what happens is in `preparing`, `starting`,
`batcher`, `rows` and `reviewing`.
"""

import dataclasses
import time
from collections.abc import Iterable
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from diffedit_batch.config import ModelConfig
from diffedit_batch.core.acts import Edit, FindLevels
from diffedit_batch.core.diffedit import invert
from diffedit_batch.engine.batcher import Batcher, Finished, Scope
from diffedit_batch.engine.counters import Counters
from diffedit_batch.engine.micro_batches import MicroBatches
from diffedit_batch.engine.preparing import PreparedEdits, prepare
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.engine.reviewing import Reviewer
from diffedit_batch.engine.rows import LeavingRow, Row
from diffedit_batch.engine.starting import start_row
from diffedit_batch.engine.texts import count_truncated
from diffedit_batch.engine.warm_up import compile_network, find_batch_size
from diffedit_batch.models.components import Components
from diffedit_batch.models.loading import timed
from diffedit_batch.models.transfer import to_device


class DiffEditor:
    """Edits pictures with one loaded model.

    Args:
        components: the model.
        batch_size: network evaluations in a full call.
        vae_batch_size: pictures that the VAE encodes or decodes at once.
        size_multiple: working sizes are multiples of it, in pixels; None: what the UNet halves
            without remainder.
        find_levels: what comes instead of the inversion, for ablations.
        reviewer: what looks at results before they are handed out.
    """

    def __init__(
        self,
        components: Components,
        *,
        batch_size: int = 16,
        vae_batch_size: int = 1,
        size_multiple: int | None = None,
        find_levels: FindLevels = invert,
        reviewer: Reviewer | None = None,
    ) -> None:
        self.components = components
        self.batch_size, self._vae_batch_size = batch_size, vae_batch_size
        self._multiple = size_multiple or components.vae_scale_factor * components.unet_scale_factor
        if self._multiple % components.vae_scale_factor:
            raise ValueError(
                f"size_multiple {size_multiple} is no multiple of the VAE factor"
                f" {components.vae_scale_factor}"
            )
        self._find_levels = find_levels
        self._reviewer = reviewer or Reviewer()
        self._counters = Counters()
        self._precise: DiffEditor | None = None
        self._forget_rows()

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        *,
        device: str = "cuda",
        batch_size: int | None = None,
        vae_batch_size: int | None = None,
        size_multiple: int | None = None,
        reviewer: Reviewer | None = None,
    ) -> "DiffEditor":
        """An editor with the configured model on a device.

        Args:
            config: the model.
            device: `cuda`, `cuda:1`, `cpu`.
            batch_size: None: what keeps the device busy, and fits.
            vae_batch_size: None: 8 on a GPU, 1 on a CPU.
            size_multiple: see the class.
            reviewer: see the class; loaded before, as what fits is tried out beside it.

        Raises:
            ModelError: it cannot be loaded or used.
        """
        components = Components.load(config, device)
        with timed(components.start_seconds, "warm_up"):
            batch_size = batch_size or find_batch_size(components)
        return cls(
            components,
            batch_size=batch_size,
            vae_batch_size=vae_batch_size or (1 if device == "cpu" else 8),
            size_multiple=size_multiple,
            reviewer=reviewer,
        )

    def compile(self, mode: Literal["auto", "full"] = "full") -> None:
        """Compile full calls, before the first row; takes a minute or more, and pays from about 750
        rows on. `auto`: on a GPU, where it can be done.

        Raises:
            ModelError: `full` was asked for, and it cannot be had.
        """
        compile_network(self.components, self.batch_size, mode)

    def _forget_rows(self) -> None:
        self._batcher = Batcher(self.components.predict, self.batch_size, self._counters)
        self._pictures: MicroBatches[list[Row]] = MicroBatches(self._vae_batch_size)
        self._edited: MicroBatches[tuple[Row, Edit, Tensor]] = MicroBatches(self._vae_batch_size)
        self._leaving: list[LeavingRow] = []
        self._reviewer.forget()
        self._num_active = 0
        if self._precise is not None:
            self._precise._forget_rows()

    @property
    def counters(self) -> Counters:
        """Work done so far."""
        own = dataclasses.replace(self._counters, text_encodes=self.components.num_text_encodes)
        own += self._reviewer.counters
        return own + self._precise.counters if self._precise else own

    @property
    def num_active(self) -> int:
        """Rows submitted and not yet returned."""
        return self._num_active

    def edit(self, edits: Iterable[ImageEdits]) -> list[EditResult]:
        """The results of all requests, in their order.

        Raises:
            ValueError: two requests have the same id.
        """
        order: dict[str, int] = {}
        results: list[EditResult] = []
        try:
            for one in edits:
                for request in one.requests:
                    if request.id in order:
                        raise ValueError(f"two requests have the id {request.id!r}")
                    order[request.id] = len(order)
                self.submit(self.prepare(one))
                # Enough rows for full calls of a few sizes; more would only hold memory.
                while self.num_active >= 4 * self.batch_size:
                    results += self.step()
            while self.num_active:
                results += self.step()
        except BaseException:
            self._forget_rows()
            raise
        return sorted(results, key=lambda result: order[result.request.id])

    def prepare(self, edits: ImageEdits) -> PreparedEdits:
        """What `submit` takes. Any thread may do it, ahead of the one that drives the device."""
        return prepare(edits, self.components, self._multiple, self._reviewer.clip)

    def submit(self, prepared: PreparedEdits) -> None:
        """Admit the requests of one picture; `step` returns their results as they come."""
        self._num_active += len(prepared.edits.requests)
        self._reviewer.expect(prepared)
        started = time.perf_counter()
        candidates = chain.from_iterable(prepared.candidates.values())
        rows = [Row(candidate, prepared, started) for candidate in candidates]
        self._pictures.add(prepared.picture.shape, rows)

    def step(self) -> list[EditResult]:
        """Run one network call and return the results that became ready."""
        while pictures := self._pictures.pop(is_hurried=not self._batcher.has_full_call):
            self._encode(pictures)
        for finished in self._batcher.step():
            self._conclude(finished)
        while edited := self._edited.pop(is_hurried=not self._batcher.has_full_call):
            self._decode(edited)
        leaving, self._leaving = self._leaving, []
        for one in leaving:
            # Waited for only when the device has nothing else to do.
            if one.is_here or self._batcher.is_idle:
                self._deliver(one)
            else:
                self._leaving.append(one)
        if self._precise is not None:
            for result in self._precise.step():
                self._reviewer.add(result)
        results = self._reviewer.step(
            is_hurried=not self._batcher.has_full_call, is_idle=self._batcher.is_idle
        )
        self._num_active -= len(results)
        return results

    def _encode(self, pictures: list[list[Row]]) -> None:
        """Encode pictures of one size and start their rows."""
        prepared = [rows[0].prepared for rows in pictures]
        device = self.components.device
        try:
            images = torch.stack([to_device(one.picture, device) for one in prepared])
            means, stds = self.components.encode(images)
        except torch.OutOfMemoryError as error:
            if len(pictures) > 1:
                self._counters.batch_halvings += 1
                self._pictures.shrink(prepared[0].picture.shape, pictures)
            else:
                for row in pictures[0]:
                    self._fail(row, error)
            return
        self._counters.vae_encodes += len(pictures)
        for rows, image, mean, std in zip(pictures, images, means, stds, strict=True):
            scope: Scope = {}
            for row in rows:
                try:
                    row.num_truncated_prompts = count_truncated(
                        row.request, self.components.is_truncated
                    )
                    act = start_row(
                        row.request,
                        row.prepared,
                        self.components,
                        image,
                        mean,
                        std,
                        self._find_levels,
                    )
                except (ValueError, torch.OutOfMemoryError) as error:
                    self._fail(row, error)
                else:
                    self._batcher.add(act, scope, row)

    def _conclude(self, finished: Finished) -> None:
        """Take an act that ended to the VAE, or where it has nothing to decode, home."""
        row: Row = finished.token
        if finished.error is not None:
            self._retry_or_fail(row, finished.error)
            return
        edit: Edit = finished.result
        if edit.latents is None:
            self._leave(row, edit, None)
        else:
            self._edited.add(edit.latents.shape, (row, edit, edit.latents))

    def _decode(self, edited: list[tuple[Row, Edit, Tensor]]) -> None:
        """Decode latents of one size."""
        try:
            images = self.components.decode(torch.stack([latents for _, _, latents in edited]))
        except torch.OutOfMemoryError as error:
            if len(edited) > 1:
                self._counters.batch_halvings += 1
                self._edited.shrink(edited[0][2].shape, edited)
            else:
                self._fail(edited[0][0], error)
            return
        self._counters.vae_decodes += len(edited)
        for (row, edit, _), image in zip(edited, images, strict=True):
            self._leave(row, edit, image)

    def _leave(self, row: Row, edit: Edit, image: Tensor | None) -> None:
        """Send to the host what the result of a row is made of."""
        self._leaving.append(LeavingRow(row, edit, image))

    def _deliver(self, one: LeavingRow) -> None:
        try:
            result = one.result()
        except FloatingPointError as error:
            self._retry_or_fail(one.row, error)
        else:
            self._reviewer.add(result)

    def _retry_or_fail(self, row: Row, error: Exception) -> None:
        """Start a row again in full precision, where that may help."""
        if isinstance(error, FloatingPointError) and self.components.can_be_more_precise:
            try:
                precise = self._in_full_precision()
            except torch.OutOfMemoryError:
                pass
            else:
                self._counters.full_precision_retries += 1
                alone = dataclasses.replace(row.prepared.edits, requests=[row.request])
                precise.submit(precise.prepare(alone))
                return
        self._fail(row, error)

    def _in_full_precision(self) -> "DiffEditor":
        if self._precise is None:
            self._precise = DiffEditor(
                self.components.in_full_precision(),
                batch_size=self.batch_size,
                vae_batch_size=self._vae_batch_size,
                size_multiple=self._multiple,
                find_levels=self._find_levels,
            )
        return self._precise

    def _fail(self, row: Row, error: Exception) -> None:
        self._reviewer.add(row.failed(error))
