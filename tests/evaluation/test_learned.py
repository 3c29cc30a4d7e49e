from pathlib import Path

import numpy as np
import torch

from diffedit_batch.config import ModelConfig
from diffedit_batch.demo.scenes import VALIDATION_SEEDS, render, sample_scene
from diffedit_batch.evaluation.arms import Studio
from diffedit_batch.evaluation.learned import (
    COLOR_NAMES,
    SHAPE_NAMES,
    SIDE,
    WEIGHTS,
    ObjectReader,
    crop,
    read_objects,
    to_batch,
)
from diffedit_batch.evaluation.train_judge import draw_crops, train


def test_it_names_objects_it_never_saw() -> None:
    read, true = [], []
    for seed in range(VALIDATION_SEEDS.start, VALIDATION_SEEDS.start + 100):
        scene = sample_scene(seed)
        read += read_objects(render(scene), scene.objects)
        true += [(one.color, one.shape) for one in scene.objects]
    right = sum(one == other for one, other in zip(read, true, strict=True))
    assert right >= 0.99 * len(true)
    assert read_objects(render(scene), []) == []


def test_a_crop_may_reach_over_the_edge() -> None:
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:, 64:] = 255
    half = crop(picture, 64, 2, 30)
    assert half.shape == (SIDE, SIDE, 3)
    assert not half[:, : SIDE // 2 - 1].any()
    assert half[:, SIDE // 2 + 1 :].min() == 255
    assert to_batch(half[None]).shape == (1, 3, SIDE, SIDE)


def test_the_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 500_000


def test_training_repeats_itself_and_fits_a_few_crops(tiny_model: Path) -> None:
    crops, labels = draw_crops(range(4), Studio(ModelConfig(id=str(tiny_model))))
    assert crops.shape == (len(labels), SIDE, SIDE, 3)
    assert labels[:, 0].max() < len(COLOR_NAMES)
    assert labels[:, 1].max() < len(SHAPE_NAMES)
    first, again = (train(crops, labels, num_steps=12) for _ in range(2))
    assert isinstance(first, ObjectReader)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        colors, _ = first.train()(to_batch(crops))
    assert (colors.argmax(1).numpy() == labels[:, 0]).mean() > 0.5
