"""What the verdict may claim: the numbers of its method, the traps on its way, and what must always hold."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm
from scipy.stats import t as student

from finetune import stats
from finetune.stats import (
    Interval,
    clopper_pearson,
    examples_needed,
    examples_needed_not_worse,
    examples_needed_quantile,
    mcnemar_asymptotic,
    mcnemar_exact,
    mcnemar_midp,
    mean_interval,
    paired_mean_difference,
    quantile_upper,
    relative_improvement,
    resample,
    tango,
    wilson,
)

SIDES: tuple[stats.Side, ...] = ("two-sided", "lower", "upper")
# Efron and Tibshirani (1993), table 3.1: entry test and grade average of 15 law schools.
LSAT = np.array([576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594.0])
GPA = np.array([3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96])

confidences = st.sampled_from([0.8, 0.9, 0.95, 0.99, 0.995])
sides = st.sampled_from(SIDES)
sizes = st.integers(1, 300)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    """Successes and n."""
    n = draw(sizes)
    return draw(st.integers(0, n)), n


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int, int]:
    """Pairs that only the candidate got right, that only the baseline did, and all pairs."""
    n = draw(sizes)
    candidate_only = draw(st.integers(0, n))
    return candidate_only, draw(st.integers(0, n - candidate_only)), n


def scores(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(sigma=0.5, size=n)


# ---- The table of numbers: published ones, and those that the gate promises to its user.


@pytest.mark.parametrize(
    ("interval", "side", "lower"),
    [
        (clopper_pearson, "lower", 0.90789),
        (wilson, "lower", 0.91973),
        (clopper_pearson, "two-sided", 0.88781),
        (wilson, "two-sided", 0.88974),
    ],
)
def test_31_of_31_has_the_known_lower_bound(interval: Any, side: Any, lower: float) -> None:
    """A spotless small test set is the commonest false proof; its bound is far from 98%."""
    assert interval(31, 31, 0.95, side).lower == pytest.approx(lower, abs=5e-6)


@pytest.mark.parametrize(
    ("side", "needed"),
    [("lower", [149, 236, 313, 386, 456, 523]), ("two-sided", [183, 277, 359, 436, 509, 581])],
)
def test_examples_needed_for_98_percent(side: Any, needed: list[int]) -> None:
    """These are the numbers that an inconclusive verdict tells its user to collect."""
    assert [examples_needed(0.98, failures, 0.95, side) for failures in range(6)] == needed


@pytest.mark.parametrize(("successes", "upper"), [(30, 0.9983), (29, 0.9884), (28, 0.9731)])
def test_upper_bound_rejects_98_percent_from_three_failures_of_31(successes: int, upper: float) -> None:
    """A criterion fails only once its upper bound is below the threshold: at 28 of 31, not at 29."""
    found = clopper_pearson(successes, 31, 0.95, "upper")
    assert found.upper == pytest.approx(upper, abs=5e-5)
    assert (found.upper < 0.98) == (successes <= 28)


@pytest.mark.parametrize(
    ("interval", "successes", "n", "bounds"),
    [
        (wilson, 81, 263, (0.2553, 0.3662)),
        (clopper_pearson, 81, 263, (0.2527, 0.3676)),
        (clopper_pearson, 7, 50, (0.0582, 0.2674)),
    ],
)
def test_published_two_sided_intervals(interval: Any, successes: int, n: int, bounds: Any) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857-872: the library's method is the one that we name."""
    found = interval(successes, n, 0.95, "two-sided")
    assert (found.lower, found.upper) == pytest.approx(bounds, abs=5e-5)


def test_published_mcnemar_p_values() -> None:
    """Fagerland, Lydersen and Laake (2013), table 1: the three forms disagree about 5%, so each is held."""
    assert mcnemar_exact(1, 7, "two-sided") == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar_midp(1, 7, "two-sided") == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_asymptotic(1, 7) == pytest.approx(0.0339, abs=5e-5)
    assert mcnemar_midp(2, 2, "two-sided") == pytest.approx(1 - 0.5 * 6 / 16)  # their rule for equal counts


