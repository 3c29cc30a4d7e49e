import functools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO_WEIGHTS
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from diffedit_batch.demo.captioner import (
    PREFIX,
    build_captioner,
    caption_loss,
    save_captioner,
    tokenize,
    train_captioner,
)
from diffedit_batch.demo.lessons import draw_lessons
from diffedit_batch.demo.optimise import Stage
from diffedit_batch.demo.scenes import (
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    ImageArray,
    caption,
    render,
    sample_scene,
)

STAGE = Stage(steps=2, batch_size=4, learning_rate=1e-3)


def describe(folder: Path, pictures: list[ImageArray]) -> list[str]:
    """What a saved captioner says, loaded and asked as any BLIP checkpoint is."""
    processor = BlipProcessor.from_pretrained(folder)
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    images = [Image.fromarray(picture) for picture in pictures]
    inputs = processor(images=images, text=[PREFIX] * len(images), return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=128)
    texts: list[str] = processor.batch_decode(tokens, skip_special_tokens=True)
    assert all(text.startswith(PREFIX) for text in texts)
    return [text.removeprefix(PREFIX).strip() for text in texts]


def test_training_leaves_a_captioner_that_loads(tmp_path: Path) -> None:
    train_captioner(tmp_path, STAGE, num_scenes=4)
    # Barely trained, it may not end before all 128 tokens: positions must last.
    assert len(describe(tmp_path / "captioner", [render(sample_scene(0))] * 2)) == 2


def test_a_run_that_was_stopped_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for steps in (1, 2):
            train_captioner(tmp_path, replace(STAGE, steps=steps), num_scenes=4)
    assert "captioner: continues at step 1" in caplog.text


def test_what_was_learned_by_heart_is_said_again(tmp_path: Path) -> None:
    captioner = build_captioner(0)
    lessons = draw_lessons(4, functools.partial(tokenize, captioner))
    images, captions = lessons.pictures.float() / 127.5 - 1, lessons.tokens[:, 0]
    reader = torch.nn.Linear(128, lessons.words.shape[1])
    optimizer = torch.optim.AdamW([*captioner.model.parameters(), *reader.parameters()], 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = caption_loss(captioner, reader, images, lessons.words, captions)
        torch.autograd.backward(loss)
        optimizer.step()
    save_captioner(captioner, tmp_path)
    known = [sample_scene(seed) for seed in TRAIN_SEEDS[:4]]
    texts = describe(tmp_path, [render(spec) for spec in known])
    assert texts == [caption(spec) for spec in known]


def test_the_shipped_captioner_says_what_is_there() -> None:
    specs = [sample_scene(seed) for seed in VALIDATION_SEEDS[:60]]
    texts = describe(DEMO_WEIGHTS / "captioner", [render(spec) for spec in specs])
    right = [text == caption(spec) for text, spec in zip(texts, specs, strict=True)]
    assert np.mean(right) >= 0.9
