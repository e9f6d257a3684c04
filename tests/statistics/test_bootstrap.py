"""The bootstrap: known pitfalls, and properties that must always hold."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from finetune.statistics import bootstrap
from finetune.statistics.bootstrap import mean_interval, paired_mean_difference, resample
from finetune.statistics.interval import Interval
from finetune.statistics.proportions import clopper_pearson
from finetune.statistics.skewed_means import relative_improvement, skewed_mean_interval
from tests.builders.interval_inputs import SIDES, scores, sides

# Efron and Tibshirani (1993), table 3.1: entry test and grade average of 15 law schools.
LSAT = np.array([576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594.0])
GPA = np.array([3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96])


# ---- A published number.


def test_law_school_correlation_equals_the_published_interval() -> None:
    """Efron and Tibshirani (1993), chapter 14: weights and leave-one-out values are correctly passed to BCa."""

    def correlation(draws: np.ndarray) -> float:
        share = draws / draws.sum()
        x, y = LSAT - share @ LSAT, GPA - share @ GPA
        return float(share @ (x * y) / math.sqrt((share @ x**2) * (share @ y**2)))

    without = np.array([correlation(np.arange(15) != one) for one in range(15)])
    one_stratum = np.zeros(15, dtype=np.intp)
    found = bootstrap._bca_bounds(correlation, without, one_stratum, 0.90, "two-sided", 0, 40_000)
    assert found == pytest.approx((0.43, 0.92), abs=0.01)
    assert found == pytest.approx((0.430, 0.927), abs=0.004)  # the limit, measured with 400,000 resamples


# ---- Pitfalls: no method may turn missing evidence into certainty.


def test_31_of_31_is_no_proof_with_any_method() -> None:
    """A percentile bootstrap gives [1, 1] here and BCa NaN; a pass of 98% would be a false proof."""
    spotless = [1.0] * 31
    found = mean_interval(spotless, 0.95, "lower", 0)
    reason = "0 examples differ from the most common value; a bootstrap needs 5"
    assert found == Interval(1.0, -math.inf, math.inf, 0.95, "none", reason)
    assert found.refused
    assert mean_interval(spotless, 0.95, "lower", 0, bounds=(0, 1)).lower < 0.98
    assert clopper_pearson(31, 31, 0.95, "lower").lower < 0.98


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("failures", [0, 1, 4])
def test_scores_without_variance_use_the_exact_interval(side: Any, failures: int) -> None:
    """The range of scores still allows a bound; for binary scores it is the one that the gate uses."""
    right = [1.0] * (100 - failures) + [0.0] * failures
    found = mean_interval(right, 0.95, side, 0, bounds=(0, 1))
    exact = clopper_pearson(100 - failures, 100, 0.95, side)
    assert not found.refused
    assert found.lower == pytest.approx(exact.lower, abs=1e-9)
    assert found.upper == 1.0  # conservative: the bounded share applies to the loss from the most common score


def test_equal_fractional_scores_are_bounded_on_both_sides() -> None:
    """In the worst case a share 1 - 0.05^(1/n) of all examples is at the far end of the range, above or below."""
    share = 1 - 0.05 ** (1 / 40)
    assert mean_interval([0.5] * 40, 0.95, "lower", 0, bounds=(0, 1)).lower == pytest.approx(0.5 - share / 2)
    assert mean_interval([0.5] * 40, 0.95, "upper", 0, bounds=(0, 1)).upper == pytest.approx(0.5 + share / 2)


@pytest.mark.parametrize(("n", "refused"), [(1, True), (19, True), (20, False)])
def test_too_few_values_are_refused(n: int, refused: bool) -> None:
    """For a handful of values, a bootstrap errs several times as often as stated."""
    found = mean_interval(scores(n), 0.95, "upper", 0)
    assert found.refused == refused == math.isinf(found.upper)
    assert not refused or found.refusal == f"{n} independent examples; a bootstrap needs 20"


@pytest.mark.parametrize(("unlike", "refused"), [(4, True), (5, False)])
def test_a_single_win_does_not_prove_that_nothing_is_lost(unlike: int, refused: bool) -> None:
    """With few discordant pairs a bootstrap never draws the loss that has not happened yet."""
    candidate, baseline = np.ones(60), np.ones(60)
    baseline[:unlike] = 0
    assert paired_mean_difference(candidate, baseline, 0.95, "lower", 0).refused == refused


def test_a_nearly_perfect_model_can_still_pass() -> None:
    """Three errors of 200 allow a clear pass; without any error there is still no bootstrap."""
    right = np.ones(200)

    def share_right(weights: np.ndarray) -> float:
        return float(weights @ right / weights.sum())

    assert resample(share_right, 200, 0.95, "lower", 0, minimum_unlike=1).refused
    right[:3] = 0
    assert 0.95 < resample(share_right, 200, 0.95, "lower", 0, minimum_unlike=1).lower < 0.985
    assert resample(share_right, 200, 0.95, "lower", 0).refused


def test_rounding_errors_do_not_count_as_variance() -> None:
    """0.1 + 0.2 - 0.3 is not 0: differences from floating point must not enter a bootstrap."""
    values = np.array([0.3, 0.1 + 0.2] * 20)
    assert mean_interval(values, 0.95, "two-sided", 0).refused
    assert relative_improvement(0.7 * scores(40), scores(40), 0.95, "lower", 0).refused


def test_repeats_of_one_prompt_do_not_add_examples() -> None:
    """Five equal generations for each of 30 prompts are worth 30 answers."""
    once = scores(30)
    clusters = np.repeat(np.arange(30), 5)
    repeated = mean_interval(np.repeat(once, 5), 0.95, "two-sided", 0, clusters)
    alone = mean_interval(once, 0.95, "two-sided", 0)
    naive = mean_interval(np.repeat(once, 5), 0.95, "two-sided", 0)
    assert (repeated.lower, repeated.upper) == pytest.approx((alone.lower, alone.upper))
    assert naive.upper - naive.lower < 0.6 * (alone.upper - alone.lower)
    assert mean_interval(scores(200), 0.95, "lower", 0, np.arange(200) % 19).refused


def test_a_range_open_above_gives_no_bound() -> None:
    """A latency has no greatest value: the refusal applies to both sides, not only below."""
    for side in SIDES:
        found = mean_interval([1.0] * 31, 0.95, side, 0, bounds=(0, math.inf))
        assert (found.refused, found.lower, found.upper) == (True, 0.0, math.inf)


def test_the_bounds_of_scores_are_not_used_with_clusters() -> None:
    """The fallback needs independent examples; 100 rows of 2 conversations are not."""
    found = mean_interval(np.ones(100), 0.95, "lower", 0, np.arange(100) % 2, (0, 1))
    assert (found.refused, found.lower, found.upper) == (True, 0.0, 1.0)


def test_a_statistic_without_a_bca_interval_is_refused() -> None:
    """No resample has as many distinct examples as the sample: scipy returns NaN, which must be refused."""
    x = scores(40)
    found = resample(lambda w: float((w > 0) @ x), 40, 0.95, "two-sided", 0)
    assert (found.refusal, found.upper) == ("BCa is undefined for this sample", math.inf)


# ---- Properties for all inputs.


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(20, 60), sides, st.floats(0.1, 50), st.floats(-50, 50))
def test_mean_interval_follows_a_change_of_unit(seed: int, n: int, side: Any, scale: float, shift: float) -> None:
    """The verdict must not depend on seconds or milliseconds; and a bound is on its side of the mean."""
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


def test_mean_interval_of_many_normal_values_equals_students() -> None:
    """Where textbook theory holds, the bootstrap agrees with it within a few percent of the width."""
    x = np.random.default_rng(3).normal(10, 2, 400)
    expected = student.interval(0.95, 399, x.mean(), x.std(ddof=1) / 20)
    found = mean_interval(x, 0.95, "two-sided", 0)
    assert (found.lower, found.upper) == pytest.approx(expected, abs=0.03)


def test_the_same_seed_gives_the_same_bounds() -> None:
    """`dvc repro` compares the report's bytes; another seed changes a bound only by its noise."""
    first, again, other = (mean_interval(scores(50), 0.95, "lower", seed) for seed in (1, 1, 2))
    assert first == again
    assert first.lower != other.lower
    assert first.lower == pytest.approx(other.lower, abs=0.02)