def test_published_tango_interval() -> None:
    """The same table by Tango's method; no library that we depend on has it, so the formula is ours."""
    found = tango(1, 7, 21, 0.95, "two-sided")
    assert (found.lower, found.upper) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [1, 31, 52, 1000])
def test_tango_without_a_discordant_pair(n: int) -> None:
    """-z^2 / (n + z^2): equal answers on a small test set don't prove that nothing was lost."""
    squared = norm.ppf(0.95) ** 2
    assert tango(0, 0, n, 0.95, "lower").lower == pytest.approx(-squared / (n + squared), abs=1e-9)
    assert tango(0, 0, 31, 0.95, "lower").lower == pytest.approx(-0.0803, abs=5e-5)


@pytest.mark.parametrize(("margin", "needed"), [(0.05, 52), (0.02, 133)])
def test_examples_needed_not_worse(margin: float, needed: int) -> None:
    """The gate passes at this n and not at one less, so the advice is neither short nor wasteful."""
    assert examples_needed_not_worse(margin, 0.95) == needed
    assert tango(0, 0, needed, 0.95, "lower").lower > -margin >= tango(0, 0, needed - 1, 0.95, "lower").lower


def test_six_to_nil_is_the_smallest_significant_mcnemar() -> None:
    """Five wins and no loss may be luck at 5% two-sided; only an approximation would pass them."""
    assert mcnemar_exact(6, 0, "two-sided") == pytest.approx(0.031, abs=5e-4)
    assert mcnemar_exact(5, 0, "two-sided") > 0.05


def test_quantile_bound_of_p95_needs_59_values() -> None:
    """With 58 latencies even the slowest one is no 95% bound of p95; None keeps it from being shown as one."""
    values = list(range(1, 59))
    assert examples_needed_quantile(0.95, 0.95) == 59
    assert quantile_upper(values, 0.95, 0.95) is None
    assert quantile_upper([*values, 59], 0.95, 0.95) == 59
    assert quantile_upper(range(93, 0, -1), 0.95, 0.95) == 92  # the second largest, first allowed at n = 93


def test_law_school_correlation() -> None:
    """Efron and Tibshirani (1993), chapter 14: our weights and leave-one-out values reach BCa unspoilt."""

    def correlation(draws: np.ndarray) -> float:
        share = draws / draws.sum()
        x, y = LSAT - share @ LSAT, GPA - share @ GPA
        return float(share @ (x * y) / math.sqrt((share @ x**2) * (share @ y**2)))

    without = np.array([correlation(np.arange(15) != one) for one in range(15)])
    one_stratum = np.zeros(15, dtype=np.intp)
    found = stats._bca_bounds(correlation, without, one_stratum, 0.90, "two-sided", 0, 40_000)
    assert found == pytest.approx((0.43, 0.92), abs=0.01)
    assert found == pytest.approx((0.430, 0.927), abs=0.004)  # the limit, measured with 400,000 resamples


# ---- The traps: no method may turn missing evidence into certainty.


def test_31_of_31_is_no_proof_whatever_the_method() -> None:
    """A percentile bootstrap gives [1, 1] here and BCa NaN; a pass of 98% would be a false proof."""
    spotless = [1.0] * 31
    found = mean_interval(spotless, 0.95, "lower", 0)
    reason = "0 examples differ from the most common one, a bootstrap needs 5"
    assert found == Interval(1.0, -math.inf, math.inf, 0.95, f"none: {reason}")
    assert found.refused
    assert mean_interval(spotless, 0.95, "lower", 0, bounds=(0, 1)).lower < 0.98
    assert clopper_pearson(31, 31, 0.95, "lower").lower < 0.98


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("failures", [0, 1, 4])
def test_bounded_scores_without_variance_fall_back_on_the_exact_interval(side: Any, failures: int) -> None:
    """A range of scores still allows a bound, and on right-or-wrong ones it is the one that the gate uses."""
    right = [1.0] * (100 - failures) + [0.0] * failures
    found = mean_interval(right, 0.95, side, 0, bounds=(0, 1))
    exact = clopper_pearson(100 - failures, 100, 0.95, side)
    assert not found.refused
    assert found.lower == pytest.approx(exact.lower, abs=1e-9)
    assert found.upper == 1.0  # cautious: the share bounds how much is lost from the most common score


