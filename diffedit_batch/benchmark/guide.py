"""What people use today: diffusers' DiffEdit pipeline, as its guide writes it."""

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    StableDiffusionDiffEditPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffedit_batch.config import EditConfig
from diffedit_batch.engine.pixels import Picture


class Guide:
    """The guide's script over one model, without progress bars and safety checker.

    Args:
        parts: the model. Its very modules are used, but for those that are offloaded.
        is_offloaded: parts wait on the CPU until they are needed, as in the guide; else they stay
            where they are.

    Attributes:
        num_evals: network evaluations so far.
    """

    def __init__(self, parts: StableDiffusionPipeline, *, is_offloaded: bool = False) -> None:
        self.num_evals = 0
        modules = {"unet": parts.unet, "vae": parts.vae, "text_encoder": parts.text_encoder}
        if is_offloaded:
            modules = copy.deepcopy(modules)
        with warnings.catch_warnings():
            # That it is deprecated is the reason we only compare with it.
            warnings.simplefilter("ignore")
            pipeline = StableDiffusionDiffEditPipeline(
                **modules,
                tokenizer=parts.tokenizer,
                scheduler=DDIMScheduler.from_config(parts.scheduler.config),
                inverse_scheduler=DDIMInverseScheduler.from_config(parts.scheduler.config),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        if is_offloaded:
            pipeline.enable_model_cpu_offload()
            pipeline.vae.enable_slicing()
        self._pipeline = pipeline
        self._hook = pipeline.unet.register_forward_pre_hook(self._count)

    def close(self) -> None:
        """Leave the shared modules as they were."""
        self._hook.remove()

    def edit(
        self, pictures: Sequence[Picture], sources: list[str], targets: list[str], edit: EditConfig
    ) -> list[Picture]:
        """The edited pictures; several go through the pipeline as one batch."""
        images = [Image.fromarray(picture) for picture in pictures]
        common = {
            "num_inference_steps": edit.num_inference_steps,
            "guidance_scale": edit.guidance_scale,
        }
        mask = self._pipeline.generate_mask(
            image=images,
            source_prompt=sources,
            target_prompt=targets,
            num_maps_per_mask=edit.num_maps_per_mask,
            mask_encode_strength=edit.mask_encode_strength,
            mask_thresholding_ratio=edit.mask_thresholding_ratio,
            **common,
        )
        inverted = self._pipeline.invert(
            prompt=sources, image=images, inpaint_strength=edit.inpaint_strength, **common
        ).latents
        edited = self._pipeline(
            prompt=targets,
            negative_prompt=sources,
            mask_image=mask,
            image_latents=inverted,
            inpaint_strength=edit.inpaint_strength,
            **common,
        ).images
        return [np.asarray(one) for one in edited]

    def find_masks(
        self,
        x_0: Tensor,
        source: Tensor,
        target: Tensor,
        empty: Tensor,
        edit: EditConfig,
        seed: int,
    ) -> NDArray[np.bool_]:
        """Masks (B, h, w) of clean latents (B, C, h, w), under texts (B, L, D).

        The mask's noise is drawn from the seed, for all pictures at once.
        """
        mask = self._pipeline.generate_mask(
            image=x_0,
            source_prompt_embeds=source,
            target_prompt_embeds=target,
            source_negative_prompt_embeds=empty,
            target_negative_prompt_embeds=empty,
            num_maps_per_mask=edit.num_maps_per_mask,
            mask_encode_strength=edit.mask_encode_strength,
            mask_thresholding_ratio=edit.mask_thresholding_ratio,
            num_inference_steps=edit.num_inference_steps,
            guidance_scale=edit.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
        )
        found: NDArray[np.bool_] = mask == 1
        return found

    def edit_latents(
        self,
        x_0: Tensor,
        masks: NDArray[np.bool_],
        source: Tensor,
        target: Tensor,
        empty: Tensor,
        edit: EditConfig,
    ) -> Tensor:
        """Edited latents (B, C, h, w) under given masks."""
        common = {
            "num_inference_steps": edit.num_inference_steps,
            "guidance_scale": edit.guidance_scale,
            "inpaint_strength": edit.inpaint_strength,
        }
        inverted = self._pipeline.invert(
            image=x_0, prompt_embeds=source, negative_prompt_embeds=empty, **common
        ).latents
        latents: Tensor = self._pipeline(
            prompt_embeds=target,
            negative_prompt_embeds=source,
            mask_image=torch.from_numpy(masks.astype(np.float32)),
            image_latents=inverted,
            output_type="latent",
            **common,
        ).images
        return latents

    def _count(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.num_evals += len(inputs[0])
