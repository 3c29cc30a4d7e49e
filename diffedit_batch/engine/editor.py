"""`DiffEditor`: requested edits in, edited pictures out, on one device.

    editor = DiffEditor.load(ModelConfig(id="demo"), device="cpu")
    request = EditRequest("1", ("a red circle on grass",), ("a blue circle on grass",))
    [result] = editor.edit([ImageEdits(picture, [request])])
    result.image, result.mask

Rows that edit one picture share its encoding, their inversions and the source half of their masks.
"""

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffedit_batch.config import ModelConfig
from diffedit_batch.core.acts import Act, Edit, FindLevels, Recipe, Texts
from diffedit_batch.core.diffedit import edit_row, invert
from diffedit_batch.core.noise import draw
from diffedit_batch.engine.batcher import Batcher, Finished, Scope
from diffedit_batch.engine.counters import Counters
from diffedit_batch.engine.pixels import (
    content_key,
    resize_mask,
    to_picture,
    to_tensor,
    working_size,
)
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.errors import RowError
from diffedit_batch.models.components import Components
from diffedit_batch.schema import EditRequest


@dataclass(eq=False)
class _Row:
    request: EditRequest
    edits: ImageEdits
    started: float
    num_truncated_prompts: int = 0


class DiffEditor:
    """Edits pictures with one loaded model.

    Args:
        components: the model.
        batch_size: network evaluations in a full call.
        size_multiple: working sizes are multiples of it, in pixels; None: what the UNet halves
            without remainder.
        find_levels: what comes instead of the inversion, for ablations.
    """

    def __init__(
        self,
        components: Components,
        *,
        batch_size: int = 16,
        size_multiple: int | None = None,
        find_levels: FindLevels = invert,
    ) -> None:
        self.components = components
        self._batch_size = batch_size
        self._multiple = size_multiple or components.vae_scale_factor * components.unet_scale_factor
        if self._multiple % components.vae_scale_factor:
            raise ValueError(
                f"size_multiple {size_multiple} is no multiple of the VAE factor"
                f" {components.vae_scale_factor}"
            )
        self._find_levels = find_levels
        self._counters = Counters()
        self._precise: DiffEditor | None = None
        self._forget_rows()

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        *,
        device: str = "cuda",
        batch_size: int = 16,
        size_multiple: int | None = None,
    ) -> "DiffEditor":
        """An editor with the configured model on a device. Raises ModelError."""
        components = Components.load(config, device)
        return cls(components, batch_size=batch_size, size_multiple=size_multiple)

    def _forget_rows(self) -> None:
        self._batcher = Batcher(self.components.predict, self._batch_size, self._counters)
        self._results: list[EditResult] = []
        self._num_active = 0
        if self._precise is not None:
            self._precise._forget_rows()

    @property
    def counters(self) -> Counters:
        """Work done so far."""
        own = dataclasses.replace(self._counters, text_encodes=self.components.num_text_encodes)
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
                self.submit(one)
                # Twice a full call of rows keeps calls full; more would only hold memory.
                while self.num_active >= 2 * self._batch_size:
                    results += self.step()
            while self.num_active:
                results += self.step()
        except BaseException:
            self._forget_rows()
            raise
        return sorted(results, key=lambda result: order[result.request.id])

    def submit(self, edits: ImageEdits) -> None:
        """Admit the requests of one picture; `step` returns their results as they come."""
        self._num_active += len(edits.requests)
        rows = [_Row(request, edits, time.perf_counter()) for request in edits.requests]
        height, width = edits.picture.shape[:2]
        size = working_size(width, height, self.components.resolution, self._multiple)
        try:
            picture = to_tensor(edits.picture, size).to(self.components.device)
            mean, std = self.components.encode(picture)
        except torch.OutOfMemoryError as error:
            for row in rows:
                self._results.append(self._failed(row, error))
            return
        self._counters.vae_encodes += 1
        scope: Scope = {}
        key = content_key(edits.picture)
        for row in rows:
            try:
                act = self._start(row, picture, mean, std, key)
            except (ValueError, torch.OutOfMemoryError) as error:
                self._results.append(self._failed(row, error))
            else:
                self._batcher.add(act, scope, row)

    def step(self) -> list[EditResult]:
        """Run one network call and return the results that became ready."""
        for finished in self._batcher.step():
            result = self._conclude(finished)
            if result is not None:
                self._results.append(result)
        if self._precise is not None:
            self._results += self._precise.step()
        results, self._results = self._results, []
        self._num_active -= len(results)
        return results

    def _start(self, row: _Row, picture: Tensor, mean: Tensor, std: Tensor, key: str) -> Act[Edit]:
        request, edit, model = row.request, row.request.edit, self.components
        texts = Texts(
            source=model.text(request.source_prompt),
            target=model.text(request.target_prompt),
            inversion=model.text(request.inversion_text),
            negative=model.text(request.negative_text),
            inversion_negative=model.text(("",)),
            source_mask_negative=model.text(request.source_negative_text),
            target_mask_negative=model.text(request.negative_text),
        )
        used = {
            *request.source_prompt,
            *request.target_prompt,
            *request.inversion_text,
            *request.negative_text,
            *request.source_negative_text,
        }
        row.num_truncated_prompts = sum(model.is_truncated(prompt) for prompt in used)
        recipe = Recipe(
            **{
                name.name: getattr(edit, name.name)
                for name in dataclasses.fields(Recipe)
                if hasattr(edit, name.name)
            },
            seed=request.seed,
            is_reference=edit.preset == "diffusers",
        )

        def noise(purpose: str, *shape: int) -> Tensor:
            drawn = draw((*shape, *mean.shape), seed=request.seed, image_key=key, purpose=purpose)
            return drawn.to(model.device)

        own_mask = row.edits.masks.get(request.id)
        size = (picture.shape[2], picture.shape[1])
        x_0, mask_latents = mean, None
        if recipe.is_reference:
            x_0 = mean + std * noise("posterior of inversion")
            mask_latents = mean + std * noise("posterior of mask", recipe.num_maps_per_mask)
        return edit_row(
            x_0,
            noise("mask", recipe.num_maps_per_mask),
            texts,
            recipe,
            model.schedule(edit.num_inference_steps),
            picture=picture,
            prediction_type=model.prediction_type,
            vae_scale_factor=model.vae_scale_factor,
            # Half precision rounds differently in calls of different sizes: that alone is no
            # difference.
            flat_tolerance=max(1e-4, torch.finfo(model.dtype).eps),
            mask_latents=mask_latents,
            own_mask=None
            if own_mask is None
            else torch.from_numpy(resize_mask(own_mask, size)).to(model.device),
            find_levels=self._find_levels,
        )

    def _conclude(self, finished: Finished) -> EditResult | None:
        """The result of an ended act; None where the row was started again in full precision."""
        row: _Row = finished.token
        if finished.error is not None:
            return self._retry_or_fail(row, finished.error)
        edit: Edit = finished.result
        working = None
        if edit.latents is not None:
            try:
                image = self.components.decode(edit.latents)
            except torch.OutOfMemoryError as error:
                return self._failed(row, error)
            self._counters.vae_decodes += 1
            if not image.isfinite().all():
                return self._retry_or_fail(
                    row, FloatingPointError("the edited picture is not finite")
                )
            working = to_picture(image)
        return EditResult(
            request=row.request,
            original=row.edits.picture,
            working=working,
            working_mask=edit.mask.pixel.cpu().numpy(),
            difference=None if edit.difference is None else edit.difference.cpu().numpy(),
            num_truncated_prompts=row.num_truncated_prompts,
            seconds=time.perf_counter() - row.started,
        )

    def _retry_or_fail(self, row: _Row, error: Exception) -> EditResult | None:
        if not isinstance(error, FloatingPointError) or not self.components.can_be_more_precise:
            return self._failed(row, error)
        if self._precise is None:
            try:
                components = self.components.in_full_precision()
            except torch.OutOfMemoryError:
                return self._failed(row, error)
            self._precise = DiffEditor(
                components,
                batch_size=self._batch_size,
                size_multiple=self._multiple,
                find_levels=self._find_levels,
            )
        self._counters.full_precision_retries += 1
        self._precise.submit(dataclasses.replace(row.edits, requests=[row.request]))
        return None

    def _failed(self, row: _Row, error: Exception) -> EditResult:
        kinds = {ValueError: "InvalidParameter", FloatingPointError: "NonFiniteResult"}
        kind = kinds.get(type(error), "OutOfMemory")
        return EditResult(
            request=row.request,
            original=row.edits.picture,
            error=RowError("edit", kind, " ".join(str(error).split())),
            seconds=time.perf_counter() - row.started,
        )
