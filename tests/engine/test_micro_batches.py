from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.micro_batches import MicroBatches
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.models.components import Components
from diffedit_batch.schema import EditRequest


def test_full_batches_of_one_shape_first_and_the_rest_in_a_hurry() -> None:
    batches: MicroBatches[int] = MicroBatches(2)
    for shape, item in [("tall", 1), ("wide", 2), ("wide", 3), ("tall", 4), ("wide", 5)]:
        batches.add(shape, item)
    assert batches.pop(is_hurried=False) == [1, 4]
    assert batches.pop(is_hurried=False) == [2, 3]
    assert batches.pop(is_hurried=False) == []
    assert batches.pop(is_hurried=True) == [5]
    assert batches.pop(is_hurried=True) == []


def test_what_did_not_fit_comes_again_in_halves_and_first() -> None:
    batches: MicroBatches[int] = MicroBatches(4)
    for item in range(5):
        batches.add("one", item)
    batch = batches.pop(is_hurried=False)
    batches.shrink("one", batch)
    found = []
    while batch := batches.pop(is_hurried=True):
        found.append(batch)
    assert found == [[0, 1], [2, 3], [4]]


def edits(count: int = 6) -> list[ImageEdits]:
    rng = np.random.default_rng(0)
    edit = EditConfig(num_inference_steps=10, num_maps_per_mask=2).resolved()
    return [
        ImageEdits(
            rng.integers(0, 256, (64, 64 + 64 * (i % 2), 3), dtype=np.uint8),
            [EditRequest(str(i), ("a red circle",), ("a blue circle",), edit=edit)],
        )
        for i in range(count)
    ]


def load(folder: Any) -> Components:
    return Components.load(ModelConfig(id=str(folder)), "cpu")


def watch(model: Components, monkeypatch: pytest.MonkeyPatch, limit: int) -> list[tuple[str, int]]:
    """Sizes of the calls of a VAE on a device that holds `limit` images."""
    calls: list[tuple[str, int]] = []

    def limited(name: str) -> None:
        original = getattr(model, name)

        def call(batch: Tensor) -> Any:
            if len(batch) > limit:
                raise torch.OutOfMemoryError(f"{len(batch)} do not fit")
            calls.append((name, len(batch)))
            return original(batch)

        monkeypatch.setattr(model, name, call)

    limited("encode")
    limited("decode")
    return calls


def test_the_vae_takes_batches_of_its_own_size(tiny_model: Any, monkeypatch: Any) -> None:
    model = load(tiny_model)
    calls = watch(model, monkeypatch, limit=64)
    editor = DiffEditor(model, batch_size=16, vae_batch_size=2)
    for one in edits():
        editor.submit(editor.prepare(one))
    results: list[EditResult] = []
    while editor.num_active:
        results += editor.step()
    assert sorted(calls) == sorted([("encode", 2), ("encode", 1), ("decode", 2), ("decode", 1)] * 2)
    assert [result.status for result in results] == ["edited"] * 6


def test_what_the_vae_makes_of_a_picture_is_the_same_beside_others(tiny_model: Any) -> None:
    model = load(tiny_model)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    means, stds = model.encode(images)
    decoded = model.decode(means)
    for number in range(3):
        alone = slice(number, number + 1)
        mean, std = model.encode(images[alone])
        torch.testing.assert_close(means[alone], mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(stds[alone], std, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoded[alone], model.decode(mean), atol=1e-4, rtol=1e-4)


def test_a_vae_that_runs_out_of_memory_gets_halves(tiny_model: Any, monkeypatch: Any) -> None:
    model = load(tiny_model)
    calls = watch(model, monkeypatch, limit=1)
    editor = DiffEditor(model, batch_size=16, vae_batch_size=4)
    results = editor.edit(edits())
    assert [result.status for result in results] == ["edited"] * 6
    assert {size for _, size in calls} == {1}
    assert 2 <= editor.counters.batch_halvings <= 4


def test_a_picture_the_vae_cannot_decode_fails_alone(tiny_model: Any, monkeypatch: Any) -> None:
    model = load(tiny_model)
    decode = model.decode

    def limited(latents: Tensor) -> Tensor:
        if latents.shape[-1] > 8:
            raise torch.OutOfMemoryError("too wide")
        return decode(latents)

    monkeypatch.setattr(model, "decode", limited)
    results = DiffEditor(model, batch_size=16, vae_batch_size=4).edit(edits())
    assert [result.status for result in results] == ["edited", "failed"] * 3
    assert {r.error.kind for r in results if r.error is not None} == {"OutOfMemory"}
