"""What only a GPU can show: half precision and offload on the embedded model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_safety_checker
from small_edits import picture

from diffedit_batch.config import EditConfig, ModelConfig, ScoresConfig
from diffedit_batch.demo import scenes
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.models.clip import Clip
from diffedit_batch.models.lpips import Lpips
from diffedit_batch.models.safety import SafetyChecker
from diffedit_batch.schema import EditRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def edit(device: str, *, is_compiled: bool = False, **model: object) -> list[EditResult]:
    config = ModelConfig.model_validate({"id": "demo", **model})
    editor = DiffEditor.load(config, device=device)
    if is_compiled:
        editor.compile()
    edits = []
    for seed in scenes.VALIDATION_SEEDS[:8]:
        scene = scenes.sample_scene(seed)
        after = scenes.edit(scene, scenes.sample_change(scene, "background", seed))
        request = EditRequest(
            str(seed), (scenes.caption(scene),), (scenes.caption(after),), edit=EditConfig()
        )
        edits.append(ImageEdits(scenes.render(scene), [request]))
    return editor.edit(edits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masks_on_a_gpu_are_those_of_the_cpu(dtype: str) -> None:
    for here, there in zip(edit("cpu"), edit("cuda", dtype=dtype), strict=True):
        assert there.status == here.status == "edited"
        assert np.mean(here.mask != there.mask) < 0.01


def test_offloaded_models_edit_the_same() -> None:
    for resident, offloaded in zip(
        edit("cuda"), edit("cuda", enable_model_cpu_offload=True), strict=True
    ):
        assert np.mean(resident.mask != offloaded.mask) < 0.01


@pytest.mark.filterwarnings("ignore")  # of what torch's compiler imports
def test_compiled_calls_edit_the_same() -> None:
    for eager, compiled in zip(edit("cuda"), edit("cuda", is_compiled=True), strict=True):
        assert np.mean(eager.mask != compiled.mask) < 0.01


def test_attention_runs_a_fused_kernel_in_half_precision() -> None:
    editor = DiffEditor.load(ModelConfig(id="demo"), device="cuda")
    kernels = editor.components.attention_kernels
    assert kernels
    assert not any("math" in kernel for kernel in kernels)


def test_a_call_that_fits_is_found_and_larger_ones_are_not_tried() -> None:
    editor = DiffEditor.load(ModelConfig(id="demo"), device="cuda")
    assert editor.batch_size == 64


def test_scores_and_flags_on_a_gpu_are_those_of_the_cpu(
    tiny_clip: Path, random_lpips: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shown = [picture(40 + i, 60, seed=i) for i in range(20)]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    save_tiny_safety_checker(folder, shown[3:5])
    scores = ScoresConfig(clip=str(tiny_clip), lpips=str(random_lpips))
    model = ModelConfig(id=str(folder))
    vectors, texts, flagged, distances = [], [], [], []
    for device in ("cpu", "cuda"):
        clip, checker = Clip.load(scores, device), SafetyChecker.load(model, device)
        vectors.append(clip.encode(torch.stack([clip.prepare(one) for one in shown])).cpu())
        texts.append(clip.text(("a red circle on grass",)).cpu())
        lpips = Lpips.load(scores, device)
        pairs = [lpips.prepare(shown[0], one) for one in shown]
        distances.append(lpips.distances(torch.stack(pairs)).cpu())
        prepared = torch.stack([checker.prepare(one) for one in shown])
        flagged.append(checker.find_flagged(prepared).tolist())
    assert torch.allclose(vectors[0], vectors[1], atol=1e-4)
    assert torch.allclose(texts[0], texts[1], atol=1e-4)
    assert torch.allclose(distances[0], distances[1], rtol=0.01)
    assert distances[0][0] == distances[1][0] == 0, "of a picture and itself"
    assert flagged[0] == flagged[1] == [number in (3, 4) for number in range(20)]
