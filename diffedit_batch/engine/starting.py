"""From a request, prepared on the host, to the act that edits its picture on the device.

Legend: C channels, h x w latent grid, H x W pixels.
"""

import dataclasses

import torch
from torch import Tensor

from diffedit_batch.core.acts import Act, Edit, FindLevels, Recipe, Texts
from diffedit_batch.core.diffedit import edit_row
from diffedit_batch.engine.preparing import PreparedEdits
from diffedit_batch.models.components import Components
from diffedit_batch.models.transfer import to_device
from diffedit_batch.schema import EditRequest


def start_row(
    request: EditRequest,
    prepared: PreparedEdits,
    model: Components,
    picture: Tensor,
    mean: Tensor,
    std: Tensor,
    find_levels: FindLevels,
) -> Act[Edit]:
    """The act of one request.

    Args:
        request: one of those prepared.
        prepared: the picture and its edits.
        model: on the device.
        picture: on the device, (3, H, W).
        mean: of the picture's latent, (C, h, w).
        std: its standard deviation, (C, h, w).
        find_levels: what comes as act 2.

    Raises:
        ValueError: a parameter that the model cannot serve.
    """
    edit = request.edit
    texts = Texts(
        source=model.text(request.source_prompt),
        target=model.text(request.target_prompt),
        inversion=model.text(request.inversion_text),
        negative=model.text(request.negative_text),
        inversion_negative=model.text(("",)),
        source_mask_negative=model.text(request.source_negative_text),
        target_mask_negative=model.text(request.negative_text),
    )
    recipe = Recipe(
        **{
            name.name: getattr(edit, name.name)
            for name in dataclasses.fields(Recipe)
            if hasattr(edit, name.name)
        },
        seed=request.seed,
        is_reference=edit.preset == "diffusers",
    )
    noise = prepared.noise[request.id, request.seed]
    own_mask = prepared.masks.get(request.id)
    x_0, mask_latents = mean, None
    if noise.posterior_of_inversion is not None and noise.posterior_of_mask is not None:
        x_0 = mean + std * to_device(noise.posterior_of_inversion, model.device)
        mask_latents = mean + std * to_device(noise.posterior_of_mask, model.device)
    return edit_row(
        x_0,
        to_device(noise.mask, model.device),
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
        own_mask=None if own_mask is None else to_device(own_mask, model.device),
        find_levels=find_levels,
    )
