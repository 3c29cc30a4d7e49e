"""The shipped weights, held to loose floors: measured numbers are on their cards."""

import numpy as np
import torch
from conftest import DEMO_WEIGHTS
from torch.utils.flop_counter import FlopCounterMode

from diffedit_batch.config import ModelConfig
from diffedit_batch.demo.scenes import VALIDATION_SEEDS, render, sample_scene
from diffedit_batch.evaluation import metrics
from diffedit_batch.evaluation.arms import ARMS, Studio
from diffedit_batch.evaluation.items import sample_items
from diffedit_batch.evaluation.judges import judge_anywhere

STUDIO = Studio(ModelConfig(id="demo"))


def test_they_are_small() -> None:
    sizes = [path.stat().st_size for path in DEMO_WEIGHTS.rglob("*") if path.is_file()]
    assert sum(sizes) < 24e6


def test_every_model_has_a_card() -> None:
    folders = [path.parent for path in DEMO_WEIGHTS.rglob("*.safetensors")]
    for folder in folders:
        card = next(
            one / "README.md" for one in (folder, folder.parent) if (one / "README.md").exists()
        )
        assert all(f"## {part}" in card.read_text("utf-8") for part in ("Training", "Measured"))


def test_an_evaluation_of_the_network_is_cheap() -> None:
    model = STUDIO.components
    counter = FlopCounterMode(display=False)
    with counter:
        model.predict(torch.zeros(1, 4, 16, 16), torch.ones(1), model.text(("",)).states[None])
    assert counter.get_total_flops() <= 0.9e9


def test_the_round_trip_is_true() -> None:
    pictures = [render(sample_scene(seed)) for seed in VALIDATION_SEEDS[:16]]
    everywhere = np.ones(pictures[0].shape[:2], dtype=bool)
    quality = [
        metrics.psnr(metrics.mean_squared_error(STUDIO.round_trip(one), one, everywhere))
        for one in pictures
    ]
    assert np.mean(quality) >= 30


def test_most_captions_become_the_picture_they_name() -> None:
    items = sample_items("validation", 4, with_empty_goals=True)
    outcomes, _ = STUDIO.edit(ARMS["text-to-image"], items)
    granted = [
        judge_anywhere(item.goal, outcome.picture).is_success
        for item, outcome in zip(items, outcomes, strict=True)
    ]
    assert np.mean(granted) >= 0.85
