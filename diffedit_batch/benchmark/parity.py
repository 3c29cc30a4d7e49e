"""Whether what is fast is also right: the same latents, noise and texts through both algorithms."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffedit_batch.benchmark.guide import Guide
from diffedit_batch.benchmark.subject import Subject
from diffedit_batch.config import EditConfig
from diffedit_batch.core.acts import Edit, Recipe, Texts
from diffedit_batch.core.diffedit import edit_row
from diffedit_batch.engine.batcher import Batcher
from diffedit_batch.engine.counters import Counters

_SEED = 3
_PROMPTS = (("a red circle on grass",), ("a blue star on sand",), ("",))


@dataclass(frozen=True)
class Parity:
    """How the reference's edits of some latents differ from ours with preset `diffusers`.

    Attributes:
        differing_cells: share of mask cells that differ.
        latents_error: of the edited latents under equal masks: norm of the difference over the norm
            of ours.
        mask_cells: share of the cells inside our masks: near 0 or 1 there is nothing to compare.
    """

    differing_cells: float
    latents_error: float
    mask_cells: float


def compare(
    subject: Subject, guide: Guide, edit: EditConfig, num_images: int, batch_size: int
) -> Parity:
    """The parity of so many images at once with ours, each on its own.

    Args:
        subject: the model.
        guide: the reference over its weights.
        edit: with preset `diffusers`.
        num_images: that the reference edits as one batch.
        batch_size: network evaluations in a call of ours.
    """
    model = subject.components
    side = model.resolution // model.vae_scale_factor
    generator = torch.Generator("cpu").manual_seed(_SEED + 1)
    shape = (model.latent_channels, side, side)
    # Rounded as the reference rounds, so that both start from the same numbers.
    dtype = model.dtype
    x_0 = torch.randn(num_images, *shape, generator=generator).to(subject.device, dtype)
    generator = torch.Generator("cpu").manual_seed(_SEED)
    noise = torch.randn(
        num_images * edit.num_maps_per_mask, *shape, generator=generator, dtype=dtype
    ).to(subject.device)
    ours = _edit(subject, edit, x_0.float(), noise.float(), batch_size)
    masks = np.stack([one.mask.latent.cpu().numpy() for one in ours])
    source, target, empty = (
        model.text(prompts).states.expand(num_images, -1, -1) for prompts in _PROMPTS
    )
    found = guide.find_masks(x_0, source, target, empty, edit, _SEED)
    latents = guide.edit_latents(x_0, masks, source, target, empty, edit).float()
    expected = torch.stack([_latents(one) for one in ours])
    error = (latents - expected).norm() / expected.norm()
    return Parity(float((found != masks).mean()), float(error), float(masks.mean()))


def _edit(
    subject: Subject, edit: EditConfig, x_0: Tensor, noise: Tensor, batch_size: int
) -> list[Edit]:
    """Our edits of latents, through the batcher as in the engine."""
    model = subject.components
    texts = [model.text(prompts) for prompts in _PROMPTS]
    source, target, empty = texts
    names = {field.name for field in dataclasses.fields(Recipe)} & EditConfig.model_fields.keys()
    recipe = Recipe(**{name: getattr(edit, name) for name in names}, is_reference=True)
    batcher = Batcher(model.predict, batch_size, Counters())
    picture = torch.zeros(3, model.resolution, model.resolution, device=subject.device)
    for number, draws in enumerate(noise.chunk(len(x_0))):
        act = edit_row(
            x_0[number],
            draws,
            Texts(
                source=source,
                target=target,
                inversion=source,
                negative=source,
                inversion_negative=empty,
                source_mask_negative=empty,
                target_mask_negative=empty,
            ),
            recipe,
            model.schedule(edit.num_inference_steps),
            picture=picture,
            prediction_type=model.prediction_type,
            vae_scale_factor=model.vae_scale_factor,
        )
        batcher.add(act, {}, number)
    edits: dict[int, Edit] = {}
    while len(edits) < len(x_0):
        for finished in batcher.step():
            if finished.error is not None:
                raise finished.error
            edits[finished.token] = finished.result
    return [edits[number] for number in range(len(x_0))]


def _latents(edit: Edit) -> Tensor:
    assert edit.latents is not None, "the masks of the comparison are not empty"
    return edit.latents
