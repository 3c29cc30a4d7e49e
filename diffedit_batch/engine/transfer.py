"""Tensors between host and device, without either waiting for the other."""

from collections.abc import Iterable

import torch
from torch import Tensor


class HostCopy:
    """Tensors on their way to the host; on a CPU they are there at once.

    Args:
        tensors: all on one device.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        source = list(tensors)
        # From a GPU these are copies in pinned memory, which are filled while we go on.
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in source]
        self._arrival = torch.cuda.Event() if source[0].is_cuda else None
        if self._arrival is not None:
            self._arrival.record(torch.cuda.current_stream(source[0].device))

    @property
    def is_here(self) -> bool:
        """Whether `wait` returns at once."""
        return self._arrival is None or bool(self._arrival.query())

    def wait(self) -> list[Tensor]:
        """The tensors on the host."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._tensors


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor in memory from which `to_device` need not wait; itself where no GPU reads
    it.
    """
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A `pinned` tensor on the device, at the latest when the device comes to use it."""
    return tensor.to(device, non_blocking=True)
