"""Train the learned judge: a few minutes on a CPU.

    python -m diffedit_batch.evaluation.train_judge

Crops of rendered scenes, some blurred, noisy or sent through the demo model's VAE, since that is
how edited pictures look. Prints accuracies on scenes that were not trained on.
"""

import sys
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn import functional

from diffedit_batch.config import ModelConfig
from diffedit_batch.demo.scenes import (
    JUDGE_SEEDS,
    ImageArray,
    SceneObject,
    render,
    sample_scene,
)
from diffedit_batch.evaluation.arms import Studio
from diffedit_batch.evaluation.learned import (
    COLOR_NAMES,
    SHAPE_NAMES,
    WEIGHTS,
    ObjectReader,
    crop,
    to_batch,
)

NUM_TRAIN_SCENES = 5_000
NUM_HELD_OUT_SCENES = 500
NUM_STEPS = 2_000
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
ROUND_TRIP_SHARE = 0.25

Crops = tuple[NDArray[np.uint8], NDArray[np.int64]]


def draw_crops(seeds: Iterable[int], studio: Studio) -> Crops:
    """Crops (B, S, S, 3) of objects, two of each, and of bare ground, with their labels (B, 2)."""
    crops, labels = [], []
    for seed in seeds:
        rng = np.random.default_rng((seed, 1))
        scene = sample_scene(seed)
        picture = _degrade(render(scene), rng, studio)
        for one in scene.objects:
            for _ in range(2):
                x, y = np.array([one.x, one.y]) + rng.uniform(-4, 4, 2)
                crops.append(crop(picture, x, y, one.radius * rng.uniform(0.87, 1.15)))
                labels.append((COLOR_NAMES.index(one.color), SHAPE_NAMES.index(one.shape)))
        x, y, radius = *rng.uniform(25, 103, 2), rng.uniform(17, 34)
        if all(_is_apart(one, x, y, radius) for one in scene.objects):
            crops.append(crop(picture, x, y, radius))
            labels.append((COLOR_NAMES.index(""), SHAPE_NAMES.index("")))
    return np.stack(crops), np.array(labels, dtype=np.int64)


def train(
    crops: NDArray[np.uint8], labels: NDArray[np.int64], num_steps: int = NUM_STEPS
) -> ObjectReader:
    """A reader trained on labelled crops; mirrored ones are as good."""
    torch.manual_seed(0)
    reader = ObjectReader()
    optimizer = torch.optim.AdamW(reader.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps)
    generator = torch.Generator().manual_seed(0)
    truth = torch.from_numpy(labels)
    for step in range(num_steps):
        chosen = torch.randint(len(crops), (BATCH_SIZE,), generator=generator)
        batch = to_batch(crops[chosen.numpy()])
        if step % 2:
            batch = batch.flip(3)
        if step % 4 > 1:
            batch = batch.transpose(2, 3)
        colors, shapes = reader(batch)
        loss = functional.cross_entropy(colors, truth[chosen, 0])
        loss = loss + functional.cross_entropy(shapes, truth[chosen, 1])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == num_steps - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return reader.eval()


def main() -> int:
    """Train, measure and save the judge."""
    studio = Studio(ModelConfig(id="demo"))
    first = JUDGE_SEEDS.start
    held_out = first + NUM_TRAIN_SCENES
    crops, labels = draw_crops(range(first, held_out), studio)
    print(f"{len(crops)} crops", flush=True)
    reader = train(crops, labels)
    crops, labels = draw_crops(range(held_out, held_out + NUM_HELD_OUT_SCENES), studio)
    with torch.no_grad():
        answers = [logits.argmax(1).numpy() for logits in reader(to_batch(crops))]
    for name, answer, truth in zip(("colour", "shape"), answers, labels.T, strict=True):
        print(f"{name}: {(answer == truth).mean():.2%} of {len(truth)} held-out crops")
    save_file(reader.state_dict(), WEIGHTS, {"format": "pt"})
    return 0


def _degrade(picture: ImageArray, rng: np.random.Generator, studio: Studio) -> ImageArray:
    way = rng.uniform()
    if way < ROUND_TRIP_SHARE:
        return studio.round_trip(picture)
    if way < 0.6:
        width = rng.uniform(0.3, 1.5)
        noise = rng.normal(0, rng.uniform(0, 6), picture.shape)
        blurred = ndimage.gaussian_filter(picture.astype(float), (width, width, 0)) + noise
        return np.asarray(blurred.clip(0, 255), dtype=np.uint8)
    return picture


def _is_apart(one: SceneObject, x: float, y: float, radius: float) -> bool:
    return bool(np.hypot(one.x - x, one.y - y) > 1.2 * one.radius + radius)


if __name__ == "__main__":
    sys.exit(main())
