import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_tiny_safety_checker
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from diffedit_batch.config import ModelConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.clip import Picture
from diffedit_batch.models.safety import SafetyChecker


def pictures(count: int = 12) -> list[Picture]:
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (31, 16), (16, 16), (8, 40), (90, 50)]
    return [rng.integers(0, 256, (*sizes[i % 5], 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A pipeline whose checker flags the second and the fifth picture."""
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    save_tiny_safety_checker(copy, [pictures()[1], pictures()[4]])
    return copy


def load(folder: Path, **values: Any) -> SafetyChecker:
    return SafetyChecker.load(ModelConfig(id=str(folder), **values), "cpu")


def flagged(checker: SafetyChecker, shown: list[Picture]) -> list[bool]:
    found: list[bool] = checker.find_flagged(
        torch.stack([checker.prepare(one) for one in shown])
    ).tolist()
    return found


def by_hand(folder: Path, shown: list[Picture]) -> list[bool]:
    """As a pipeline of diffusers asks its checker."""
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker")
    processor = CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor")
    inputs = processor([Image.fromarray(one) for one in shown], return_tensors="pt")
    images = [np.zeros((4, 4, 3)) for _ in shown]
    _, found = checker(clip_input=inputs.pixel_values, images=images)
    return list(found)


def test_what_is_like_a_concept_is_flagged(folder: Path) -> None:
    found = flagged(load(folder), pictures())
    assert [number for number, is_flagged in enumerate(found) if is_flagged] == [1, 4]
    assert found == by_hand(folder, pictures())
    alone = [flagged(load(folder), [one])[0] for one in pictures()]
    assert alone == found


@pytest.mark.parametrize("special", [2.0, 0.0, -2.0])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.6])
def test_the_rule_is_that_of_diffusers(folder: Path, special: float, threshold: float) -> None:
    """Thresholds through the midst of what pictures reach, near which a special concept counts."""
    torch.manual_seed(1)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker")
    with torch.no_grad():
        checker.concept_embeds.normal_()
        checker.special_care_embeds.normal_()
        checker.special_care_embeds_weights.fill_(special)
        checker.concept_embeds_weights.copy_(threshold + 0.05 * torch.randn(17))
    checker.save_pretrained(folder / "safety_checker")
    shown = pictures(60)
    assert flagged(load(folder), shown) == by_hand(folder, shown)


@pytest.mark.parametrize(("margin", "expected"), [(0.0052, True), (0.0110, False)])
def test_a_special_concept_lowers_the_thresholds(
    folder: Path, margin: float, expected: bool
) -> None:
    """By a hundredth: a picture so far below a threshold is flagged, or not."""
    checker = load(folder)
    vector = checker._checker
    with torch.no_grad():
        vector.special_care_embeds_weights.fill_(-2)
        vector.concept_embeds_weights[0] = 1 + margin
    assert flagged(checker, pictures())[1] is expected
    with torch.no_grad():
        vector.special_care_embeds_weights.fill_(2)
    assert flagged(checker, pictures())[1] is False


def test_weights_under_the_names_they_were_published_with(folder: Path) -> None:
    expected = by_hand(folder, pictures())
    path = folder / "safety_checker" / "model.safetensors"
    weights = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: tensor
        for name, tensor in load_file(path).items()
    }
    assert any(name.startswith("vision_model.vision_model.") for name in weights)
    save_file(weights, path, metadata={"format": "pt"})
    assert flagged(load(folder), pictures()) == expected


@pytest.mark.parametrize(
    "gone", ["safety_checker/config.json", "feature_extractor/preprocessor_config.json"]
)
def test_a_model_without_one_says_what_to_do(folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(ModelError, match=f"has none .no {gone}.; set safety.policy: off"):
        load(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    path = folder / "safety_checker" / "model.safetensors"
    weights = load_file(path)
    del weights["concept_embeds"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"needs the model's safety checker.*concept_embeds"):
        load(folder)
