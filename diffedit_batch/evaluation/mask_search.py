"""Search for the way of finding masks: many maps and rules over noise estimates made once.

The noise estimates of an item are made once, for the most noise levels and draws that any
combination needs; every combination is then only arithmetic on them.

Legend: I items, S noise strengths, N draws, C channels, h x w latent grid, H x W pixels.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffedit_batch.core.mask import follow_outlines, otsu_threshold, rescale
from diffedit_batch.core.noise import draw
from diffedit_batch.core.schedule import add_noise
from diffedit_batch.engine.pixels import content_key, to_tensor
from diffedit_batch.evaluation.items import Item
from diffedit_batch.models.components import Components

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""The noise strengths at which estimates are made."""
NUM_DRAWS = 10
"""Draws per strength; as many more are their negatives."""

_STEPS = 50
_CALL = 64
_CAPPED_THRESHOLD = 0.4


@dataclass(frozen=True)
class MapRecipe:
    """How noise estimates become one map.

    Attributes:
        strengths: draws are dealt out to these noise levels in turn, and every level is divided by
            its mean first.
        num_draws: of all levels together, at least one each.
        is_antithetic: every second draw is the negative of the one before.
        averages_sizes: whether sizes of differences are averaged, as in the paper, or differences,
            before the size of their average is taken.
        smoothing: width in cells of the box the map is averaged over.
        guide_radius: pixels within which the upsampled map follows the picture's outlines; 0: not.
    """

    strengths: tuple[float, ...] = (0.5,)
    num_draws: int = 10
    is_antithetic: bool = False
    averages_sizes: bool = True
    smoothing: int = 1
    guide_radius: int = 0


@dataclass(frozen=True)
class Rule:
    """How a map becomes a mask: a kind and its one number (threshold, ratio or largest area)."""

    kind: Literal["minmax", "mean_ratio", "otsu", "mixture", "area_capped"]
    value: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}" if self.value else self.kind


@dataclass(frozen=True)
class Score:
    """What a combination scores: IoU with the true masks by kind of edit, and means over items."""

    recipe: MapRecipe
    rule: Rule
    upsampled: bool
    iou: float
    recall: float
    iou_by_kind: dict[str, float]


@torch.no_grad()
def estimate_differences(
    components: Components, items: Sequence[Item], report: Callable[[int], None]
) -> Tensor:
    """Differences of the network's outputs under target and source prompt, (I, S, 2 N, C, h, w).

    The second N draws are the negatives of the first.

    Args:
        components: the model.
        items: what is edited.
        report: called with the number of items done.
    """
    schedule = components.schedule(_STEPS)
    levels = torch.tensor([schedule.level_of(strength) for strength in STRENGTHS])
    differences = []
    for number, item in enumerate(items, 1):
        side = components.resolution
        [mean], _ = components.encode(to_tensor(item.source, (side, side))[None])
        noise = draw(
            (NUM_DRAWS, *mean.shape),
            seed=item.seed,
            image_key=content_key(item.source),
            purpose="mask",
        )
        noise = torch.cat([noise, -noise])
        alpha_bar = schedule.alpha_bar[levels][:, None, None, None, None]
        noisy = add_noise(mean, noise, alpha_bar).flatten(0, 1)
        timesteps = schedule.timesteps[levels].repeat_interleave(len(noise))
        outputs = []
        for prompt in (item.target_prompt, item.source_prompt):
            states = components.text((prompt,)).states[None]
            outputs.append(
                torch.cat(
                    [
                        components.predict(
                            noisy[start : start + _CALL],
                            timesteps[start : start + _CALL],
                            states.expand(len(noisy[start : start + _CALL]), -1, -1),
                        )
                        for start in range(0, len(noisy), _CALL)
                    ]
                )
            )
        difference = outputs[0] - outputs[1]
        differences.append(difference.reshape(len(STRENGTHS), len(noise), *mean.shape))
        report(number)
    return torch.stack(differences)


def make_maps(differences: Tensor, recipe: MapRecipe) -> Tensor:
    """Maps (I, h, w) from differences (I, S, 2 N, C, h, w)."""
    num_pairs = differences.shape[2] // 2
    order = (
        [number for pair in range(num_pairs) for number in (pair, pair + num_pairs)]
        if recipe.is_antithetic
        else list(range(num_pairs))
    )
    dealt: dict[float, list[int]] = {strength: [] for strength in recipe.strengths}
    for number, strength in zip(
        order[: recipe.num_draws], itertools.cycle(recipe.strengths), strict=False
    ):
        dealt[strength].append(number)
    parts = []
    for strength, numbers in dealt.items():
        chosen = differences[:, STRENGTHS.index(strength), numbers]
        if recipe.averages_sizes:
            level = chosen.abs().mean(dim=(1, 2))
        else:
            level = chosen.mean(dim=1).abs().mean(dim=1)
        parts.append(level / level.mean(dim=(1, 2), keepdim=True))
    maps = torch.stack(parts).mean(dim=0)
    if recipe.smoothing > 1:
        reach = recipe.smoothing // 2
        padded = functional.pad(maps[:, None], (reach,) * 4, mode="replicate")
        maps = functional.avg_pool2d(padded, recipe.smoothing, stride=1)[:, 0]
    return maps


