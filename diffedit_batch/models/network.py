"""The UNet as it is called: the fastest attention there is, full calls compiled on request.

Legend: B evaluations in a call, C channels, h x w latent grid, L tokens, D text width.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

logger = logging.getLogger(__name__)

MAX_GRAPHS = 4
"""Shapes that are compiled, the first that fill a call; each takes minutes, so others never are."""

_HOPPER = (9, 0)


class Network:
    """Calls a UNet.

    Full calls of few shapes may run a compiled graph; all others, the last ones of a job for one,
    run eagerly. So every graph is of one size, and as many are compiled as there are latent sizes.

    Args:
        unet: the network.

    Attributes:
        num_graphs: shapes compiled so far.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet
        self._compiled: Callable[..., Any] | None = None
        self._num_evals = 0
        self._shapes: set[tuple[int, ...]] = set()

    @property
    def num_graphs(self) -> int:
        """Shapes compiled so far."""
        return len(self._shapes)

    @property
    def is_compiled(self) -> bool:
        """Whether full calls run compiled graphs."""
        return self._compiled is not None

    def compile(self, num_evals: int, backend: str | Callable[..., Any] = "inductor") -> None:
        """Run calls of exactly `num_evals` as compiled graphs from now on, each compiled when its
        shape comes for the first time.
        """
        # Convolutions want it; the kernels around them only do once they are compiled.
        self._unet.to(memory_format=torch.channels_last)
        self._compiled = torch.compile(self._unet, fullgraph=True, dynamic=False, backend=backend)
        self._num_evals, self._shapes = num_evals, set()

    def run_eagerly(self) -> None:
        """Compile nothing any more."""
        self._compiled, self._shapes = None, set()

    @torch.no_grad()
    def __call__(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Network outputs (B, C, h, w), fp32; see `Components.predict`."""
        dtype = self._unet.dtype
        network = self._compiled if self._takes(latents, states) else self._unet
        assert network is not None
        with _fast_attention(latents.device):
            outputs = network(
                latents.to(dtype), timesteps, encoder_hidden_states=states.to(dtype)
            ).sample
        return cast(Tensor, outputs.float())

    def _takes(self, latents: Tensor, states: Tensor) -> bool:
        """Whether the compiled network is to take a call."""
        if self._compiled is None or len(latents) != self._num_evals:
            return False
        shape = (*latents.shape, *states.shape)
        if shape not in self._shapes:
            if len(self._shapes) == MAX_GRAPHS:
                return False
            logger.info("compiling the network for calls of %s", tuple(latents.shape))
            self._shapes.add(shape)
        return True


class AttentionLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes, while it is entered, which attention kernels run.

    Attributes:
        kernels: their names in torch, e.g. `cudnn_attention`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation."""
        _, is_attention, kernel = func.overloadpacket.__name__.partition("scaled_dot_product_")
        if is_attention:
            self.kernels.add(kernel)
        return func(*args, **(kwargs or {}))


def _fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """Attention kernels in the order of their speed; what one cannot take goes to the next."""
    if device.type != "cuda":
        return nullcontext()
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    if torch.cuda.get_device_capability(device) >= _HOPPER:
        # There cuDNN has kernels of its own, while torch's flash attention is that of Ampere.
        fast.reverse()
    kernels = [*fast, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return cast(AbstractContextManager[None], sdpa_kernel(kernels, set_priority=True))
