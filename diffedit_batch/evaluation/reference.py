"""The reference implementation as it ships, for comparison only: diffusers' DiffEdit pipeline."""

import warnings
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline
from PIL import Image

from diffedit_batch.config import EditConfig
from diffedit_batch.demo.scenes import ImageArray, MaskArray
from diffedit_batch.engine.pixels import resize, resize_mask
from diffedit_batch.evaluation.items import Item


class ReferencePipeline:
    """`StableDiffusionDiffEditPipeline`, one picture at a time, used as its guide says.

    Attributes:
        num_evals: network evaluations so far.
    """

    def __init__(self, source: str, device: str) -> None:
        self.num_evals = 0
        with warnings.catch_warnings():
            # That it is deprecated is the reason we only compare with it.
            warnings.simplefilter("ignore")
            pipeline: Any = StableDiffusionDiffEditPipeline.from_pretrained(
                source,
                inverse_scheduler=DDIMInverseScheduler.from_pretrained(
                    source, subfolder="scheduler"
                ),
                scheduler=DDIMScheduler.from_pretrained(source, subfolder="scheduler"),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.unet.register_forward_pre_hook(self._count)
        self._pipeline = pipeline.to(device)

    def edit(self, item: Item, edit: EditConfig, resolution: int) -> tuple[ImageArray, MaskArray]:
        """The edited picture and the mask, (128, 128)."""
        picture = Image.fromarray(resize(item.source, (resolution, resolution)))
        # One stream for all that is drawn for the item, whatever was edited before it.
        generator = torch.Generator("cpu").manual_seed(item.seed)
        common = {
            "num_inference_steps": edit.num_inference_steps,
            "guidance_scale": edit.guidance_scale,
            "generator": generator,
        }
        mask = self._pipeline.generate_mask(
            image=picture,
            source_prompt=item.source_prompt,
            target_prompt=item.target_prompt,
            num_maps_per_mask=edit.num_maps_per_mask,
            mask_encode_strength=edit.mask_encode_strength,
            mask_thresholding_ratio=edit.mask_thresholding_ratio,
            **common,
        )
        inverted = self._pipeline.invert(
            prompt=item.source_prompt,
            image=picture,
            inpaint_strength=edit.inpaint_strength,
            **common,
        ).latents
        [edited] = self._pipeline(
            prompt=item.target_prompt,
            negative_prompt=item.source_prompt,
            # It binarises the mask it is given in place.
            mask_image=mask.copy(),
            image_latents=inverted,
            inpaint_strength=edit.inpaint_strength,
            **common,
        ).images
        factor = self._pipeline.vae_scale_factor
        pixels = mask[0].repeat(factor, 0).repeat(factor, 1) == 1
        size = (item.source.shape[1], item.source.shape[0])
        return resize(np.asarray(edited), size), resize_mask(pixels, size)

    def _count(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.num_evals += len(inputs[0])
