"""Which kinds of kernels the time goes to, as torch's profiler sees it.

On a GPU the kernels themselves are counted, by their names; on a CPU the operators that torch ran.
The names are kept beside the shares: libraries rename their kernels, and a kernel counted under the
wrong kind shows.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch.profiler import ProfilerActivity, profile

from diffedit_batch.benchmark.timing import Spread, seconds_of

Kind = Literal["convolution", "GEMM", "attention", "elementwise"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# In this order: attention and convolution are made of products, and their kernels say so too.
_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("attention", r"flash|fmha|attention|attn|sdpa"),
    ("convolution", r"conv(?!ert)|fprop|implicit|winograd|scudnn|wgrad|dgrad"),
    ("GEMM", r"gemm|gemv|nvjet|cublas|cutlass|xmma|splitk|addmm|\b\w*::b?mm\b|linear|matmul"),
)
_NUM_NAMES = 12


@dataclass(frozen=True)
class KernelShares:
    """Where the seconds of a piece of work went.

    Attributes:
        seconds: on the clock, without a profiler watching.
        busy_seconds: of them by kind.
        longest: names of the kernels that took longest, with kind and seconds.
    """

    seconds: float
    busy_seconds: dict[Kind, float]
    longest: list[tuple[str, Kind, float]]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the time by kind, and `idle`: when no kernel ran."""
        # Watching slows operators of a CPU down: together they may seem to take longer than all.
        whole = max(self.seconds, sum(self.busy_seconds.values()))
        shares: dict[str, float] = {k: self.busy_seconds[k] / whole for k in KINDS}
        return shares | {"idle": 1 - sum(shares.values())}


def kind_of(name: str) -> Kind:
    """The kind of a kernel or operator; what is no product of any sort is `elementwise`."""
    for kind, pattern in _PATTERNS:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "elementwise"


def profile_kernels(use: Callable[[], Any], device: str) -> KernelShares:
    """Where the time of `use` goes; runs it four times, the last time watched."""
    seconds = Spread.of(seconds_of(use, device) for _ in range(3)).median
    is_gpu = device == "cuda"
    activity = ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as watched:
        seconds_of(use, device)
    spent: Counter[str] = Counter()
    for event in watched.key_averages():
        if is_gpu and event.device_type.name == "CUDA":
            spent[event.key] += event.self_device_time_total
        elif not is_gpu:
            spent[event.key] += event.self_cpu_time_total
    busy: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for name, microseconds in spent.items():
        busy[kind_of(name)] += microseconds / 1e6
    longest = [(name, kind_of(name), us / 1e6) for name, us in spent.most_common(_NUM_NAMES)]
    return KernelShares(seconds, busy, longest)
