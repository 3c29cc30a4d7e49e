import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.models.components import Components
from diffedit_batch.models.network import MAX_GRAPHS, AttentionLog
from diffedit_batch.schema import EditRequest


@pytest.fixture
def model(tiny_model: Path) -> Iterator[Components]:
    yield Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    torch._dynamo.reset()


def operands(count: int, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 4, 8, width, generator=generator),
        torch.randint(0, 1000, (count,), generator=generator),
        torch.randn(count, 24, 16, generator=generator),
    )


def edit(model: Components, compiled: CompileCounter | None = None) -> dict[str, EditResult]:
    """Twelve edits of pictures of two sizes, in calls of eight."""
    if compiled is not None:
        model.network.compile(8, compiled)
    rng = np.random.default_rng(0)
    parameters = EditConfig(num_inference_steps=10, num_maps_per_mask=4).resolved()
    edits = [
        ImageEdits(
            rng.integers(0, 256, (64, 64 + 64 * (i % 2), 3), dtype=np.uint8),
            [EditRequest(str(i), ("a red circle",), ("a blue circle",), edit=parameters)],
        )
        for i in range(12)
    ]
    results = DiffEditor(model, batch_size=8).edit(edits)
    return {result.request.id: result for result in results}


def test_as_many_graphs_are_compiled_as_there_are_sizes_and_edits_are_the_same(
    model: Components,
) -> None:
    """Parts of the job, at its end, are calls of many sizes; they run eagerly."""
    eager = edit(model)
    compiled = edit(model, counter := CompileCounter())
    assert counter.frame_count == model.network.num_graphs == 2
    for number, result in eager.items():
        assert result.status == compiled[number].status == "edited"
        assert np.array_equal(result.mask, compiled[number].mask)
        difference = result.image.astype(int) - compiled[number].image
        assert np.abs(difference).max() <= 1


def test_values_texts_and_timesteps_compile_nothing_anew(model: Components) -> None:
    model.network.compile(4, counter := CompileCounter())
    for seed in range(4):
        model.predict(*operands(4, seed=seed))
        model.predict(*operands(3, seed=seed))
    assert counter.frame_count == 1


def test_no_more_than_a_few_sizes_are_compiled(model: Components) -> None:
    model.network.compile(2, counter := CompileCounter())
    for width in range(2, 2 * MAX_GRAPHS + 6, 2):
        assert model.predict(*operands(2, width)).shape == (2, 4, 8, width)
    assert counter.frame_count == model.network.num_graphs == MAX_GRAPHS


def test_attention_is_seen_as_it_runs(model: Components) -> None:
    with AttentionLog() as log:
        model.predict(*operands(2))
    assert log.kernels == {"flash_attention_for_cpu"}
    assert model.attention_kernels == ("flash_attention_for_cpu",)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_default_compiler_gives_the_same_outputs(tiny_model: Path, tmp_path: Path) -> None:
    """In a process of its own: what torch's compiler imports is full of warnings."""
    code = f"""
import torch
from diffedit_batch.config import ModelConfig
from diffedit_batch.models.components import Components
model = Components.load(ModelConfig(id={str(tiny_model)!r}), "cpu")
generator = torch.Generator().manual_seed(0)
latents = torch.randn(2, 4, 8, 8, generator=generator)
operands = (latents, torch.tensor([1, 500]), torch.randn(2, 24, 16, generator=generator))
eager = model.predict(*operands)
model.network.compile(2)
torch.testing.assert_close(model.predict(*operands), eager, atol=1e-4, rtol=1e-4)
assert model.network.num_graphs == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)