def test_equal_fractional_scores_are_bounded_on_both_sides() -> None:
    """At worst a share 1 - 0.05^(1/n) of all examples lies at the far end of the range, above or below."""
    share = 1 - 0.05 ** (1 / 40)
    assert mean_interval([0.5] * 40, 0.95, "lower", 0, bounds=(0, 1)).lower == pytest.approx(0.5 - share / 2)
    assert mean_interval([0.5] * 40, 0.95, "upper", 0, bounds=(0, 1)).upper == pytest.approx(0.5 + share / 2)


@pytest.mark.parametrize(("n", "refused"), [(1, True), (19, True), (20, False)])
def test_too_few_values_are_refused(n: int, refused: bool) -> None:
    """A bootstrap of a handful errs several times as often as it says, so it is not offered."""
    found = mean_interval(scores(n), 0.95, "upper", 0)
    assert found.refused == refused == math.isinf(found.upper)
    assert not refused or found.method == f"none: {n} independent examples, a bootstrap needs 20"


@pytest.mark.parametrize(("unlike", "refused"), [(4, True), (5, False)])
def test_a_lone_win_is_no_proof_that_nothing_is_lost(unlike: int, refused: bool) -> None:
    """With few discordant pairs a bootstrap never draws the loss that didn't happen yet."""
    candidate, baseline = np.ones(60), np.ones(60)
    baseline[:unlike] = 0
    assert paired_mean_difference(candidate, baseline, 0.95, "lower", 0).refused == refused


def test_a_nearly_perfect_model_can_still_pass() -> None:
    """Three errors of 200 must not bar a clear pass for ever; but no error at all still allows no bootstrap."""
    right = np.ones(200)

    def share_right(weights: np.ndarray) -> float:
        return float(weights @ right / weights.sum())

    assert resample(share_right, 200, 0.95, "lower", 0, minimum_unlike=1).refused
    right[:3] = 0
    assert 0.95 < resample(share_right, 200, 0.95, "lower", 0, minimum_unlike=1).lower < 0.985
    assert resample(share_right, 200, 0.95, "lower", 0).refused


def test_rounding_is_no_variance() -> None:
    """0.1 + 0.2 - 0.3 is not 0: differences that stem from floating point must not feed a bootstrap."""
    values = np.array([0.3, 0.1 + 0.2] * 20)
    assert mean_interval(values, 0.95, "two-sided", 0).refused
    assert relative_improvement(0.7 * scores(40), scores(40), 0.95, "lower", 0).refused


def test_repeats_of_one_prompt_are_no_new_examples() -> None:
    """Five generations for each of 30 prompts, all alike, say as much as 30 answers and no more."""
    once = scores(30)
    clusters = np.repeat(np.arange(30), 5)
    repeated = mean_interval(np.repeat(once, 5), 0.95, "two-sided", 0, clusters)
    alone = mean_interval(once, 0.95, "two-sided", 0)
    naive = mean_interval(np.repeat(once, 5), 0.95, "two-sided", 0)
    assert (repeated.lower, repeated.upper) == pytest.approx((alone.lower, alone.upper))
    assert naive.upper - naive.lower < 0.6 * (alone.upper - alone.lower)
    assert mean_interval(scores(200), 0.95, "lower", 0, np.arange(200) % 19).refused


def test_a_range_open_above_bounds_nothing() -> None:
    """A latency has no greatest value: a refusal must say so on both sides, and not only show a bound below."""
    for side in SIDES:
        found = mean_interval([1.0] * 31, 0.95, side, 0, bounds=(0, math.inf))
        assert (found.refused, found.lower, found.upper) == (True, 0.0, math.inf)


def test_the_bounds_of_scores_are_not_used_with_clusters() -> None:
    """The fallback counts independent examples; 100 rows of 2 conversations are not 100 of them."""
    found = mean_interval(np.ones(100), 0.95, "lower", 0, np.arange(100) % 2, (0, 1))
    assert (found.refused, found.lower, found.upper) == (True, 0.0, 1.0)


