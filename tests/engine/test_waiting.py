"""Nothing in the loop makes the host wait for the device, on which the device would then wait."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.engine.reviewing import Reviewer
from diffedit_batch.models.components import Components
from diffedit_batch.models.lpips import Lpips
from diffedit_batch.schema import EditRequest

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}
"""What has to know values of its operands on the host; `item`, `bool` and the like end here."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in WAITING:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


def quantile(values: Tensor, share: float) -> Tensor:
    """`torch.quantile`, which looks at `share` on CPUs alone."""
    with _disable_current_modes():
        return original_quantile(values, share)


original_quantile: Callable[[Tensor, float], Tensor] = torch.quantile


def submit_all(editor: DiffEditor) -> None:
    rng = np.random.default_rng(0)
    number = 0
    for preset in ("tuned", "paper", "diffusers"):
        for changes in ({}, {"mask_rule": "otsu"}):
            parameters = {"preset": preset, "num_inference_steps": 10, **changes}
            edit = EditConfig.model_validate(parameters).resolved()
            rows = [
                EditRequest(f"{number}-{target}", ("a red circle",), (target,), edit=edit)
                for target in ("a blue circle", "a star", "a red circle")
            ]
            number += 1
            picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            editor.submit(editor.prepare(ImageEdits(picture, rows)))


def finish(editor: DiffEditor) -> list[EditResult]:
    results = []
    while editor.num_active:
        results += editor.step()
    return results


@pytest.mark.parametrize("is_compared", [False, True])
def test_no_step_needs_values_on_the_host(
    tiny: Components, lpips: Lpips, monkeypatch: Any, is_compared: bool
) -> None:
    monkeypatch.setattr(torch, "quantile", quantile)
    reviewer = Reviewer(lpips=lpips) if is_compared else None
    editor = DiffEditor(tiny, batch_size=16, reviewer=reviewer)
    submit_all(editor)
    results = editor.step()  # admits, which encodes texts
    with NoWaiting():  # type: ignore[no-untyped-call]
        results += finish(editor)
    assert len(results) == 18
    assert {result.status for result in results} == {"edited", "unchanged"}


def test_a_step_that_needs_one_is_found_out(tiny: Components, monkeypatch: Any) -> None:
    predict = tiny.predict

    def curious(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        assert latents.isfinite().all()
        return predict(latents, timesteps, states)

    monkeypatch.setattr(tiny, "predict", curious)
    editor = DiffEditor(tiny, batch_size=16)
    submit_all(editor)
    mode = NoWaiting()  # type: ignore[no-untyped-call]
    with mode, pytest.raises(AssertionError, match="makes the host wait"):
        editor.step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_step_waits_for_a_gpu(tiny_model: Path, dtype: str) -> None:
    config = ModelConfig.model_validate({"id": str(tiny_model), "dtype": dtype})
    editor = DiffEditor.load(config, device="cuda", batch_size=16, vae_batch_size=4)
    submit_all(editor)
    finish(editor)  # lazy initialisations of libraries may wait
    submit_all(editor)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = finish(editor)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {result.status for result in results} == {"edited", "unchanged"}
