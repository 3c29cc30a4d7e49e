"""CLIP (Radford et al., arXiv 2103.00020): pictures and texts as vectors that can be compared.

Legend: B pictures, S side of the square that CLIP looks at, D width of the vectors.
"""

import functools
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffedit_batch.config import ScoresConfig
from diffedit_batch.models.hub import SINGLE_MODEL, fetch
from diffedit_batch.models.identity import identify_clip
from diffedit_batch.models.loading import explained, tried_out, whole
from diffedit_batch.models.transfer import pinned, to_device

Picture = NDArray[np.uint8]

_MAX_CACHED_TEXTS = 1024


class Clip:
    """A loaded CLIP.

    In full precision: a direction is the difference of two vectors that are nearly equal, and in
    half precision most of it would be rounding. Beside an edit it costs nothing.

    Args:
        model: a CLIP with both towers.
        processor: its image processor.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self._model, self._processor, self._tokenizer = model.eval(), processor, tokenizer
        self.device: torch.device = model.device
        self.text = functools.lru_cache(_MAX_CACHED_TEXTS)(self._encode_texts)

    @classmethod
    def load(cls, config: ScoresConfig, device: str) -> "Clip":
        """The configured model on `device` (`cuda`, `cuda:1`, `cpu`).

        Raises:
            ModelError: it cannot be loaded or used; says what was tried and what to do.
        """
        identity = identify_clip(config)
        with explained(config, identity):
            files = functools.partial(
                snapshot_download, identity.source, allow_patterns=SINGLE_MODEL
            )
            folder = fetch(config, identity, files)
            processor = CLIPImageProcessorPil.from_pretrained(folder)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            model = whole(CLIPModel, folder, dtype=torch.float32)
        clip = cls(model.to(device), processor, tokenizer)
        with tried_out(config.id, device):
            clip.encode(clip.prepare(np.zeros((8, 8, 3), np.uint8))[None])
            clip.text(("a",))
        return clip

    def prepare(self, picture: Picture) -> Tensor:
        """A picture, uint8 (H, W, 3), as CLIP takes it: (3, S, S) of its middle. Any thread may
        do it.
        """
        pixels: Tensor = self._processor(picture, return_tensors="pt").pixel_values[0]
        return pinned(pixels, self.device)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Vectors of length 1, (B, D), of prepared pictures (B, 3, S, S)."""
        features = self._model.get_image_features(to_device(pixels, self.device)).pooler_output
        return functional.normalize(features)

    @torch.no_grad()
    def _encode_texts(self, texts: tuple[str, ...]) -> Tensor:
        """The vector of length 1, (D,), of texts that stand for one: the mean of theirs. What is
        longer than CLIP reads is cut.
        """
        vectors = []
        for text in texts:
            # One at a time: a vector then never depends on which texts were encoded beside it.
            tokens = self._tokenizer(
                text,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            found = self._model.get_text_features(
                to_device(tokens.input_ids, self.device),
                attention_mask=to_device(tokens.attention_mask, self.device),
            )
            vectors.append(functional.normalize(found.pooler_output)[0])
        return functional.normalize(torch.stack(vectors).mean(dim=0), dim=0)
