from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffedit_batch.demo import optimise as module
from diffedit_batch.demo.optimise import Stage, optimise


def build() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.SiLU(), nn.Flatten()]
    network = nn.Sequential(*layers)
    for kernel in (layer.weight for layer in layers if isinstance(layer, nn.Conv2d)):
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return network


def train(network: nn.Module, stage: Stage, folder: Path, stop_at: int | None = None) -> nn.Module:
    """Train on noise; at the call of the loss `stop_at`, break off."""
    calls = iter(range(1_000))

    def loss_of(generator: np.random.Generator, batch_size: int) -> Tensor:
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        images = torch.from_numpy(generator.standard_normal((batch_size, 3, 5, 5), np.float32))
        error: Tensor = network(images).square().mean()
        return error

    return optimise(network, loss_of, stage, folder / "network.pt", seed=0)


@pytest.mark.parametrize("uses_muon", [True, False])
def test_a_run_that_was_broken_off_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses_muon: bool
) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", 0.0)
    stage = Stage(steps=4, batch_size=4, learning_rate=1e-2, uses_muon=uses_muon)
    whole = train(build(), stage, tmp_path)
    (tmp_path / "network.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        train(build(), stage, tmp_path, stop_at=2)
    continued = train(build(), stage, tmp_path)
    for one, other in zip(whole.parameters(), continued.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_moves_kernels_alike_in_all_directions_and_adamw_moves_the_rest(
    tmp_path: Path,
) -> None:
    network = build()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    train(network, Stage(1, 256, learning_rate=1.0, uses_muon=True), tmp_path)
    moved = [(new - old).detach() for new, old in zip(network.parameters(), before, strict=True)]
    reaches = torch.linalg.svdvals(moved[2].flatten(1))
    assert reaches.max() < 2 * reaches.min()
    assert all(part.abs().max() > 0 for part in moved)