def apply_rule(maps: Tensor, scaled: Tensor, rule: Rule) -> Tensor:
    """Masks (I, H, W) bool.

    Args:
        maps: (I, H, W).
        scaled: the same, each clipped at its 99 % quantile and stretched to 0..1.
        rule: what is done with them.
    """
    if rule.kind == "mean_ratio":
        return maps > maps.mean(dim=(1, 2), keepdim=True) * rule.value / 2
    if rule.kind == "minmax":
        return scaled > rule.value
    if rule.kind == "area_capped":
        cap = torch.quantile(scaled.flatten(1), 1 - rule.value, dim=1)
        return scaled > cap.clamp(min=_CAPPED_THRESHOLD)[:, None, None]
    find = otsu_threshold if rule.kind == "otsu" else _mixture_threshold
    return torch.stack([one > find(one) for one in scaled])


def search(
    differences: Tensor,
    items: Sequence[Item],
    recipes: Iterable[MapRecipe],
    rules: Sequence[Rule],
) -> list[Score]:
    """Scores of all combinations, the best mean IoU first.

    Args:
        differences: of the items, see `estimate_differences`.
        items: with the true masks.
        recipes: how maps are made.
        rules: how maps become masks, tried on the upsampled map and, if it follows no outlines, on
            the latent grid.
    """
    truth = torch.from_numpy(np.stack([item.mask for item in items]))
    kinds = np.array([item.kind for item in items])
    height, width = truth.shape[1:]
    pictures = [to_tensor(item.source, (width, height)) for item in items]
    scores = []
    for recipe in recipes:
        maps = make_maps(differences, recipe)
        large = functional.interpolate(maps[:, None], size=truth.shape[1:], mode="bilinear")[:, 0]
        if recipe.guide_radius:
            guided = [
                follow_outlines(one, picture, recipe.guide_radius)
                for one, picture in zip(large, pictures, strict=True)
            ]
            large = torch.stack(guided)
        coarse, fine = (
            (some, torch.stack([rescale(one, "minmax", 1.0) for one in some]))
            for some in (maps, large)
        )
        grids = (True,) if recipe.guide_radius else (True, False)
        for rule, upsampled in itertools.product(rules, grids):
            masks = apply_rule(*(fine if upsampled else coarse), rule)
            if not upsampled:
                cells = masks[:, None].to(torch.uint8)
                masks = functional.interpolate(cells, size=truth.shape[1:])[:, 0] > 0
            both, either = (masks & truth).sum((1, 2)), (masks | truth).sum((1, 2))
            ious = (both / either).numpy()
            recall = (both / truth.sum((1, 2))).mean().item()
            by_kind = {str(kind): float(ious[kinds == kind].mean()) for kind in np.unique(kinds)}
            scores.append(Score(recipe, rule, upsampled, float(ious.mean()), recall, by_kind))
    return sorted(scores, key=lambda score: -score.iou)


def _mixture_threshold(scaled: Tensor, num_rounds: int = 30) -> Tensor:
    """Where the upper of two Gaussians, fitted to the values by EM, becomes the likelier one."""
    values = scaled.flatten()  # a thousand of them say where the two modes are
    values = values[:: max(1, len(values) // 1024)]
    order = torch.quantile(values, torch.tensor([0.25, 0.98]))
    means, variances, weights = order, torch.full((2,), 0.02), torch.tensor([0.5, 0.5])
    for _ in range(num_rounds):
        log_likelihood = _log_densities(values, means, variances, weights)
        shares = log_likelihood.softmax(dim=0)
        totals = shares.sum(dim=1).clamp_min(1e-6)
        means = (shares * values).sum(dim=1) / totals
        variances = ((shares * (values - means[:, None]) ** 2).sum(dim=1) / totals).clamp_min(1e-4)
        weights = totals / len(values)
    grid = torch.linspace(0, 1, 257)
    low, high = means.argmin(), means.argmax()
    densities = _log_densities(grid, means, variances, weights)
    between = (grid > means[low]) & (grid < means[high])
    upper = between & (densities[high] > densities[low])
    return grid[upper].min() if upper.any() else means.mean()


def _log_densities(values: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Any:
    spread = (values - means[:, None]) ** 2 / (2 * variances[:, None])
    return weights.log()[:, None] - 0.5 * variances.log()[:, None] - spread