def test_pairing_removes_shared_variation() -> None:
    """Examples differ more than models; an unpaired comparison would hide a real gain."""
    baseline = 10 * scores(60)
    candidate = baseline + 0.1 + 0.05 * scores(60, seed=1)
    assert paired_mean_difference(candidate, baseline, 0.95, "lower", 0).lower > 0.1
    assert mean_interval(candidate, 0.95, "lower", 0).lower < baseline.mean()


def test_relative_improvement_is_a_ratio_of_means() -> None:
    """20% less time is 0.2 in any unit; the mean of single ratios would be another number."""
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
    """An outlier must not make a latency inconclusive that is far below its limit."""
    latencies = np.append(0.1 + 0.01 * scores(59), 0.5)
    found = mean_interval(latencies, 0.95, "upper", 0)
    assert 0.12 < found.upper < 0.16


# ---- Resamples.


def recorded(n: int, **options: Any) -> list[np.ndarray]:
    """Return all weights passed to a statistic."""
    seen: list[np.ndarray] = []
    x = scores(n)

    def statistic(weights: np.ndarray) -> float:
        seen.append(weights)
        return float(weights @ x / weights.sum())

    resample(statistic, n, 0.95, "lower", 0, n_resamples=300, **options)
    return seen


def test_resamples_are_integer_weights_of_the_examples() -> None:
    """A metric's `sample_weight` gets first all examples, then each one left out, then the draws."""
    seen = recorded(30)
    assert (seen[0] == 1).all()
    assert sorted(int(np.flatnonzero(weights == 0)[0]) for weights in seen[1:31]) == list(range(30))
    draws = np.array(seen[31:])
    assert draws.dtype == np.float64
    assert (draws.sum(axis=1) == 30).all()
    assert (draws == draws.astype(int)).all()
    assert draws.max() > 1


