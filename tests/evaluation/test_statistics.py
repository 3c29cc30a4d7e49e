import math

import numpy as np
import pytest
from scipy import stats

from diffedit_batch.evaluation.statistics import bootstrap_mean, holm, mcnemar, wilson


def test_wilson_by_its_formula() -> None:
    estimate = wilson([1.0] * 45 + [0.0] * 15)
    n, p, z = 60, 0.75, stats.norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert estimate.value == 0.75
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))


def test_wilson_of_nothing_won_is_not_nothing() -> None:
    estimate = wilson([0.0] * 20)
    assert estimate.low == pytest.approx(0)
    assert estimate.high == pytest.approx(0.1611, abs=1e-3)


def test_undefined_values_are_left_out_and_counted() -> None:
    nan = float("nan")
    assert wilson([1.0, nan, 0.0, nan]).num_items == 2
    assert wilson([1.0, nan, 0.0, nan]).value == 0.5
    mean = bootstrap_mean([1.0, nan, 3.0, 2.0], list("aaaa"))
    assert (mean.value, mean.num_items) == (2.0, 3)
    for nothing in (wilson([nan]), bootstrap_mean([nan], ["a"])):
        assert nothing.num_items == 0
        assert math.isnan(nothing.value)


def test_mcnemar_counts_only_where_they_differ() -> None:
    ours = [1.0] * 6 + [0.0] * 1 + [1.0] * 50
    theirs = [0.0] * 6 + [1.0] * 1 + [1.0] * 50
    # Two-sided: at most one of seven fair coins on one side.
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(theirs, ours) == mcnemar(ours, theirs)
    assert mcnemar(ours, ours) == 1


def test_the_bootstrap_agrees_with_theory_on_many_values() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.2, 400)
    estimate = bootstrap_mean(values, ["a"] * 400)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.003)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.003)
    assert bootstrap_mean(values, ["a"] * 400) == estimate


def test_the_bootstrap_follows_skew() -> None:
    values = np.random.default_rng(0).exponential(1.0, 60)
    estimate = bootstrap_mean(values, ["a"] * 60)
    assert estimate.high - estimate.value > estimate.value - estimate.low


def test_resampling_within_strata_leaves_their_shares_alone() -> None:
    # Two kinds, each nearly constant: the interval is narrow only if kinds are kept apart.
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.01, 30), rng.normal(1, 0.01, 30)])
    apart = bootstrap_mean(values, ["a"] * 30 + ["b"] * 30)
    mixed = bootstrap_mean(values, ["a"] * 60)
    assert apart.high - apart.low < 0.01 < 0.2 < mixed.high - mixed.low


@pytest.mark.parametrize("values", [[0.5], [0.25, 0.25, 0.25]])
def test_what_does_not_vary_has_no_width(values: list[float]) -> None:
    estimate = bootstrap_mean(values, ["a"] * len(values))
    assert estimate.low == estimate.value == estimate.high == values[0]


def test_kinds_of_one_item_are_resampled_together() -> None:
    estimate = bootstrap_mean([0.1, 0.5, 0.7], ["a", "b", "c"])
    assert estimate.low < estimate.value < estimate.high


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
