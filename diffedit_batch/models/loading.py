"""What loading any model has in common: number formats, and errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffedit_batch.config import CaptionsConfig, ModelConfig, PromptsConfig, ScoresConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.identity import ModelIdentity

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@contextmanager
def explained(
    config: ModelConfig | PromptsConfig | CaptionsConfig | ScoresConfig, identity: ModelIdentity
) -> Iterator[None]:
    """Turn what the libraries raise while they load a model into one ModelError."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise ModelError(
            f"cannot load model {config.id!r} ({_tried(config, identity)}): {_reason(error)}\n"
            f"  {_advice(identity)}"
        ) from error


@contextmanager
def tried_out(model_id: str, device: str) -> Iterator[None]:
    """Turn whatever goes wrong on first use into one ModelError: it would go wrong for every row,
    one worker after the other.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(f"model {model_id!r} does not fit on {device}: {error}") from error
    except Exception as error:
        raise ModelError(
            f"model {model_id!r} was loaded, but cannot be used: {_reason(error)}\n"
            "  Its parts do not fit together, or a file of tokenizer or config is missing."
        ) from error


def whole(model: Any, source: str, **options: Any) -> Any:
    """A model of a class of transformers with all of its weights. Left to itself, the library makes
    up those that are missing, and whatever is not this model loads as noise.

    Raises:
        ValueError: some are missing or have another shape.
    """
    loaded, found = model.from_pretrained(
        source,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    wrong = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"is no {model.__name__}: {len(wrong)} of its weights are missing or have another"
            f" shape, e.g. {wrong[0]}"
        )
    return loaded


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _tried(
    config: ModelConfig | PromptsConfig | CaptionsConfig | ScoresConfig, identity: ModelIdentity
) -> str:
    if identity.is_folder:
        return f"folder {identity.source}, safetensors only"
    variant = f", variant {config.variant or 'none'}" if isinstance(config, ModelConfig) else ""
    return (
        f"hub, revision {config.revision or 'main'}{variant},"
        f" safetensors only{', offline' if config.local_files_only else ''}"
    )


def _advice(identity: ModelIdentity) -> str:
    if identity.is_folder:
        return "Check that the folder is whole, as `save_pretrained` writes it."
    return (
        "Check the id, that this machine reaches the hub or has it in its cache"
        " (`hf download ID`), or set the id to a local folder. Gated models need `hf auth login`."
    )
