"""Seconds that mean something: repeated, and not before the device is done."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from diffedit_batch.errors import ConfigError


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of at least one value."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def scaled(self, factor: float) -> "Spread":
        """Every value times a positive factor."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def rate(self, count: float) -> "Spread":
        """How many a second, of `count` things that took so many seconds."""
        return Spread(count / self.median, count / self.high, count / self.low)


def check_device(device: str) -> None:
    """Raises ConfigError where there is no such device."""
    if device == "cpu":
        return
    if device != "cuda":
        raise ConfigError(f"device {device!r}", ["choose from cuda, cpu"])
    if not torch.cuda.is_available():
        raise ConfigError("device 'cuda'", ["torch sees no CUDA device here; choose cpu"])


def seconds_of(use: Callable[[], Any], device: str) -> float:
    """Seconds until a device has done all that `use` asks of it."""
    wait_for(device)
    started = time.perf_counter()
    use()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: str) -> None:
    """Return when the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def free_memory() -> None:
    """Give back what nobody holds any more, for other processes too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: str) -> None:
    """Begin a new peak; of a CPU process there is only one, from its start."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb(device: str) -> float:
    """Largest memory in 10^9 bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
