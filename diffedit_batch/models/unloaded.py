"""What is known of a diffusion model that is not loaded, from those of its files that are on this
machine. Nothing is downloaded, and torch is not imported.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from diffedit_batch.config import ModelConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.identity import identify


class Sizing(NamedTuple):
    """The sizes a model edits at: about `resolution` squared pixels, sides multiples of
    `multiple`.
    """

    resolution: int
    multiple: int


def read_sizing(config: ModelConfig, size_multiple: int | None) -> Sizing:
    """What `Components` and `DiffEditor` take from the loaded model.

    Raises:
        ModelError: its configs are not on this machine.
    """
    folder = _folder(config)
    unet, vae = (_read_json(folder / part / "config.json") for part in ("unet", "vae"))
    try:
        vae_scale = 2 ** (len(vae["block_out_channels"]) - 1)
        unet_scale = 2 ** (len(unet["block_out_channels"]) - 1)
        resolution = config.resolution or unet["sample_size"] * vae_scale
    except (KeyError, TypeError) as error:
        raise ModelError(f"the configs in {folder} lack something: {error}") from None
    return Sizing(resolution, size_multiple or vae_scale * unet_scale)


class PromptReader:
    """The tokenizer of a model, without the model.

    Attributes:
        max_tokens: that the text encoder reads of a prompt, a first and a last one included.

    Raises:
        ModelError: the tokenizer is not on this machine.
    """

    def __init__(self, config: ModelConfig) -> None:
        from transformers import CLIPTokenizer

        folder = _folder(config) / "tokenizer"
        try:
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"the tokenizer in {folder} cannot be loaded: {reason}") from None
        self.max_tokens: int = self._tokenizer.model_max_length
        self.is_truncated = lru_cache(65_536)(self._is_truncated)

    def _is_truncated(self, prompt: str) -> bool:
        """Whether the text encoder would cut the prompt; as `Components.is_truncated`."""
        # Every token stands for a byte at least: few prompts need be cut up to be counted.
        if prompt.isascii() and len(prompt) <= self.max_tokens - 2:
            return False
        num_tokens = len(self._tokenizer(prompt, truncation=False, verbose=False).input_ids)
        return num_tokens > self.max_tokens


def _folder(config: ModelConfig) -> Path:
    """Where the files of the model are."""
    identity = identify(config)
    if identity.is_folder:
        return Path(identity.source)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(identity.source, "model_index.json", revision=config.revision)
    if not isinstance(found, str):
        raise ModelError(f"model {config.id!r} is not in the cache of this machine")
    return Path(found).parent


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    return found
