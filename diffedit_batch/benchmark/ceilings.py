"""What the device can do at the most, measured beside every benchmark of the engine."""

from dataclasses import dataclass

import torch

from diffedit_batch.benchmark.timing import Spread, seconds_of

_NUM_WARM_UPS = 3


@dataclass(frozen=True)
class Ceilings:
    """The limits of a device.

    Attributes:
        matmul_size: side of the matrices.
        matmul_tflops: 10^12 operations a second of a product of random matrices, in the dtype of
            the network. Zeros would be multiplied faster.
        copy_gb_per_s: 10^9 bytes a second, read and written, of a copy within its memory.
    """

    matmul_size: int
    matmul_tflops: Spread
    copy_gb_per_s: Spread


def measure_ceilings(
    device: str,
    dtype: torch.dtype,
    repeats: int,
    *,
    matmul_size: int | None = None,
    copy_bytes: int | None = None,
) -> Ceilings:
    """The ceilings of a device, with sizes that fit it: 8192 and 4 GiB on a GPU."""
    is_gpu = device == "cuda"
    size = matmul_size or (8192 if is_gpu else 1024)
    num_bytes = copy_bytes or (2**32 if is_gpu else 2**28)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    num_products = 20 if is_gpu else 3

    def multiply() -> None:
        for _ in range(num_products):
            torch.mm(left, right, out=product)

    def spread(seconds: list[float]) -> Spread:
        return Spread.of(seconds[_NUM_WARM_UPS:])

    runs = range(repeats + _NUM_WARM_UPS)
    multiplied = spread([seconds_of(multiply, device) for _ in runs])
    copied = spread([seconds_of(lambda: copy.copy_(source), device) for _ in runs])
    return Ceilings(
        matmul_size=size,
        matmul_tflops=multiplied.rate(num_products * 2 * size**3 / 1e12),
        copy_gb_per_s=copied.rate(2 * num_bytes / 1e9),
    )
