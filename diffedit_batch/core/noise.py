"""One random stream per (seed, image content, purpose), the same wherever it is drawn."""

import hashlib

import torch
from torch import Tensor


def draw(shape: tuple[int, ...], *, seed: int, image_key: str, purpose: str) -> Tensor:
    """Standard normal noise of `shape`, fp32 on the CPU.

    Rows that edit the same image with the same seed share their draws, whatever their prompts;
    nothing else (row id, order, neighbours, retry) enters.
    """
    digest = hashlib.sha256(f"{seed}\0{image_key}\0{purpose}".encode()).digest()
    # Drawn on the CPU: GPU generators give other numbers for other GPU models.
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)
