from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffedit_batch.config import ModelConfig
from diffedit_batch.engine import warm_up
from diffedit_batch.engine.warm_up import compile_network, find_batch_size, largest_call
from diffedit_batch.errors import ModelError
from diffedit_batch.models.components import Components


@pytest.fixture
def model(tiny_model: Path) -> Components:
    return Components.load(ModelConfig(id=str(tiny_model)), "cpu")


def hold(model: Components, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's device hold calls of up to `limit` evaluations."""
    predict = model.predict

    def limited(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        if len(latents) > limit:
            raise torch.OutOfMemoryError(f"{len(latents)} do not fit")
        return predict(latents, timesteps, states)

    monkeypatch.setattr(model, "predict", limited)


@pytest.mark.parametrize(("resolution", "size"), [(64, 64), (128, 64), (256, 16), (512, 4)])
def test_a_cpu_gets_calls_of_as_many_cells(model: Components, resolution: int, size: int) -> None:
    model.resolution = resolution
    assert find_batch_size(model) == size


@pytest.mark.parametrize(("limit", "size"), [(100, 64), (64, 64), (63, 32), (5, 4), (1, 1)])
def test_a_gpu_gets_the_largest_call_that_fits(
    model: Components, monkeypatch: pytest.MonkeyPatch, limit: int, size: int
) -> None:
    hold(model, limit, monkeypatch)
    assert largest_call(model) == size


@pytest.mark.parametrize(("resolution", "size"), [(512, 64), (768, 28), (1024, 16)])
def test_larger_pictures_make_smaller_calls(
    model: Components, monkeypatch: pytest.MonkeyPatch, resolution: int, size: int
) -> None:
    hold(model, 100, monkeypatch)
    monkeypatch.setattr(warm_up, "_call", lambda model, num_evals: None)
    model.resolution = resolution
    assert largest_call(model) == size


def test_a_model_of_which_nothing_fits_says_so(
    model: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(model, 0, monkeypatch)
    with pytest.raises(ModelError, match="not one network evaluation at 64 px fits"):
        largest_call(model)


def test_auto_compiles_nothing_on_a_cpu(model: Components) -> None:
    compile_network(model, 4, "auto")
    assert not model.network.is_compiled


def break_compiler(model: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler on this machine")

    compile_with = model.network.compile
    monkeypatch.setattr(model.network, "compile", lambda count: compile_with(count, broken))


def test_a_network_that_cannot_be_compiled_is_an_error_where_that_was_asked_for(
    model: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_compiler(model, monkeypatch)
    with pytest.raises(ModelError, match=r"no compiler on this machine[\s\S]*engine.compile: off"):
        compile_network(model, 4, "full")


def test_auto_goes_on_without_a_compiler(
    model: Components, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_compiler(model, monkeypatch)
    monkeypatch.setattr(warm_up, "_has_gpu", lambda model: True)
    compile_network(model, 4, "auto")
    assert not model.network.is_compiled
    assert "cannot be compiled and runs without" in caplog.text
    assert largest_call(model) == 64
