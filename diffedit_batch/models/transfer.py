"""Tensors between host and device, without either waiting for the other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Tensors on their way to the host; on a CPU they are there at once.

    Args:
        tensors: by any names, all on one device.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # From a GPU these are copies in pinned memory, which are filled while we go on.
        self._tensors = {name: t.to("cpu", non_blocking=True) for name, t in tensors.items()}
        device = next(iter(tensors.values())).device
        self._arrival: Any = None
        if device.type == "cuda":
            self._arrival = torch.cuda.current_stream(device).record_event()

    @property
    def is_here(self) -> bool:
        """Whether `wait` returns at once."""
        return self._arrival is None or bool(self._arrival.query())

    def wait(self) -> dict[str, Tensor]:
        """The tensors on the host, by their names."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._tensors


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor in memory from which a GPU reads by itself; as it is where there is none."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, at the latest when the device comes to use it."""
    return pinned(tensor, device).to(device, non_blocking=True)
