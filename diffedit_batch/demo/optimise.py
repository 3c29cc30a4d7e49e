"""The training loop, shared by all networks of the demo.

Batches are functions of seed, step and share, and checkpoints are kept, so a run that was stopped
continues as if it had not been. Small networks use several processor cores badly: threads that each
take a share of the batch, and one core, are half as fast again.
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

logger = logging.getLogger(__name__)

_WEIGHT_DECAY = 1e-4
_SMALLEST_MATRIX = 64
_AVERAGE_DECAY = 0.999
_WARM_UP_SHARE = 0.04
_LINE_EVERY = 50
_SAVE_EVERY_SECONDS = 180.0


@dataclass(frozen=True)
class Stage:
    """How a network is trained: by `shares` threads, each with an equal share of the batch.

    Muon (https://kellerjordan.github.io/posts/muon/) takes the large matrices and kernels if it is
    used, AdamW all else; both move weights by about as much at the same learning rate.
    """

    steps: int
    batch_size: int
    learning_rate: float
    uses_muon: bool = False
    shares: int = 1


def optimise(
    network: nn.Module,
    loss_of: Callable[[np.random.Generator, int], Tensor],
    stage: Stage,
    checkpoint: Path,
    seed: int,
    on_save: Callable[[nn.Module], None] = lambda average: None,
) -> nn.Module:
    """Train a network in place, and return the running average of its weights.

    Args:
        network: What is trained.
        loss_of: The loss of a batch of a given size that is drawn by a given generator.
        stage: Steps and learning rate.
        checkpoint: File to continue from, rewritten every few minutes.
        seed: Seed of all batches.
        on_save: Called after every checkpoint with the running average.
    """
    update: Any = get_ema_multi_avg_fn(_AVERAGE_DECAY)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=update)
    kernels = _large_kernels(network) if stage.uses_muon else {}
    optimizers = _build_optimizers(network, kernels, stage.shares)
    parameters = list(network.parameters())
    parts: dict[str, Any] = {"network": network, "average": average}
    parts |= {f"optimizer_{number}": optimizer for number, optimizer in enumerate(optimizers)}
    first = _restore(checkpoint, parts) if checkpoint.exists() else 0
    started = saved = time.monotonic()
    losses: list[float] = []
    for step in range(first, stage.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * _one_cycle(step / stage.steps)
        losses.append(_set_gradients(parameters, loss_of, stage, (seed, step)))
        nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
        for parameter, matrix in kernels.items():
            assert parameter.grad is not None
            matrix.grad = _as_matrix(parameter.grad)
        with ThreadPoolExecutor(stage.shares) as pool:
            list(pool.map(lambda optimizer: optimizer.step(), optimizers))
        average.update_parameters(network)
        now, done = time.monotonic(), step + 1
        if len(losses) == _LINE_EVERY:
            numbers = (done, stage.steps, float(np.mean(losses)), (now - started) / (done - first))
            logger.info("%s: step %d of %d, loss %.4f, %.2f s a step", checkpoint.stem, *numbers)
            losses.clear()
        if now - saved > _SAVE_EVERY_SECONDS or done == stage.steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            write_whole(checkpoint, {"step": done, **states})
            on_save(average.module)
            saved = now
    return average.module


def _large_kernels(network: nn.Module) -> dict[Tensor, nn.Parameter]:
    """Return weights of the larger layers, each with a matrix (out, in) in the same memory."""
    weights = [
        module.weight
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and min(module.weight.flatten(1).shape) >= _SMALLEST_MATRIX
    ]
    return {weight: nn.Parameter(_as_matrix(weight.data)) for weight in weights}


def _as_matrix(kernel: Tensor) -> Tensor:
    """Return a view (out, in) of a kernel (out, in, ...); columns stand as they lie in memory."""
    if not kernel.is_contiguous():  # channels last
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.view(len(kernel), -1)


def _build_optimizers(
    network: nn.Module, kernels: dict[Tensor, nn.Parameter], num_threads: int
) -> list[torch.optim.Optimizer]:
    """Return AdamW for all that is no kernel, and Muon for kernels, one for every thread."""
    others = [parameter for parameter in network.parameters() if parameter not in kernels]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, weight_decay=_WEIGHT_DECAY, fused=True)
    ]
    matrices = sorted(kernels.values(), key=Tensor.numel)
    for number in range(num_threads if kernels else 0):
        optimizers.append(
            torch.optim.Muon(
                matrices[number::num_threads],
                weight_decay=_WEIGHT_DECAY,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def _set_gradients(
    parameters: list[nn.Parameter],
    loss_of: Callable[[np.random.Generator, int], Tensor],
    stage: Stage,
    seed: tuple[int, int],
) -> float:
    """Leave the gradient of a batch in the parameters and return its loss."""

    def differentiate(share: int) -> tuple[float, tuple[Tensor, ...]]:
        generator = np.random.default_rng((*seed, share))
        loss = loss_of(generator, stage.batch_size // stage.shares)
        return loss.item(), torch.autograd.grad(loss, parameters)

    with ThreadPoolExecutor(stage.shares) as pool:
        losses, gradients = zip(*pool.map(differentiate, range(stage.shares)), strict=True)
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        # A fused optimizer takes for granted that gradients lie in memory as their parameters do.
        parameter.grad = torch.empty_like(parameter).copy_(sum(parts) / len(parts))
    return float(np.mean(losses))


def _one_cycle(progress: float) -> float:
    """Return the share of the learning rate at a progress in [0, 1]: a rise, then a cosine."""
    if progress < _WARM_UP_SHARE:
        return 0.02 + 0.98 * progress / _WARM_UP_SHARE
    decay = (progress - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE)
    return 0.005 + 0.995 * (1 + math.cos(math.pi * decay)) / 2


def _restore(checkpoint: Path, parts: dict[str, Any]) -> int:
    """Load a checkpoint into its parts and return the number of steps that were done."""
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    logger.info("%s: continues at step %d", checkpoint.stem, state["step"])
    return int(state["step"])


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a file so that it is at every moment the old or the new one, whole."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)