def test_mcnemar_can_be_asked_one_sided() -> None:
    """Libraries offer two-sided alone; "better than the baseline" is a one-sided question."""
    assert mcnemar_exact(5, 0, "greater") == pytest.approx(1 / 32)
    assert mcnemar_exact(5, 0, "less") == pytest.approx(1)
    assert mcnemar_midp(5, 0, "greater") == pytest.approx(1 / 64)


def test_no_discordant_pair_is_no_evidence() -> None:
    """Two models that answer alike must not look different by any form of the test."""
    assert mcnemar_exact(0, 0, "two-sided") == 1
    assert mcnemar_midp(0, 0, "greater") == 1
    assert mcnemar_asymptotic(0, 0) == 1


def test_tango_errs_in_its_corner_by_what_its_docstring_says() -> None:
    """The score interval is approximate; how far it may err is stated, and this computes it exactly."""
    losses = np.arange(53)
    passes = [tango(0, int(lost), 52, 0.95, "lower").lower > -0.05 for lost in losses]
    assert binom.pmf(losses, 52, 0.05) @ passes == pytest.approx(0.069, abs=5e-4)


def test_a_statistic_without_a_bca_interval_is_refused() -> None:
    """No resample has as many distinct examples as the sample: scipy answers NaN, which must not spread."""
    x = scores(40)
    found = resample(lambda w: float((w > 0) @ x), 40, 0.95, "two-sided", 0)
    assert (found.method, found.upper) == ("none: BCa is undefined for this sample", math.inf)


# ---- What must hold for every input.


@given(counts(), confidences, sides)
def test_proportions_lie_in_their_interval(count: tuple[int, int], confidence: float, side: Any) -> None:
    """An estimate outside its own interval would make a report contradict itself."""
    for interval in (clopper_pearson, wilson):
        found = interval(*count, confidence, side)
        assert 0 <= found.lower <= found.estimate + 1e-12
        assert found.estimate - 1e-12 <= found.upper <= 1 + 1e-12
        assert side != "lower" or found.upper == 1
        assert side != "upper" or found.lower == 0


@given(counts(), confidences, sides)
def test_one_more_success_never_lowers_a_bound(count: tuple[int, int], confidence: float, side: Any) -> None:
    """Otherwise a better candidate could fail where a worse one passes."""
    successes, n = count[0], count[1] + 1
    fewer, more = (clopper_pearson(k, n, confidence, side) for k in (successes, successes + 1))
    assert more.lower >= fewer.lower
    assert more.upper >= fewer.upper


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("n", [1, 5, 17, 40])
def test_clopper_pearson_never_errs_more_often_than_it_says(n: int, side: Any) -> None:
    """The exact chance of covering the truth, over all outcomes: what the word "proves" in a verdict rests on."""
    outcomes = [clopper_pearson(k, n, 0.95, side) for k in range(n + 1)]
    for truth in np.linspace(0.01, 0.99, 99):
        covers = [found.lower <= truth <= found.upper for found in outcomes]
        assert binom.pmf(np.arange(n + 1), n, truth) @ covers >= 0.95 - 1e-9


@settings(deadline=None, max_examples=50)
@given(st.floats(0.5, 0.999), st.integers(0, 20), confidences, st.sampled_from(["lower", "two-sided"]))
def test_examples_needed_is_the_smallest_that_the_gate_passes(
    threshold: float, failures: int, confidence: float, side: Any
) -> None:
    """A user who collects that many and sees as few failures must pass; one fewer must not do."""
    needed = examples_needed(threshold, failures, confidence, side)
    assert clopper_pearson(needed - failures, needed, confidence, side).lower >= threshold
    fewer = needed - 1
    if fewer > failures:
        assert clopper_pearson(fewer - failures, fewer, confidence, side).lower < threshold


