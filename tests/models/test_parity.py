"""Preset `diffusers` against the reference implementation, on tiny real components, batch 1,
fp32."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acts import drive
from diffusers import DDIMInverseScheduler, StableDiffusionDiffEditPipeline, StableDiffusionPipeline

from diffedit_batch.config import EditConfig
from diffedit_batch.core.acts import Edit, Evaluate, Recipe, Text, Texts
from diffedit_batch.core.diffedit import edit_row
from diffedit_batch.models.components import Components

STEPS = 50


def reference_pipeline(folder: Path) -> Any:
    parts = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    with warnings.catch_warnings():
        # That it is deprecated is the reason we only compare with it.
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionDiffEditPipeline(
            vae=parts.vae,
            unet=parts.unet,
            text_encoder=None,
            tokenizer=None,
            scheduler=parts.scheduler,
            inverse_scheduler=DDIMInverseScheduler.from_config(parts.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def compare(
    folder: Path, model: Components, *, strength: float = 0.8, negatives: bool = False
) -> tuple[Edit, np.ndarray[Any, Any], torch.Tensor, list[Evaluate]]:
    """Our edit, the reference's mask and latents, and our wishes, all from the same tensors."""
    generator = torch.Generator().manual_seed(7)
    x_0 = torch.randn(4, 8, 8, generator=generator)
    shape = (24, 16)
    source, target, empty, source_negative = torch.randn(4, *shape, generator=generator)
    pipeline = reference_pipeline(folder)
    source_empty = source_negative if negatives else empty
    mask = pipeline.generate_mask(
        image=x_0[None],
        source_prompt_embeds=source[None],
        target_prompt_embeds=target[None],
        source_negative_prompt_embeds=source_empty[None],
        target_negative_prompt_embeds=empty[None],
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    )
    inverted = pipeline.invert(
        image=x_0[None],
        prompt_embeds=source[None],
        negative_prompt_embeds=empty[None],
        inpaint_strength=strength,
        num_inference_steps=STEPS,
    ).latents
    latents = pipeline(
        prompt_embeds=target[None],
        negative_prompt_embeds=source[None],
        mask_image=torch.from_numpy(mask.astype(np.float32)).clone(),
        image_latents=inverted,
        inpaint_strength=strength,
        num_inference_steps=STEPS,
        output_type="latent",
    ).images
    edit = EditConfig(preset="diffusers", inpaint_strength=strength).resolved()
    names = Recipe.__dataclass_fields__.keys() & EditConfig.model_fields.keys()
    recipe = Recipe(**{name: getattr(edit, name) for name in names}, is_reference=True)
    texts = Texts(
        source=Text("source", source),
        target=Text("target", target),
        inversion=Text("source", source),
        negative=Text("source", source),
        inversion_negative=Text("empty", empty),
        source_mask_negative=Text("other" if negatives else "empty", source_empty),
        target_mask_negative=Text("empty", empty),
    )
    noise = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    log: list[Evaluate] = []
    ours = drive(
        edit_row(
            x_0,
            noise,
            texts,
            recipe,
            model.schedule(STEPS),
            picture=torch.zeros(3, 64, 64),
            prediction_type=model.prediction_type,
            vae_scale_factor=model.vae_scale_factor,
        ),
        model.predict,
        log,
    )
    return ours, mask[0], latents[0], log


@pytest.mark.parametrize("strength", [0.8, 0.55, 1.0])
def test_masks_are_equal_and_latents_agree(
    tiny_model: Path, tiny: Components, strength: float
) -> None:
    ours, mask, latents, log = compare(tiny_model, tiny, strength=strength)
    assert 0 < mask.mean() < 1
    assert np.array_equal(ours.mask.latent.numpy(), mask == 1)
    torch.testing.assert_close(ours.latents, latents, atol=1e-5, rtol=0)
    assert sum(len(wish.texts) for wish in log) == 20 + 4 * int(STEPS * strength)


def test_v_prediction_agrees_too(tiny_v_model: Path, tiny_v: Components) -> None:
    ours, mask, latents, _ = compare(tiny_v_model, tiny_v)
    assert tiny_v.prediction_type == "v_prediction"
    assert np.array_equal(ours.mask.latent.numpy(), mask == 1)
    torch.testing.assert_close(ours.latents, latents, atol=1e-5, rtol=0)


def test_different_negatives_follow_the_reference_in_its_swap(
    tiny_model: Path, tiny: Components
) -> None:
    ours, mask, _, log = compare(tiny_model, tiny, negatives=True)
    assert np.array_equal(ours.mask.latent.numpy(), mask == 1)
    assert sum(len(wish.texts) for wish in log) == 40 + 160
