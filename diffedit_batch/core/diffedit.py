"""DiffEdit in three acts: find the mask, invert the image, edit inside the mask.

Couairon, Verbeek, Schwenk, Cord: "DiffEdit: Diffusion-based semantic image editing with mask
guidance" (ICLR 2023, arXiv 2210.11427). Each act is a generator that *yields* the network
evaluations it needs and receives their outputs, so that one row reads like the paper while a
batcher packs the wishes of many rows into full network calls.

Legend: N mask draws, K evaluations, C channels, h x w latent grid, L text tokens, D text width.
"""

import math

import torch
from torch import Tensor

from diffedit_batch.core.acts import (
    Act,
    Edit,
    Evaluate,
    Fetch,
    FindLevels,
    Once,
    Recipe,
    Text,
    Texts,
)
from diffedit_batch.core.guidance import PredictionType, estimates, guide
from diffedit_batch.core.mask import (
    MaskPair,
    binarise,
    difference_map,
    follow_outlines,
    upsample,
)
from diffedit_batch.core.schedule import Schedule, add_noise, ddim_step


def guided(
    latents: Tensor, timestep: Tensor, text: Text, negative: Text, guidance_scale: float
) -> Act[Tensor]:
    """Network outputs (K, C, h, w) under guidance; the negative is asked only where it counts."""
    count = len(latents)
    if guidance_scale == 1:
        plain: Tensor = yield Evaluate(latents, timestep, [text] * count)
        return plain
    outputs: Tensor = yield Evaluate(
        latents.repeat(2, 1, 1, 1), timestep, [text] * count + [negative] * count
    )
    with_text, with_negative = outputs.chunk(2)
    return guide(with_text, with_negative, guidance_scale)


def find_difference(
    x_0: Tensor, noise: Tensor, texts: Texts, recipe: Recipe, schedule: Schedule
) -> Act[Tensor]:
    """Act 1: the difference map (h, w) of noise estimates under target and source text.

    Step 1 of the paper. With equal negatives on both sides [u + g (t - u)] - [u + g (s - u)] = g (t
    - s): the unconditional term cancels and a common factor does not move a rescaled map, so two
    evaluations a draw give the mask of any guidance.

    Args:
        x_0: clean latents, (1, C, h, w), or (N, C, h, w) where every draw has its own.
        noise: the draws, (N, C, h, w).
        texts: prompts of the row.
        recipe: scalars of the row.
        schedule: noise levels.
    """
    level = schedule.level_of(recipe.mask_encode_strength)
    x_t = add_noise(x_0, noise, schedule.alpha_bar[level])
    timestep = schedule.timesteps[level]
    cancels = texts.source_mask_negative.key == texts.target_mask_negative.key
    scale = 1.0 if cancels else recipe.guidance_scale

    def estimate(text: Text, negative: Text) -> Act[Tensor]:
        # The reference unpacks (positive, negative) the wrong way round, so its guidance runs from
        # text to negative.
        if recipe.is_reference and not cancels:
            text, negative = negative, text
        return guided(x_t, timestep, text, negative, scale)

    source = yield Once(
        "source_estimates",
        (
            texts.source.key,
            None if cancels else texts.source_mask_negative.key,
            scale,
            recipe.seed,
            recipe.num_maps_per_mask,
            recipe.is_reference,
            schedule.num_inference_steps,
            level,
        ),
        lambda: estimate(texts.source, texts.source_mask_negative),
    )
    target = yield from estimate(texts.target, texts.target_mask_negative)
    return difference_map(target, source)


def find_mask(
    x_0: Tensor,
    noise: Tensor,
    texts: Texts,
    recipe: Recipe,
    schedule: Schedule,
    *,
    picture: Tensor,
    vae_scale_factor: int,
    flat_tolerance: float,
) -> Act[tuple[MaskPair, Tensor | None]]:
    """Act 1, to its end: the mask, and the difference map behind it where one was needed.

    The paper thresholds on the latent grid; on the upsampled map outlines follow the object instead
    of cells, and more so once it is guided by the picture (3, H, W; -1..1). The latent mask then
    keeps the cells of the unguided map too: what is drawn near an outline needs room beyond it. A
    map that is flat, because both texts mean the same to the network, gives an empty mask:
    rescaling it would blow rounding up to a mask of everything.

    Raises:
        FloatingPointError: the network's outputs are not finite.
    """
    grid = torch.zeros(x_0.shape[-2:], dtype=torch.bool, device=x_0.device)
    nothing = MaskPair.from_latents(grid, vae_scale_factor)
    if texts.source.key == texts.target.key:
        return nothing, None
    difference = yield from find_difference(x_0, noise, texts, recipe, schedule)
    # A maximum hides neither NaN nor infinity.
    [highest] = yield Fetch(difference.max()[None])
    if not math.isfinite(highest):
        raise FloatingPointError("the noise estimates of the mask are not finite")
    if highest <= flat_tolerance:
        return nothing, difference

    def cut(scores: Tensor) -> Tensor:
        return binarise(
            scores,
            recipe.mask_rule,
            threshold=recipe.mask_threshold,
            thresholding_ratio=recipe.mask_thresholding_ratio,
        )

    if recipe.is_reference:
        return MaskPair.from_latents(cut(difference), vae_scale_factor), difference
    difference = upsample(difference, vae_scale_factor)
    mask = MaskPair.from_pixels(cut(difference), vae_scale_factor)
    if recipe.mask_guide_radius:
        difference = follow_outlines(difference, picture, recipe.mask_guide_radius)
        fitted = MaskPair.from_pixels(cut(difference), vae_scale_factor)
        mask = MaskPair(fitted.pixel, fitted.latent | mask.latent)
    return mask, difference


