"""Captions of images, written by BLIP (Li et al., arXiv 2201.12086)."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from transformers import BlipForConditionalGeneration, BlipProcessor

from diffedit_batch.config import CaptionsConfig
from diffedit_batch.errors import RowError
from diffedit_batch.models.hub import SINGLE_MODEL, fetch
from diffedit_batch.models.identity import identify_captioner
from diffedit_batch.models.loading import DTYPES, explained, tried_out
from diffedit_batch.models.prompts import cuda_devices, is_degenerate

Picture = NDArray[np.uint8]


class Captioner:
    """Captions pictures in batches.

    Not for several threads at once: a second attempt goes through torch's global random state.

    Args:
        model: a BLIP that captions.
        processor: its image processor and tokenizer.
        config: how captions begin, how long they may be, how many pictures a call takes.
    """

    def __init__(self, model: Any, processor: Any, config: CaptionsConfig) -> None:
        self._model, self._processor = model.eval(), processor
        self._config = config

    @classmethod
    def load(cls, config: CaptionsConfig, device: str) -> "Captioner":
        """The configured model on `device` (`cuda`, `cpu`).

        Raises:
            ModelError: it cannot be loaded or used; says what was tried and what to do.
        """
        identity = identify_captioner(config)
        where = {"revision": config.revision or "main", "local_files_only": config.local_files_only}
        with explained(config, identity):
            files = partial(snapshot_download, identity.source, allow_patterns=SINGLE_MODEL)
            fetch(config, identity, files)
            # Not torchvision's where that happens to be: it rounds differently, and words change.
            processor = BlipProcessor.from_pretrained(identity.source, backend="pil", **where)
            model = BlipForConditionalGeneration.from_pretrained(
                identity.source,
                dtype=DTYPES[config.dtype or ("float32" if device == "cpu" else "float16")],
                use_safetensors=True,
                **where,
            )
        captioner = cls(model.to(device), processor, config)
        with tried_out(f"{config.id} (captions.batch_size {config.batch_size})", device):
            captioner._generate([np.zeros((8, 8, 3), np.uint8)] * config.batch_size)
        return captioner

    def caption(self, pictures: Sequence[Picture]) -> list[str | RowError]:
        """The caption of each picture, uint8 (H, W, 3) of any sizes; it depends on nothing else.

        Where a caption is blank or says nothing but the prefix, a second one is sampled; where that
        is no better, a RowError of stage `captions` stands in its place.
        """
        found: list[str | RowError] = []
        size = self._config.batch_size
        for start in range(0, len(pictures), size):
            batch = list(pictures[start : start + size])
            # Calls of one size: kernels of other sizes round differently, and words would change.
            padded = batch + [batch[-1]] * (size - len(batch))
            captions = self._generate(padded)[: len(batch)]
            for picture, caption in zip(batch, captions, strict=True):
                is_bad = is_degenerate(caption, self._config.prefix)
                found.append(self._try_again(picture) if is_bad else caption)
        return found

    def _try_again(self, picture: Picture) -> str | RowError:
        seed = int.from_bytes(hashlib.sha256(picture.tobytes()).digest()[:8], "big") >> 1
        with torch.random.fork_rng(devices=cuda_devices(self._model)):
            torch.manual_seed(seed)
            [caption] = self._generate([picture], do_sample=True)
        if not is_degenerate(caption, self._config.prefix):
            return caption
        return RowError(
            "captions",
            "DegenerateCaption",
            f"the caption generated twice says nothing: {caption[:80]!r}; write one into the"
            " manifest's caption column, or set edit.caption_with to source_prompt",
        )

    @torch.no_grad()
    def _generate(self, pictures: Sequence[Picture], do_sample: bool = False) -> list[str]:
        inputs = self._processor(
            images=list(pictures), text=[self._config.prefix] * len(pictures), return_tensors="pt"
        ).to(self._model.device, self._model.dtype)
        tokens = self._model.generate(
            pixel_values=inputs.pixel_values,
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=do_sample,
            num_beams=1,
            max_new_tokens=self._config.max_new_tokens,
        )
        texts: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]
