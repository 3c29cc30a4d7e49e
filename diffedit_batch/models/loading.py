"""What loading any model has in common: number formats, phases, errors that say what to do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffedit_batch.errors import ModelError
from diffedit_batch.models.hub import AnyModelConfig, cannot_load
from diffedit_batch.models.identity import ModelIdentity

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add how long a part of a phase of the start took."""
    started = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started


@contextmanager
def explained(config: AnyModelConfig, identity: ModelIdentity) -> Iterator[None]:
    """Turn what the libraries raise while they load a model into one ModelError."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise cannot_load(config, identity, error) from error


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