def test_strata_keep_their_size_and_all_vary() -> None:
    """A class keeps its share in each resample; a class with one example would otherwise look certain."""
    strata = ["a"] * 20 + ["b"] * 9 + ["c"] * 3 + ["d"]
    draws = np.array(recorded(33, strata=strata)[34:])
    assert (draws[:, :20].sum(axis=1) == 20).all()
    assert (draws[:, 20:29].sum(axis=1) == 9).all()
    assert (draws[:, 29:].sum(axis=1) == 4).all()
    assert draws[:, 32].std() > 0


def test_clusters_are_resampled_as_units() -> None:
    """Rows of one conversation are dependent; drawn one by one they would count as independent."""
    clusters = np.arange(75) % 25
    for weights in recorded(75, clusters=clusters):
        assert (weights[:25] == weights[25:50]).all()
        assert (weights[:25] == weights[50:]).all()


def test_high_confidence_gets_enough_resamples() -> None:
    """A bound at 99.9% from 300 resamples would be their minimum; at least ten must be beyond it."""
    calls = 0
    x = scores(40)

    def mean(weights: np.ndarray) -> float:
        nonlocal calls
        calls += 1
        return float(weights @ x / weights.sum())

    resample(mean, 40, 0.999, "lower", 0, n_resamples=300)
    assert calls >= 10_000


def test_paired_f1_is_resampled_with_one_draw_for_both() -> None:
    """The main use of `resample`: a difference of two set-level metrics, paired by example."""
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
    """Reports contain only finite numbers; a refused interval must not crash the stage that writes it."""
    record = mean_interval([1.0] * 31, 0.95, "lower", 0).as_record()
    assert (record["estimate"], record["lower"], record["upper"]) == (1.0, None, None)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


# ---- The complete text of each kind of error, for users and callers.

ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: mean_interval(scores(30), math.nan, "lower", 0),
        "confidence is nan; it must be between 0.5 and 1 (0.95 for an error of 5%)",
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
        "a relative improvement needs candidates and baselines above 0",
    ),
    (
        lambda: skewed_mean_interval([1.0, 0.0], 0.95, "upper", 0),
        "values has 0; a skewed mean needs values above 0",
    ),
    (
        lambda: mean_interval([1.0, 2.0], 0.95, "lower", 0, clusters=["a"]),
        "clusters has shape (1,); it needs one label for each of 2 examples",
    ),
    (
        lambda: resample(np.sum, 3, 0.95, "lower", 0, strata=["a", "b", "b"], clusters=[1, 1, 2]),
        "a cluster is in two strata; give each cluster one, or leave out the strata",
    ),
    (
        lambda: resample(lambda w: math.nan, 30, 0.95, "lower", 0),
        "the statistic of a resample is nan; define it where a class is missing",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors_describe_the_problem(call: Callable[[], Any], text: str) -> None:
    """An invalid number as input must raise an error instead of giving a verdict."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        call()
    assert str(caught.value) == text
