"""Means of skewed values such as latencies, and ratios of two."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from finetune.statistics.skewed_means import relative_improvement, skewed_mean_interval
from tests.builders.interval_inputs import scores, sides


def test_skewed_bounds_have_their_stated_error_rate() -> None:
    """Log-normal, sigma 1, 20 values: BCa's upper bound is too low in 0.13 of the cases, this one in 0.05."""
    rng = np.random.default_rng(0)
    found = [skewed_mean_interval(rng.lognormal(-0.5, 1, 20), 0.90, "two-sided", at, 500) for at in range(600)]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert 0.02 < np.mean([one.upper < 1 for one in found]) <= allowed
    assert np.mean([one.lower > 1 for one in found]) <= allowed


def test_ratios_of_skewed_values_have_their_stated_error_rate() -> None:
    """Both sigmas are 1, logs correlated by 0.7; BCa errs in 0.09 of the cases on either side."""
    rng = np.random.default_rng(1)
    found = []
    for at in range(400):
        shared, own, other = rng.standard_normal((3, 20))
        new, old = (np.exp(0.7**0.5 * shared + 0.3**0.5 * one) for one in (own, other))
        found.append(relative_improvement(0.8 * new, old, 0.90, "two-sided", at, n_resamples=500))
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean([one.lower > 0.2 for one in found]) <= allowed
    assert np.mean([one.upper < 0.2 for one in found]) <= allowed


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(20, 60), sides, st.floats(1e-3, 1e3))
def test_skewed_mean_interval_follows_a_change_of_unit(seed: int, n: int, side: Any, scale: float) -> None:
    """Units do not matter; bounds enclose the estimate, and the side that is not requested is open."""
    x = scores(n, seed)
    found = skewed_mean_interval(x, 0.95, side, 1, 500)
    moved = skewed_mean_interval(scale * x, 0.95, side, 1, 500)
    assert (moved.lower, moved.upper) == pytest.approx((scale * found.lower, scale * found.upper), rel=1e-6)
    assert found.lower < x.mean() < found.upper
    assert (found.lower == 0) == (side == "upper")
    assert math.isinf(found.upper) == (side == "lower")


def test_skewed_mean_interval_of_many_even_values_equals_students() -> None:
    """For values without skew, the interval is hardly wider."""
    x = np.random.default_rng(3).normal(10, 1, 400)
    expected = student.interval(0.95, 399, x.mean(), x.std(ddof=1) / 20)
    found = skewed_mean_interval(x, 0.95, "two-sided", 0)
    assert (found.lower, found.upper) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("x", [np.ones(31), scores(19), np.append(np.ones(40), 2.0), np.ones(1)])
def test_skewed_bounds_refuse_the_inputs_a_bootstrap_refuses(x: np.ndarray) -> None:
    """Equal times would give an interval of width 0."""
    found = skewed_mean_interval(x, 0.95, "upper", 0)
    assert (found.refused, found.lower, found.upper) == (True, 0.0, math.inf)


def test_an_improvement_counts_clusters_once() -> None:
    """Equal repeats of one prompt are worth a single answer."""
    new, old, labels = 0.8 * scores(30), scores(30, 1), np.repeat(np.arange(30), 5)
    once = relative_improvement(new, old, 0.95, "lower", 0)
    repeated = relative_improvement(np.repeat(new, 5), np.repeat(old, 5), 0.95, "lower", 0, labels)
    assert repeated.lower == pytest.approx(once.lower)