def score_by_search(difference: float, gained: int, lost: int, n: int) -> float:
    """Tango's score with its nuisance found by maximizing the likelihood, not by the closed form."""

    def improbability(chance_lost: float) -> float:
        chances = np.array([chance_lost + difference, chance_lost, 1 - 2 * chance_lost - difference])
        seen = np.array([gained, lost, n - gained - lost])
        return -float((seen * np.log(np.maximum(chances, 1e-300))).sum())

    span = (max(0.0, -difference), (1 - difference) / 2)
    likeliest = minimize_scalar(improbability, bounds=span, method="bounded", options={"xatol": 1e-13}).x
    variance = n * (2 * likeliest + difference * (1 - difference))
    return float((gained - lost - n * difference) / math.sqrt(variance))


@settings(deadline=None, max_examples=100)
@given(pairs(), confidences)
def test_tango_bounds_solve_the_score_equation(table: tuple[int, int, int], confidence: float) -> None:
    """At a bound the score is the normal quantile; the nuisance parameter is found here by another way."""
    found = tango(*table, confidence, "two-sided")
    z = norm.ppf((1 + confidence) / 2)
    if found.lower > -1:
        assert score_by_search(found.lower, *table) == pytest.approx(z, rel=1e-3)
    if found.upper < 1:
        assert score_by_search(found.upper, *table) == pytest.approx(-z, rel=1e-3)


@given(pairs(), confidences, sides)
def test_tango_holds_its_estimate_and_mirrors(table: tuple[int, int, int], confidence: float, side: Any) -> None:
    """Swapping the two models must only turn the sign, or the gate would favour a side."""
    gained, lost, n = table
    found = tango(gained, lost, n, confidence, side)
    other_side: Any = {"lower": "upper", "upper": "lower"}.get(side, side)
    mirror = tango(lost, gained, n, confidence, other_side)
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1
    assert (mirror.lower, mirror.upper) == pytest.approx((-found.upper, -found.lower), abs=1e-9)


@pytest.mark.parametrize("table", [(0, 999_999, 10**6), (10**6, 0, 10**6), (1, 10**9 - 1, 10**9), (0, 0, 10**9)])
def test_tango_survives_large_and_lopsided_tables(table: tuple[int, int, int]) -> None:
    """Near the ends the variance cancels to less than nothing by rounding, which no root may be taken of."""
    found = tango(*table, 0.95, "two-sided")
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1
    assert found.upper - found.lower < 1e-2


@given(pairs())
def test_tango_gets_stricter_with_confidence(table: tuple[int, int, int]) -> None:
    """Each further look at a test set raises the confidence, and may only make passing harder."""
    bounds = [tango(*table, confidence, "lower").lower for confidence in (0.9, 0.95, 0.99, 0.999)]
    assert bounds == sorted(bounds, reverse=True)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_forms_agree_where_they_must(gained: int, lost: int) -> None:
    """Mid-p lies below the exact one, both are chances, and a swap of the models swaps the question."""
    for form in (mcnemar_exact, mcnemar_midp):
        assert form(gained, lost, "greater") == pytest.approx(form(lost, gained, "less"), abs=1e-12)
        assert form(gained, lost, "two-sided") == pytest.approx(form(lost, gained, "two-sided"), abs=1e-12)
    for alternative in ("two-sided", "greater", "less"):
        exact, midp = mcnemar_exact(gained, lost, alternative), mcnemar_midp(gained, lost, alternative)
        assert 0 <= midp <= exact <= 1
        assert midp < exact or exact > 1 - 1e-9
    assert mcnemar_asymptotic(gained, lost) == pytest.approx(mcnemar_asymptotic(lost, gained))


@given(st.floats(0.5, 0.99), confidences)
def test_quantile_bound_exists_from_the_stated_size_on(q: float, confidence: float) -> None:
    """The advice and the bound come from one rule; else a user measures that many and still gets nothing."""
    needed = examples_needed_quantile(q, confidence)
    assert quantile_upper(np.arange(needed), q, confidence) is not None
    assert needed == 1 or quantile_upper(np.arange(needed - 1), q, confidence) is None
    assert 1 - q**needed >= confidence - 1e-9


