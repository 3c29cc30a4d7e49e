from dataclasses import replace
from pathlib import Path

import pytest
import torch
from acts import drive

from diffedit_batch.config import ModelConfig
from diffedit_batch.core.acts import Recipe, Texts
from diffedit_batch.core.diffedit import find_mask
from diffedit_batch.core.noise import draw
from diffedit_batch.engine.pixels import content_key, to_tensor
from diffedit_batch.evaluation.items import sample_items
from diffedit_batch.evaluation.mask_search import (
    NUM_DRAWS,
    STRENGTHS,
    MapRecipe,
    Rule,
    apply_rule,
    estimate_differences,
    make_maps,
    search,
)
from diffedit_batch.models.components import Components

ITEMS = sample_items("validation", 1, with_empty_goals=True)


@pytest.fixture(scope="module")
def components(tiny_model: Path) -> Components:
    return Components.load(ModelConfig(id=str(tiny_model), resolution=128), "cpu")


def truth_map(peak: float = 1.0) -> torch.Tensor:
    """Differences (I, S, 2 N, C, h, w) that are large where the true masks are."""
    masks = torch.stack([torch.from_numpy(item.mask).float() for item in ITEMS])
    cells = torch.nn.functional.avg_pool2d(masks[:, None], 8)[:, 0]
    shape = (len(ITEMS), len(STRENGTHS), 2 * NUM_DRAWS, 4, 16, 16)
    return (0.1 + peak * cells)[:, None, None, None].expand(shape).clone()


def test_the_map_is_the_one_the_job_finds(components: Components) -> None:
    item = ITEMS[0]
    [differences] = estimate_differences(components, [item], lambda done: None)
    maps = make_maps(differences[None], MapRecipe())
    [mean], _ = components.encode(to_tensor(item.source, (128, 128))[None])
    noise = draw(
        (NUM_DRAWS, *mean.shape), seed=item.seed, image_key=content_key(item.source), purpose="mask"
    )
    source, target, empty = (
        components.text((text,)) for text in (item.source_prompt, item.target_prompt, "")
    )
    texts = Texts(source, target, source, empty, empty, empty, empty)
    act = find_mask(
        mean[None],
        noise,
        texts,
        Recipe(),
        components.schedule(50),
        picture=to_tensor(item.source, (128, 128)),
        vae_scale_factor=8,
        flat_tolerance=0.0,
    )
    _, difference = drive(act, components.predict)
    assert difference is not None
    ours = torch.nn.functional.interpolate(maps[:, None], scale_factor=8, mode="bilinear")[0, 0]
    assert torch.allclose(ours, difference / difference.mean() * ours.mean(), rtol=1e-3)


def test_the_second_half_of_the_draws_mirrors_the_first() -> None:
    differences = torch.zeros(1, len(STRENGTHS), 2 * NUM_DRAWS, 1, 2, 2)
    differences[:, :, 0] = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    differences[:, :, NUM_DRAWS] = torch.tensor([[2.0, 2.0], [2.0, 6.0]])
    plain = make_maps(differences, MapRecipe(num_draws=1))
    pair = make_maps(differences, MapRecipe(num_draws=2, is_antithetic=True))
    assert torch.allclose(plain[0], torch.tensor([[0.5, 1.5], [1.5, 0.5]]))
    assert torch.allclose(pair[0], torch.tensor([[0.6, 1.0], [1.0, 1.4]]))


def test_draws_are_dealt_out_to_levels_and_levels_count_alike() -> None:
    differences = torch.ones(1, len(STRENGTHS), 2 * NUM_DRAWS, 1, 1, 2)
    differences[:, STRENGTHS.index(0.3), 0] = torch.tensor([300.0, 100.0])
    differences[:, STRENGTHS.index(0.7), 1] = torch.tensor([1.0, 3.0])
    maps = make_maps(differences, MapRecipe((0.3, 0.7), num_draws=2))
    assert torch.allclose(maps, torch.ones(1, 1, 2))


def test_averaging_differences_lets_opposite_ones_cancel() -> None:
    differences = torch.ones(1, len(STRENGTHS), 2 * NUM_DRAWS, 1, 1, 2)
    differences[:, :, 1, :, :, 0] = -1
    recipe = MapRecipe(num_draws=2)
    assert make_maps(differences, recipe)[0, 0].tolist() == [1, 1]
    assert make_maps(differences, replace(recipe, averages_sizes=False))[0, 0].tolist() == [0, 2]


def test_smoothing_spreads_a_cell_over_its_neighbours() -> None:
    differences = torch.zeros(1, len(STRENGTHS), 2 * NUM_DRAWS, 1, 5, 5)
    differences[..., 2, 2] = 1
    [smooth] = make_maps(differences, MapRecipe(smoothing=3))
    assert (smooth > 0).sum() == 9


@pytest.mark.parametrize(
    ("rule", "share"),
    [
        (Rule("minmax", 0.5), 0.3),
        (Rule("otsu"), 0.3),
        (Rule("mixture"), 0.3),
        (Rule("mean_ratio", 2.0), 0.3),
        (Rule("area_capped", 0.1), 0.1),
        (Rule("area_capped", 0.5), 0.3),
    ],
    ids=str,
)
def test_rules_cut_a_map_of_two_levels_between_them(rule: Rule, share: float) -> None:
    noise = torch.randn(1, 100, 100, generator=torch.Generator().manual_seed(0)) / 20
    scaled = torch.where(torch.arange(100) < 30, 0.8, 0.2) + noise
    mask = apply_rule(scaled, scaled, rule)
    assert mask.float().mean().item() == pytest.approx(share, abs=0.01)
    assert mask[:, :, 30:].float().mean() < 0.01


def test_the_search_puts_first_what_fits_the_truth() -> None:
    rules = [Rule("minmax", 0.9), Rule("minmax", 0.45), Rule("area_capped", 0.01)]
    scores = search(truth_map(), ITEMS, [MapRecipe()], rules)
    assert len(scores) == 6
    best = scores[0]
    assert (best.rule, best.upsampled) == (rules[1], True)
    assert best.iou > 0.85 > scores[-1].iou
    assert best.iou == pytest.approx(sum(best.iou_by_kind.values()) / 5)
