"""The safety checker that some diffusion models bring along.

Legend: B pictures, S side of the square that the checker looks at.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import (
    StableDiffusionSafetyChecker,
    cosine_distance,
)
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPImageProcessorPil

from diffedit_batch.config import ModelConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.hub import fetch
from diffedit_batch.models.identity import identify_safety_checker
from diffedit_batch.models.loading import explained, tried_out, whole
from diffedit_batch.models.transfer import pinned, to_device

Picture = NDArray[np.uint8]

_STRICTER = 0.01
"""By how much all thresholds are lower for a picture that comes near a special concept."""


class SafetyChecker:
    """A loaded safety checker, in full precision: its thresholds are to three decimals.

    Args:
        checker: the network, with its concepts and their thresholds.
        processor: what prepares pictures for it.
    """

    def __init__(self, checker: Any, processor: Any) -> None:
        self._checker, self._processor = checker.eval(), processor
        self.device: torch.device = checker.device

    @classmethod
    def load(cls, config: ModelConfig, device: str) -> "SafetyChecker":
        """That of the configured diffusion model, on `device` (`cuda`, `cuda:1`, `cpu`).

        Raises:
            ModelError: it has none, or it cannot be loaded or used.
        """
        identity = identify_safety_checker(config)
        weights = f"model.{config.variant}.safetensors" if config.variant else "model.safetensors"
        files = partial(
            snapshot_download,
            identity.source,
            allow_patterns=[
                "feature_extractor/*.json",
                "safety_checker/config.json",
                f"safety_checker/{weights}",
            ],
        )
        try:
            with explained(config, identity):
                folder = fetch(config, identity, files)
                processor = CLIPImageProcessorPil.from_pretrained(
                    folder, subfolder="feature_extractor"
                )
                network = whole(
                    StableDiffusionSafetyChecker,
                    folder,
                    subfolder="safety_checker",
                    variant=config.variant,
                    dtype=torch.float32,
                )
        except ModelError as error:
            raise ModelError(
                f"safety.policy needs the model's safety checker: {error}\n"
                "  A model without one needs safety.policy: off."
            ) from error
        checker = cls(network.to(device), processor)
        with tried_out(f"{config.id} (safety checker)", device):
            checker.find_flagged(checker.prepare(np.zeros((8, 8, 3), np.uint8))[None])
        return checker

    def prepare(self, picture: Picture) -> Tensor:
        """A picture, uint8 (H, W, 3), as the checker takes it: (3, S, S) of its middle. Any thread
        may do it.
        """
        pixels: Tensor = self._processor(picture, return_tensors="pt").pixel_values[0]
        return pinned(pixels, self.device)

    @torch.no_grad()
    def find_flagged(self, pixels: Tensor) -> Tensor:
        """Which of prepared pictures (B, 3, S, S) are flagged, (B,) bool.

        The rule of the checker itself, which would make the host wait for the device, paint flagged
        pictures black and warn of each.
        """
        checker = self._checker
        features = checker.vision_model(to_device(pixels, self.device)).pooler_output
        vectors = checker.visual_projection(features)

        def excess(concepts: Tensor, thresholds: Tensor) -> Tensor:
            cosines: Tensor = cosine_distance(vectors, concepts)
            return cosines - thresholds

        special = excess(checker.special_care_embeds, checker.special_care_embeds_weights)
        is_near = (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        plain = excess(checker.concept_embeds, checker.concept_embeds_weights)
        is_like = (plain + _STRICTER * is_near).round(decimals=3) > 0
        is_flagged: Tensor = is_like.any(dim=1)
        return is_flagged