@pytest.mark.parametrize(("n", "q", "confidence"), [(59, 0.95, 0.95), (100, 0.9, 0.95), (200, 0.5, 0.99)])
def test_quantile_bound_errs_no_more_often_than_it_says(n: int, q: float, confidence: float) -> None:
    """The bound's rank k fails with chance P(Binomial(n, q) >= k); one rank less would fail too often."""
    rank = quantile_upper(np.arange(1, n + 1), q, confidence)
    assert rank is not None
    assert binom.cdf(rank - 1, n, q) >= confidence > binom.cdf(rank - 2, n, q)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(20, 60), sides, st.floats(0.1, 50), st.floats(-50, 50))
def test_mean_interval_follows_a_change_of_unit(seed: int, n: int, side: Any, scale: float, shift: float) -> None:
    """Seconds or milliseconds: the verdict must not depend on the unit; and a bound lies on its side."""
    x = scores(n, seed)
    found = mean_interval(x, 0.95, side, 1, n_resamples=500)
    moved = mean_interval(scale * x + shift, 0.95, side, 1, n_resamples=500)
    assert (moved.lower, moved.upper) == pytest.approx(
        (scale * found.lower + shift, scale * found.upper + shift), rel=1e-6, abs=1e-6
    )
    assert found.lower < x.mean() < found.upper
    assert found.estimate == pytest.approx(x.mean())
    assert math.isinf(found.lower) == (side == "upper")
    assert math.isinf(found.upper) == (side == "lower")


def test_mean_interval_of_many_normal_values_is_students() -> None:
    """Where textbook theory holds, the bootstrap must agree with it to a few percent of the width."""
    x = np.random.default_rng(3).normal(10, 2, 400)
    expected = student.interval(0.95, 399, x.mean(), x.std(ddof=1) / 20)
    found = mean_interval(x, 0.95, "two-sided", 0)
    assert (found.lower, found.upper) == pytest.approx(expected, abs=0.03)


def test_the_same_seed_gives_the_same_bounds() -> None:
    """`dvc repro` compares the report's bytes; another seed may move a bound, but only by its noise."""
    first, again, other = (mean_interval(scores(50), 0.95, "lower", seed) for seed in (1, 1, 2))
    assert first == again
    assert first.lower != other.lower
    assert first.lower == pytest.approx(other.lower, abs=0.02)


def test_pairing_removes_what_both_models_share() -> None:
    """Examples differ far more than models do; an unpaired comparison would drown a real gain."""
    baseline = 10 * scores(60)
    candidate = baseline + 0.1 + 0.05 * scores(60, seed=1)
    assert paired_mean_difference(candidate, baseline, 0.95, "lower", 0).lower > 0.1
    assert mean_interval(candidate, 0.95, "lower", 0).lower < baseline.mean()


def test_relative_improvement_is_a_ratio_of_means() -> None:
    """A fifth less time is 0.2 in any unit, and the mean of single ratios would be another number."""
    noise = np.random.default_rng(1).normal(0, 0.02, 80)
    baseline = scores(80)
    candidate = 0.8 * baseline + noise * baseline
    found = relative_improvement(candidate, baseline, 0.95, "lower", 0)
    in_ms = relative_improvement(1000 * candidate, 1000 * baseline, 0.95, "lower", 0)
    assert found.estimate == pytest.approx(1 - candidate.mean() / baseline.mean())
    assert 0.17 < found.lower < found.estimate < 0.23
    assert found.upper == 1.0
    assert in_ms.lower == pytest.approx(found.lower)


def test_one_slow_request_does_not_hide_a_fast_model() -> None:
    """A hiccup must not make a latency undecidable that is far below its limit."""
    latencies = np.append(0.1 + 0.01 * scores(59), 0.5)
    found = mean_interval(latencies, 0.95, "upper", 0)
    assert 0.12 < found.upper < 0.16


def recorded(n: int, **options: Any) -> list[np.ndarray]:
    """All weights that a statistic sees."""
    seen: list[np.ndarray] = []
    x = scores(n)

    def statistic(weights: np.ndarray) -> float:
        seen.append(weights)
        return float(weights @ x / weights.sum())

    resample(statistic, n, 0.95, "lower", 0, n_resamples=300, **options)
    return seen