def invert(
    x_0: Tensor, texts: Texts, recipe: Recipe, schedule: Schedule, prediction_type: PredictionType
) -> Act[list[Tensor]]:
    """Act 2: the latents (C, h, w) of every level from clean to `inpaint_strength` (paper, step 2).

    Element i is the latent at level i; element 0 is `x_0` itself.
    """
    levels = [x_0]
    for level in range(schedule.level_of(recipe.inpaint_strength)):
        asked = level if recipe.inversion_timestep == "current" else level + 1
        outputs = yield from guided(
            levels[-1][None],
            schedule.timesteps[asked],
            texts.inversion,
            texts.inversion_negative,
            recipe.inversion_guidance_scale,
        )
        # The reference reads v at the level the latent is at, whatever the network was told.
        read_at = level if recipe.is_reference else asked
        _, eps = estimates(outputs[0], levels[-1], schedule.alpha_bar[read_at], prediction_type)
        estimate_of_x_0, eps = estimates(eps, levels[-1], schedule.alpha_bar[level], "epsilon")
        levels.append(ddim_step(estimate_of_x_0, eps, schedule.alpha_bar[level + 1]))
    return levels


def edit_masked(
    levels: list[Tensor],
    mask: Tensor,
    texts: Texts,
    recipe: Recipe,
    schedule: Schedule,
    prediction_type: PredictionType,
) -> Act[Tensor]:
    """Act 3: denoise under the target text, keeping the inverted latents outside the mask.

    Step 3 of the paper. Background and result are at the same level at every blend, so the last one
    puts back the clean latent.

    Args:
        levels: result of `invert`.
        mask: (h, w) bool.
        texts: prompts of the row.
        recipe: scalars of the row.
        schedule: noise levels.
        prediction_type: what the network predicts.

    Returns:
        The edited latent (C, h, w).
    """
    x_t = levels[-1]
    for level in range(len(levels) - 1, 0, -1):
        outputs = yield from guided(
            x_t[None],
            schedule.timesteps[level],
            texts.target,
            texts.negative,
            recipe.guidance_scale,
        )
        x_0, eps = estimates(outputs[0], x_t, schedule.alpha_bar[level], prediction_type)
        x_t = ddim_step(x_0, eps, schedule.alpha_bar[level - 1])
        # The reference blends in the background of the level just left, one too noisy.
        background = levels[level] if recipe.is_reference else levels[level - 1]
        x_t = torch.where(mask, x_t, background)
    return x_t


def edit_row(
    x_0: Tensor,
    noise: Tensor,
    texts: Texts,
    recipe: Recipe,
    schedule: Schedule,
    *,
    picture: Tensor,
    prediction_type: PredictionType,
    vae_scale_factor: int,
    flat_tolerance: float = 1e-4,
    mask_latents: Tensor | None = None,
    own_mask: Tensor | None = None,
    find_levels: FindLevels = invert,
) -> Act[Edit]:
    """One row of DiffEdit, from clean latent to edited latent.

    Args:
        x_0: clean latent, (C, h, w).
        noise: mask draws, (N, C, h, w).
        texts: prompts of the row.
        recipe: scalars of the row.
        schedule: noise levels.
        picture: what `x_0` encodes, (3, H, W) in -1..1.
        prediction_type: what the network predicts.
        vae_scale_factor: pixels per latent cell.
        flat_tolerance: a map that nowhere exceeds it is flat.
        mask_latents: clean latents of the mask draws, (N, C, h, w), where they differ from `x_0`.
        own_mask: a given mask (H, W) bool instead of act 1. Equal texts change nothing even so.
        find_levels: what comes instead of act 2, for ablations.

    Raises:
        ValueError: a parameter that this schedule cannot serve.
    """
    if own_mask is not None and texts.source.key != texts.target.key:
        mask, difference = MaskPair.from_pixels(own_mask, vae_scale_factor), None
    else:
        clean = x_0[None] if mask_latents is None else mask_latents
        mask, difference = yield from find_mask(
            clean,
            noise,
            texts,
            recipe,
            schedule,
            picture=picture,
            vae_scale_factor=vae_scale_factor,
            flat_tolerance=flat_tolerance,
        )
    mask = mask.grown(recipe.mask_grow, vae_scale_factor)
    [is_any] = yield Fetch(mask.latent.any()[None])
    if not is_any:
        return Edit(None, mask, difference)
    levels = yield Once(
        "inversion",
        (
            texts.inversion.key,
            texts.inversion_negative.key if recipe.inversion_guidance_scale != 1 else None,
            recipe.inversion_guidance_scale,
            recipe.inversion_timestep,
            # The reference inverts a random sample of the VAE posterior, everyone else the mean.
            recipe.seed if recipe.is_reference else None,
            schedule.num_inference_steps,
            schedule.level_of(recipe.inpaint_strength),
        ),
        lambda: find_levels(x_0, texts, recipe, schedule, prediction_type),
    )
    latents = yield from edit_masked(levels, mask.latent, texts, recipe, schedule, prediction_type)
    return Edit(latents, mask, difference)
