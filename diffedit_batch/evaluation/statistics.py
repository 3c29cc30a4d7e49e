"""Intervals and tests for rates and means measured on the same items.

Undefined values (NaN) are left out of every estimate; callers report how many there were.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 9_999


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        value: the estimate; NaN where no item defines it, as the bounds.
        low: lower bound.
        high: upper bound.
        num_items: items that define it.
    """

    value: float
    low: float
    high: float
    num_items: int


def wilson(outcomes: ArrayLike) -> Estimate:
    """Rate of successes (0 or 1, NaN undefined) with its Wilson interval."""
    defined = _defined(outcomes)
    if not len(defined):
        return _nothing()
    test = stats.binomtest(int(defined.sum()), len(defined))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(float(defined.mean()), float(interval.low), float(interval.high), len(defined))


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test: are two success rates on the same items equal?"""
    one, other = np.asarray(ours, float), np.asarray(theirs, float)
    wins, losses = int((one > other).sum()), int((one < other).sum())
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses).pvalue)


def bootstrap_mean(values: ArrayLike, strata: Sequence[str], seed: int = 0) -> Estimate:
    """Mean with its BCa bootstrap interval, items resampled within their strata.

    For a paired comparison, pass the differences of the two arms.

    Args:
        values: one per item, NaN where undefined.
        strata: the kind of each item.
        seed: of the resampling.
    """
    everything = np.asarray(values, float)
    kinds = np.asarray(strata)[~np.isnan(everything)]
    defined = _defined(everything)
    if not len(defined):
        return _nothing()
    mean = float(defined.mean())
    samples = tuple(defined[kinds == kind] for kind in np.unique(kinds))
    # Resampling cannot spread what does not differ, nor a kind of one item.
    if any(len(sample) < 2 for sample in samples):
        samples = (defined,)
    if len(defined) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return Estimate(mean, mean, mean, len(defined))
    bounds = stats.bootstrap(
        samples,
        _mean_of_all,
        n_resamples=NUM_RESAMPLES,
        batch=500,
        confidence_level=CONFIDENCE,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(bounds.low), float(bounds.high), len(defined))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm, 1979), in the order given."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.maximum.accumulate(np.asarray(p_values, float)[order] * factors).clip(max=1)
    corrected = np.empty(len(p_values))
    corrected[order] = stepped
    return [float(value) for value in corrected]


def _mean_of_all(*samples: NDArray[np.floating], axis: int = -1) -> NDArray[np.floating]:
    mean: NDArray[np.floating] = np.concatenate(samples, axis=axis).mean(axis=axis)
    return mean


def _defined(values: ArrayLike) -> NDArray[np.floating]:
    array = np.asarray(values, float)
    defined: NDArray[np.floating] = array[~np.isnan(array)]
    return defined


def _nothing() -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), 0)