def test_resamples_are_integer_weights_of_the_examples() -> None:
    """What `sample_weight` of a metric expects: first all once, then each example left out, then the draws."""
    seen = recorded(30)
    assert (seen[0] == 1).all()
    assert sorted(int(np.flatnonzero(weights == 0)[0]) for weights in seen[1:31]) == list(range(30))
    draws = np.array(seen[31:])
    assert draws.dtype == np.float64
    assert (draws.sum(axis=1) == 30).all()
    assert (draws == draws.astype(int)).all()
    assert draws.max() > 1


def test_strata_keep_their_size_and_none_is_frozen() -> None:
    """A class keeps its share in each resample; a class with one example would otherwise look certain."""
    strata = ["a"] * 20 + ["b"] * 9 + ["c"] * 3 + ["d"]
    draws = np.array(recorded(33, strata=strata)[34:])
    assert (draws[:, :20].sum(axis=1) == 20).all()
    assert (draws[:, 20:29].sum(axis=1) == 9).all()
    assert (draws[:, 29:].sum(axis=1) == 4).all()
    assert draws[:, 32].std() > 0


def test_clusters_are_drawn_whole() -> None:
    """Rows of one conversation share their fate; drawn one by one they would count as independent."""
    clusters = np.arange(75) % 25
    for weights in recorded(75, clusters=clusters):
        assert (weights[:25] == weights[25:50]).all()
        assert (weights[:25] == weights[50:]).all()


def test_high_confidence_gets_enough_resamples() -> None:
    """A bound at 99.9% from 300 resamples would be their minimum; ten must lie beyond it."""
    calls = 0
    x = scores(40)

    def mean(weights: np.ndarray) -> float:
        nonlocal calls
        calls += 1
        return float(weights @ x / weights.sum())

    resample(mean, 40, 0.999, "lower", 0, n_resamples=300)
    assert calls >= 10_000


