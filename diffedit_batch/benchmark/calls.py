"""One network call, as the batcher makes it, timed at any size."""

from typing import Any

import torch

from diffedit_batch.benchmark.ceilings import Ceilings
from diffedit_batch.benchmark.subject import Subject, make_editor
from diffedit_batch.benchmark.timing import (
    Spread,
    peak_memory_gb,
    reset_peak_memory,
    seconds_of,
)
from diffedit_batch.errors import ModelError, RowError

DOES_NOT_FIT = "does not fit in memory"

_SECONDS_OF_A_REPEAT = 0.5
_MAX_CALLS = 50


class Call:
    """Network calls of one size: random latents, each at a timestep of its own.

    Args:
        subject: the model.
        size: evaluations in a call.
    """

    def __init__(self, subject: Subject, size: int) -> None:
        self._subject = subject
        model, device = subject.components, subject.device
        side = model.resolution // model.vae_scale_factor
        self._latents = torch.randn(size, model.latent_channels, side, side, device=device)
        self._timesteps = torch.linspace(1, 981, size, device=device).long()
        text = model.text(("a red circle on grass",)).states
        self._states = text.expand(size, *text.shape).contiguous()

    def __call__(self) -> torch.Tensor:
        """The outputs of the network."""
        return self._subject.components.predict(self._latents, self._timesteps, self._states)


def problem_of(error: Exception) -> str:
    """What a row says that could not be measured."""
    is_memory = any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__cause__))
    if is_memory or (isinstance(error, RowError) and error.kind == "OutOfMemory"):
        return DOES_NOT_FIT
    return " ".join(str(error).split())


def time_call(subject: Subject, size: int, ceilings: Ceilings, repeats: int) -> dict[str, Any]:
    """What calls of a size cost, as a row; where the size does not fit, a row that says so."""
    reset_peak_memory(subject.device)
    row: dict[str, Any] = {"call_size": size}
    try:
        call = Call(subject, size)

        def call_first() -> None:
            make_editor(subject, size)
            call()

        first_s = seconds_of(call_first, subject.device)
        is_finite = bool(call().isfinite().all())
        again_s = seconds_of(call, subject.device)
        num_calls = max(1, min(_MAX_CALLS, round(_SECONDS_OF_A_REPEAT / again_s)))

        def call_often() -> None:
            for _ in range(num_calls):
                call()

        seconds = Spread.of(seconds_of(call_often, subject.device) for _ in range(repeats))
    except (torch.OutOfMemoryError, ModelError) as error:
        return row | {"problem": problem_of(error)}
    num_evals = num_calls * size
    tflops = seconds.rate(num_evals * subject.flops.unet_eval / 1e12)
    return row | {
        "ms_per_evaluation": seconds.scaled(1e3 / num_evals),
        "tflops": tflops,
        "mfu": tflops.scaled(1 / ceilings.matmul_tflops.median),
        "first_call_s": first_s,
        "peak_memory_gb": peak_memory_gb(subject.device),
        "problem": None if is_finite else "outputs are not finite",
    }
