"""LPIPS (Zhang et al., arXiv 1801.03924): how different two pictures look.

Version 0.1 with AlexNet, as the package `lpips` has it. Its weights are enough here: for these five
convolutions the package wants torchvision, and a build of it that does not fit torch's breaks
transformers too.

Legend: B pairs of pictures, S side of the square they are compared in, C channels, h x w cells.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from diffedit_batch.config import ScoresConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.identity import SAVE_LPIPS, identify_lpips
from diffedit_batch.models.loading import tried_out
from diffedit_batch.models.transfer import pinned, to_device

Picture = NDArray[np.uint8]

_SIDE = 256
_EPSILON = 1e-10
"""Added to lengths, as the authors do."""


class _Layer(NamedTuple):
    """A convolution of AlexNet: its name in the file and the shape of its weight."""

    name: str
    shape: tuple[int, int, int, int]
    padding: int
    stride: int = 1
    follows_pooling: bool = False

    @property
    def num_channels(self) -> int:
        """C of what comes out."""
        return self.shape[0]


_LAYERS = (
    _Layer("net.slice1.0", (64, 3, 11, 11), padding=2, stride=4),
    _Layer("net.slice2.3", (192, 64, 5, 5), padding=2, follows_pooling=True),
    _Layer("net.slice3.6", (384, 192, 3, 3), padding=1, follows_pooling=True),
    _Layer("net.slice4.8", (256, 384, 3, 3), padding=1),
    _Layer("net.slice5.10", (256, 256, 3, 3), padding=1),
)
_SHIFT, _SCALE = "scaling_layer.shift", "scaling_layer.scale"
_HEADS = tuple(f"lin{number}.model.1.weight" for number in range(len(_LAYERS)))
_SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((_SHIFT, _SCALE), (1, 3, 1, 1)),
    **{f"{layer.name}.weight": layer.shape for layer in _LAYERS},
    **{f"{layer.name}.bias": (layer.num_channels,) for layer in _LAYERS},
    **{head: (1, layer.num_channels, 1, 1) for head, layer in zip(_HEADS, _LAYERS, strict=True)},
}


class Lpips:
    """A loaded LPIPS, in float32: it is a sum of small differences.

    Args:
        weights: by their names in the file, on the device.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self.device = weights[_SHIFT].device

    @classmethod
    def load(cls, config: ScoresConfig, device: str) -> "Lpips":
        """That of the configured file on `device` (`cuda`, `cuda:1`, `cpu`).

        Raises:
            ModelError: it cannot be loaded or used; says what to do.
        """
        identity = identify_lpips(config)
        try:
            found = load_file(identity.source)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"scores.lpips {identity.id!r} cannot be read: {error}\n  {SAVE_LPIPS}"
            ) from error
        wrong = [n for n, shape in _SHAPES.items() if n not in found or found[n].shape != shape]
        if wrong:
            raise ModelError(
                f"scores.lpips {identity.id!r} is no LPIPS with AlexNet: {len(wrong)} of its"
                f" weights are missing or have another shape, e.g. {wrong[0]}\n  {SAVE_LPIPS}"
            )
        lpips = cls({name: found[name].to(device, torch.float32) for name in _SHAPES})
        with tried_out(identity.id, device):
            grey = np.full((8, 8, 3), 128, np.uint8)
            lpips.distances(lpips.prepare(grey, grey)[None])
        return lpips

    def prepare(self, source: Picture, edited: Picture) -> Tensor:
        """Two pictures, uint8 (H, W, 3), as they are compared: (2, 3, S, S) in -1..1, the whole of
        each. Any thread may do it.
        """
        images = [
            np.array(Image.fromarray(one).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
            for one in (source, edited)
        ]
        pair = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return pinned(pair, self.device)

    @torch.no_grad()
    def distances(self, pairs: Tensor) -> Tensor:
        """How different the two of each pair look, (B,), of prepared pairs (B, 2, 3, S, S): 0 where
        they are equal.
        """
        # Sources and edits in calls of one shape: what is equal then comes out equal to the bit.
        sources, edits = to_device(pairs, self.device).unbind(dim=1)
        total = torch.zeros(len(pairs), device=self.device)
        for head, source, edit in zip(_HEADS, self._look(sources), self._look(edits), strict=True):
            weighed = functional.conv2d((source - edit) ** 2, self._weights[head])
            total += weighed.mean(dim=(1, 2, 3))
        return total

    def _look(self, pixels: Tensor) -> Iterator[Tensor]:
        """What AlexNet sees in pictures (B, 3, S, S), layer by layer: (B, C, h, w), of length 1 in
        every cell.
        """
        seen = (pixels - self._weights[_SHIFT]) / self._weights[_SCALE]
        for layer in _LAYERS:
            if layer.follows_pooling:
                seen = functional.max_pool2d(seen, kernel_size=3, stride=2)
            weight, bias = (self._weights[f"{layer.name}.{part}"] for part in ("weight", "bias"))
            seen = functional.conv2d(seen, weight, bias, layer.stride, layer.padding).relu()
            yield seen / (seen.norm(dim=1, keepdim=True) + _EPSILON)