def test_paired_f1_is_resampled_with_one_draw_for_both() -> None:
    """The use that `resample` is made for: a difference of two metrics of the whole set, paired by example."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 150)
    candidate, baseline = (np.where(rng.random(150) < p, truth, (truth + 1) % 3) for p in (0.9, 0.6))

    def macro_f1(answers: np.ndarray, weights: np.ndarray) -> float:
        table = np.zeros((3, 3))
        np.add.at(table, (truth, answers), weights)
        return float((2 * np.diag(table) / (table.sum(0) + table.sum(1))).mean())

    def difference(weights: np.ndarray) -> float:
        return macro_f1(candidate, weights) - macro_f1(baseline, weights)

    found = resample(difference, 150, 0.95, "lower", 0, truth, None, (-1, 1), 1000)
    assert 0.1 < found.lower < found.estimate < 0.4
    assert (found.upper, found.method) == (1.0, "BCa bootstrap")
    same = resample(lambda w: macro_f1(candidate, w) - macro_f1(candidate, w), 150, 0.95, "lower", 0, truth)
    assert same.refused


def test_a_refused_interval_can_be_written_as_json() -> None:
    """Reports hold finite numbers alone; the rare refusal must not crash the stage that writes it."""
    record = mean_interval([1.0] * 31, 0.95, "lower", 0).as_record()
    assert (record["estimate"], record["lower"], record["upper"]) == (1.0, None, None)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_importing_is_light() -> None:
    """`make recipes` must answer at once: neither torch nor scipy may load before they are needed."""
    code = "import sys, finetune.stats; sys.exit(', '.join({'torch', 'scipy'} & set(sys.modules)) or 0)"
    source = Path(stats.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- The whole text of each kind of error: it is what a user or a caller has to act on.

ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: clopper_pearson(0, 0, 0.95, "lower"), "n is 0; at least one example is needed"),
    (lambda: wilson(5, 4, 0.95, "lower"), "5 successes are more than n = 4 examples"),
    (lambda: wilson(-1, 4, 0.95, "lower"), "successes is -1; a count is a whole number of 0 or more"),
    (
        lambda: clopper_pearson(30.5, 31, 0.95, "lower"),  # type: ignore[arg-type]
        "successes is 30.5; a count is a whole number of 0 or more",
    ),
    (
        lambda: clopper_pearson(math.nan, 31, 0.95, "lower"),  # type: ignore[arg-type]
        "successes is nan; a count is a whole number of 0 or more",
    ),
    (
        lambda: tango(0, 0, 9, 0.05, "lower"),
        "confidence is 0.05; it lies between 0.5 and 1 (0.95 for an error of 5%)",
    ),
    (
        lambda: mean_interval(scores(30), math.nan, "lower", 0),
        "confidence is nan; it lies between 0.5 and 1 (0.95 for an error of 5%)",
    ),
    (
        lambda: clopper_pearson(3, 4, 1.0, "lower"),
        "confidence is 1.0; it lies between 0.5 and 1 (0.95 for an error of 5%)",
    ),
    (
        lambda: wilson(3, 4, 0.95, "greater"),  # type: ignore[arg-type]
        "side is 'greater'; it is one of two-sided, lower, upper",
    ),
    (lambda: tango(3, 2, 4, 0.95, "lower"), "3 + 2 discordant pairs are more than n = 4 pairs"),
    (lambda: tango(0, 0, 0, 0.95, "lower"), "n is 0; at least one example is needed"),
    (
        lambda: mcnemar_midp(3, 2, "lower"),  # type: ignore[arg-type]
        "alternative is 'lower'; it is one of two-sided, greater, less",
    ),
    (
        lambda: mcnemar_asymptotic(-3, 2),
        "candidate_only is -3; a count is a whole number of 0 or more",
    ),
    (lambda: examples_needed(1.0, 0, 0.95), "threshold is 1.0; it lies between 0 and 1, both excluded"),
    (
        lambda: examples_needed(0.9, 0, 0.95, "upper"),
        "side is 'upper'; only a lower bound can reach a threshold",
    ),
    (lambda: examples_needed_not_worse(0, 0.95), "margin is 0; it lies between 0 and 1, both excluded"),
    (lambda: examples_needed_quantile(math.nan, 0.95), "q is nan; it lies between 0 and 1, both excluded"),
    (
        lambda: quantile_upper([], 0.9, 0.95),
        "values has shape (0,); at least one number in one row is needed",
    ),
    (
        lambda: mean_interval([[1.0], [2.0]], 0.95, "lower", 0),  # type: ignore[list-item]
        "values has shape (2, 1); at least one number in one row is needed",
    ),
    (
        lambda: mean_interval([1.0, math.nan], 0.95, "lower", 0),
        "values[1] is nan; every value is a finite number",
    ),
    (
        lambda: mean_interval([0.5, 1.5], 0.95, "lower", 0, bounds=(0, 1)),
        "values run from 0.5 to 1.5, outside their bounds (0, 1)",
    ),
    (
        lambda: paired_mean_difference([1.0, 2.0], [1.0], 0.95, "lower", 0),
        "candidate has 2 values and baseline 1; each example needs both",
    ),
    (
        lambda: relative_improvement([1.0, 2.0], [1.0, 0.0], 0.95, "lower", 0),
        "a relative improvement needs baselines above 0 and candidates of 0 or more",
    ),
    (
        lambda: mean_interval([1.0, 2.0], 0.95, "lower", 0, clusters=["a"]),
        "clusters has shape (1,); it needs one label for each of 2 examples",
    ),
    (
        lambda: resample(np.sum, 3, 0.95, "lower", 0, strata=["a", "b", "b"], clusters=[1, 1, 2]),
        "a cluster lies in two strata; give each cluster one, or leave out the strata",
    ),
    (
        lambda: resample(lambda w: math.nan, 30, 0.95, "lower", 0),
        "the statistic of a resample is nan; define it where a class is missing",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors_say_what_is_wrong(call: Callable[[], Any], text: str) -> None:
    """A wrong number that goes in must not come out as a verdict."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        call()
    assert str(caught.value) == text
