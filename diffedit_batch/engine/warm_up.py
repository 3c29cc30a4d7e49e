"""What is found out about a device before the first row: how much it takes, and how."""

import logging
from typing import Literal

import torch

from diffedit_batch.errors import ModelError
from diffedit_batch.models.components import Components

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 64
"""Larger calls are no faster, and every row in flight is one that a dead worker did in vain."""

_CELLS_PER_CALL = {"cuda": 64 * 64 * 64, "cpu": 64 * 16 * 16}
"""Latent cells that keep a device busy: on any GPU 64 evaluations at 512 px, 28 at 768. On two CPU
cores 64 of the embedded model take 3.9 ms each, 16 take 5.5, 4 take 13.7.
"""


def find_batch_size(model: Components) -> int:
    """Network evaluations in a full call on the model's device. Errors as of `largest_call`."""
    return largest_call(model) if _has_gpu(model) else _wanted(model, "cpu")


def largest_call(model: Components) -> int:
    """Evaluations that keep a GPU busy at the model's resolution, or what of that fits, tried out.

    Raises:
        ModelError: not even one fits.
    """
    size = _wanted(model, "cuda")
    while not _fits(model, size):
        if size == 1:
            raise ModelError(
                f"not one network evaluation at {model.resolution} px fits on {model.device}; lower"
                " model.resolution, or try model.enable_attention_slicing"
            )
        size //= 2
    return size


def compile_network(model: Components, batch_size: int, mode: Literal["auto", "full"]) -> None:
    """Compile full calls, and the one of the model's own resolution at once.

    `auto` compiles on a GPU, and goes on without where that fails.

    Raises:
        ModelError: `full` was asked for, and it cannot be had.
    """
    if mode == "auto" and not _has_gpu(model):
        return
    model.network.compile(batch_size)
    try:
        _call(model, batch_size)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        if mode == "full":
            raise ModelError(
                f"the network cannot be compiled: {reason}\n  A C++ compiler is needed, on a GPU"
                " also Triton. engine.compile: off does without."
            ) from error
        logger.warning("the network cannot be compiled and runs without: %s", reason)
        model.network.run_eagerly()


def _wanted(model: Components, device: Literal["cuda", "cpu"]) -> int:
    """Evaluations that keep such a device busy at the model's resolution."""
    cells = (model.resolution // model.vae_scale_factor) ** 2
    return max(1, min(MAX_BATCH_SIZE, _CELLS_PER_CALL[device] // cells))


def _has_gpu(model: Components) -> bool:
    return model.device.type == "cuda"


def _fits(model: Components, num_evals: int) -> bool:
    """Whether a call of so many evaluations at the model's resolution fits the device."""
    try:
        _call(model, num_evals)
    except torch.OutOfMemoryError:
        is_fitting = False
    else:
        is_fitting = True
    # After the handler is left: its traceback keeps what did not fit alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return is_fitting


def _call(model: Components, num_evals: int) -> None:
    """Call the network as the batcher does, at the model's resolution, with nothing in it."""
    side = model.resolution // model.vae_scale_factor
    states = model.text(("",)).states
    model.predict(
        torch.zeros(num_evals, model.latent_channels, side, side, device=model.device),
        torch.ones(num_evals, dtype=torch.long, device=model.device),
        torch.stack([states] * num_evals),
    )
    if torch.cuda.is_available():
        torch.cuda.synchronize()
