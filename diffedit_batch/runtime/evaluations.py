"""What a request costs, counted without a model."""

from dataclasses import replace
from typing import Any

from diffedit_batch.schema import EditRequest


def with_stand_ins(request: EditRequest) -> EditRequest:
    """The request with something in place of every text that is still to be generated: equal where
    the texts will be equal, which is all that counts here.
    """
    caption = request.caption
    if request.edit.caption_with == "blip" and not caption:
        caption = ("a caption",)
    return replace(
        request,
        source_prompt=request.source_prompt or (f"about {request.source_concept}",),
        target_prompt=request.target_prompt or (f"about {request.target_concept}",),
        caption=caption,
    )


def count_evals(request: EditRequest, shared: set[Any]) -> int:
    """Network evaluations of one row, of all its seeds, beyond what earlier rows of its group
    already paid for.

    `shared` collects what they paid for, by what `core.diffedit` asks for once.
    """
    candidates = request.candidates(has_mask=request.mask is not None)
    return sum(_count_evals(candidate, shared) for candidate in candidates)


def _count_evals(request: EditRequest, shared: set[Any]) -> int:
    if request.source_prompt == request.target_prompt:
        return 0
    edit = request.edit
    is_reference = edit.preset == "diffusers"
    top = int(edit.num_inference_steps * edit.inpaint_strength)
    inversion_scale = edit.inversion_guidance_scale or 1.0
    count = top * (1 if edit.guidance_scale == 1 else 2)
    inversion = (
        "inversion",
        request.inversion_text,
        inversion_scale,
        edit.inversion_timestep,
        request.seed if is_reference else None,
        edit.num_inference_steps,
        top,
    )
    if inversion not in shared:
        shared.add(inversion)
        count += top * (1 if inversion_scale == 1 else 2)
    if request.mask is not None:
        return count
    cancels = request.source_negative_text == request.negative_text or edit.guidance_scale == 1
    half = edit.num_maps_per_mask * (1 if cancels else 2)
    level = int(edit.num_inference_steps * (edit.mask_encode_strength or 0.0))
    source = (
        "source",
        request.source_prompt,
        None if cancels else (request.source_negative_text, edit.guidance_scale),
        request.seed,
        edit.num_maps_per_mask,
        is_reference,
        edit.num_inference_steps,
        level,
    )
    if source not in shared:
        shared.add(source)
        count += half
    return count + half
