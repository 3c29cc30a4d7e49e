import numpy as np
import torch

from diffedit_batch.demo.lessons import crowd, draw_batch, draw_lessons
from diffedit_batch.demo.scenes import (
    COLORS,
    TRAIN_SEEDS,
    caption,
    render_masks,
    sample_scene,
)


def distance(color: torch.Tensor, rgb: tuple[int, int, int]) -> float:
    """How far an image's colour in [-1, 1] is from one of 0 to 255."""
    return float((color - (torch.tensor(rgb) / 127.5 - 1)).norm())


def number(texts: list[str], known: list[str]) -> torch.Tensor:
    """One token for each text, its place in `known`, which becomes all of them."""
    known += texts
    return torch.arange(len(texts))[:, None]


def test_lessons_are_scenes_and_crowded_pictures() -> None:
    captions: list[str] = []
    lessons = draw_lessons(8, lambda texts: number(texts, captions))
    assert lessons.pictures.shape == (16, 3, 64, 64)
    assert lessons.words.shape == (16, 17, 8, 8)
    said = [captions[token] for token in lessons.tokens[:, 0, 0]]
    assert said == [caption(sample_scene(seed)) for seed in TRAIN_SEEDS[:8]]


def test_a_crowd_holds_more_than_a_scene() -> None:
    crowds = [crowd(sample_scene(seed), seed) for seed in TRAIN_SEEDS[:40]]
    assert np.mean([len(spec.objects) for spec in crowds]) > 2.5
    # No object hides another; tips of stars may touch.
    overlaps = [np.sum(render_masks(spec), axis=0) > 1 for spec in crowds[:8]]
    assert max(overlap.sum() for overlap in overlaps) < 20


def test_a_batch_shows_what_its_captions_say() -> None:
    captions: list[str] = []
    lessons = draw_lessons(6, lambda texts: number(texts, captions))
    images, coverage, tokens = draw_batch(lessons, 64, np.random.default_rng(0))
    assert len({image.numpy().tobytes() for image in images}) > 12  # flipped ones among them
    patches = torch.nn.functional.avg_pool2d(images, 8)
    columns = torch.arange(8)
    for picture, token, words in zip(patches[:32], tokens, coverage[:32], strict=True):
        named = [word for word in captions[token.item()].split() if word in COLORS]
        shares = [words[list(COLORS).index(color)] for color in named]
        assert sum(float(share.sum()) for share in shares) == words[: len(COLORS)].sum()
        centres = [float((share * columns).sum() / share.sum()) for share in shares]
        assert centres == sorted(centres)
        for color, share in zip(named, shares, strict=True):
            seen = picture[:, share > 0].T
            # Patches show ground too, but one of them is the object's colour more than any other.
            best = min(seen, key=lambda patch: distance(patch, COLORS[color]))
            assert color == min(COLORS, key=lambda name: distance(best, COLORS[name]))
