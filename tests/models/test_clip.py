from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffedit_batch.config import ScoresConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.clip import Clip

TEXTS = ("a red circle on grass", "a blue star on sand")


def pictures(count: int = 5) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (31, 16), (16, 16), (8, 40), (90, 50)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes[:count]]


def test_vectors_are_those_of_transformers(clip: Clip, tiny_clip: Path) -> None:
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    inputs = processor([Image.fromarray(one) for one in pictures()], return_tensors="pt")
    tokens = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **inputs)
    found = clip.encode(torch.stack([clip.prepare(one) for one in pictures()]))
    assert torch.allclose(found, expected.image_embeds, atol=1e-6)
    for text, vector in zip(TEXTS, expected.text_embeds, strict=True):
        assert torch.allclose(clip.text((text,)), vector, atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=0.1), "pictures make a difference"
    assert not torch.allclose(clip.text(TEXTS[:1]), clip.text(TEXTS[1:]), atol=0.1)


def test_a_picture_is_seen_alike_in_any_batch(clip: Clip) -> None:
    pixels = torch.stack([clip.prepare(one) for one in pictures()])
    alone = torch.cat([clip.encode(one[None]) for one in pixels])
    assert torch.allclose(clip.encode(pixels), alone, atol=1e-6)
    assert torch.allclose(clip.encode(pixels.flip(0)).flip(0), alone, atol=1e-6)


def test_several_texts_stand_for_the_mean_of_their_vectors(clip: Clip) -> None:
    mean = (clip.text(TEXTS[:1]) + clip.text(TEXTS[1:])) / 2
    assert torch.allclose(clip.text(TEXTS), mean / mean.norm(), atol=1e-6)
    assert clip.text(TEXTS).norm() == pytest.approx(1, abs=1e-6)


def test_a_text_that_is_too_long_is_cut(clip: Clip) -> None:
    words = " ".join(["red"] * 50)
    assert torch.equal(clip.text((words,)), clip.text((f"{words} circle",)))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"clip": "./missing"}, r"scores\.clip './missing': no such folder, and not a hub id"),
        (
            {"clip": "demo"},
            r"scores\.clip 'demo': no such folder, and not a hub id \(owner/name\)\.",
        ),
    ],
)
def test_a_model_that_is_not_there(values: dict[str, str], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        Clip.load(ScoresConfig.model_validate(values), "cpu")


def test_a_model_that_is_no_clip(tiny_captioner: Path) -> None:
    with pytest.raises(
        ModelError, match=r"cannot load model.*is no CLIPModel: \d+ of its weights are missing"
    ):
        Clip.load(ScoresConfig(clip=str(tiny_captioner)), "cpu")
