"""Evidence from clustered rows."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from scipy.stats import t as student

from finetune.statistics.clustered import PERMUTATIONS, clustered_difference, clustered_proportion, paired_permutation
from finetune.statistics.proportions import clopper_pearson, mcnemar_exact, tango
from tests.builders.interval_inputs import SIDES, sides

confidences = st.sampled_from([0.8, 0.95, 0.9975])
alternatives = st.sampled_from(["greater", "less", "two-sided"])


@st.composite
def clustered(draw: st.DrawFn) -> tuple[list[bool], list[bool], list[int]]:
    """Draw both models' answers, right or wrong, and the cluster of each row: at least two clusters."""
    rows = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=2, max_size=60)
    found = draw(rows.filter(lambda found: len({label for _, _, label in found}) > 1))
    return [row[0] for row in found], [row[1] for row in found], [row[2] for row in found]


# ---- The effective sample size of clusters.


@given(st.lists(st.booleans(), min_size=1, max_size=80), confidences, sides)
def test_single_rows_are_judged_as_without_clusters(right: list[bool], confidence: float, side: Any) -> None:
    """The advised number of examples must not depend on whether single rows have cluster names."""
    labels = [f"user {at}" for at in range(len(right))]
    assert clustered_proportion(right, labels, confidence, side) == clopper_pearson(
        sum(right), len(right), confidence, side
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80), confidences, sides)
def test_single_pairs_are_judged_as_without_clusters(pairs: Any, confidence: float, side: Any) -> None:
    """The paired difference must not depend on it, either."""
    new, old = zip(*pairs, strict=True)
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    assert clustered_difference(new, old, range(len(new)), confidence, side) == tango(
        gained, lost, len(new), confidence, side
    )


@pytest.mark.parametrize("side", SIDES)
def test_copies_of_a_row_are_worth_one_row(side: Any) -> None:
    """Three equal generations of a prompt are worth one: exactly so in this test, as the sizes are equal."""
    right, old = [True] * 30 + [False] * 4, [True] * 33 + [False]
    labels = np.repeat(np.arange(34), 3)
    found = clustered_proportion(np.repeat(right, 3), labels, 0.95, side)
    once = clopper_pearson(30, 34, 0.95, side)
    # A little less: the quantile of t has 33 degrees of freedom instead of 101.
    assert found.lower <= once.lower
    assert found.upper >= once.upper
    assert (found.lower, found.upper) == pytest.approx((once.lower, once.upper), abs=0.01)
    pair = clustered_difference(np.repeat(right, 3), np.repeat(old, 3), labels, 0.95, side)
    once = tango(0, 3, 34, 0.95, side)
    assert (pair.lower, pair.upper) == pytest.approx((once.lower, once.upper), abs=0.02)


def test_the_effective_size_is_korn_and_graubards() -> None:
    """The formulas are written out again; cluster sizes are so even that Kish's bound is above the result."""
    sizes = np.array([1] * 40 + [2] * 3)
    right = np.ones(46)
    right[[2, 3, 5, 8]] = 0
    right[40:44] = 0  # two pairs wrong together
    labels = np.repeat(np.arange(43), sizes)
    share = 38 / 46
    off = [right[labels == one].sum() - share * size for one, size in enumerate(sizes)]
    variance = 43 / 42 * sum(value**2 for value in off) / 46**2
    size = share * (1 - share) / variance * (student.ppf(0.95, 45) / student.ppf(0.95, 42)) ** 2
    assert size < 46**2 / (sizes**2).sum()
    found = clustered_proportion(right, labels, 0.95, "lower")
    assert found.lower == pytest.approx(beta.ppf(0.05, share * size, size - share * size + 1))
    assert found.estimate == share
    assert found.method == f"Clopper-Pearson, effective sample size {size:.1f} (clusters)"


def test_perfect_clusters_have_kishs_effective_size() -> None:
    """Without a wrong answer the correlation is unknown and the worst is assumed: 12^2 / (4 + 16 + 36)."""
    labels = [0] * 2 + [1] * 4 + [2] * 6
    size = 144 / 56
    assert clustered_proportion([1] * 12, labels, 0.95, "lower").lower == pytest.approx(0.05 ** (1 / size))
    assert clustered_proportion([0] * 12, labels, 0.95, "upper").upper == pytest.approx(1 - 0.05 ** (1 / size))
    z_squared = 1.6448536**2
    difference = clustered_difference([1] * 12, [1] * 12, labels, 0.95, "lower")
    assert difference.lower == pytest.approx(-z_squared / (size + z_squared), rel=1e-6)


def test_a_failure_never_raises_the_bound() -> None:
    """With Korn and Graubard's bound alone, one wrong row would raise the bound of 60 perfect clusters of 3."""
    labels, right = np.repeat(np.arange(60), 3), np.ones(180)
    spotless = clustered_proportion(right, labels, 0.95, "lower").lower
    right[0] = 0
    assert clustered_proportion(right, labels, 0.95, "lower").lower < spotless
    assert clopper_pearson(179, 180, 0.95, "lower").lower > spotless


def test_balanced_clusters_count_at_most_once() -> None:
    """Each pair has one right and one wrong row: the estimated variance is 0, which must not prove anything."""
    labels, right = np.repeat(np.arange(20), 2), [True, False] * 20
    found = clustered_proportion(right, labels, 0.95, "two-sided")
    exact = clopper_pearson(10, 20, 0.95, "two-sided")
    assert (found.lower, found.upper) == pytest.approx((exact.lower, exact.upper))


@settings(deadline=None)
@given(clustered(), confidences, sides)
def test_clustered_intervals_contain_their_estimate_and_mirror(rows: Any, confidence: float, side: Any) -> None:
    """An interval must contain its estimate, and must favour neither right answers nor a model."""
    new, old, labels = rows
    other: Any = {"lower": "upper", "upper": "lower"}.get(side, side)
    share = clustered_proportion(new, labels, confidence, side)
    mirror = clustered_proportion([not value for value in new], labels, confidence, other)
    assert 0 <= share.lower <= share.estimate <= share.upper <= 1
    assert (mirror.lower, mirror.upper) == pytest.approx((1 - share.upper, 1 - share.lower), abs=1e-9)
    gain = clustered_difference(new, old, labels, confidence, side)
    mirror = clustered_difference(old, new, labels, confidence, other)
    assert -1 <= gain.lower <= gain.estimate <= gain.upper <= 1
    assert (mirror.lower, mirror.upper) == pytest.approx((-gain.upper, -gain.lower), abs=1e-9)
    assert side != "lower" or share.upper == gain.upper == 1
    assert side != "upper" or (share.lower, gain.lower) == (0, -1)


@given(clustered(), confidences)
def test_a_cluster_counts_as_one_example_at_most(rows: Any, confidence: float) -> None:
    """The error rates rely on this; it must not depend on names or order of the rows."""
    right, _, labels = rows
    found = clustered_proportion(right, labels, confidence, "lower")
    renamed = clustered_proportion(right[::-1], [f"u{9 - label}" for label in labels[::-1]], confidence, "lower")
    assert renamed.lower == pytest.approx(found.lower, abs=1e-9)
    if len(set(labels)) < len(labels):
        assert float(found.method.split()[-2]) <= len(set(labels)) + 0.05


def test_one_cluster_gives_no_bound() -> None:
    """A thousand rows of one user show nothing about other users; the criterion is inconclusive."""
    share = clustered_proportion([1] * 9, ["a"] * 9, 0.95, "lower")
    gain = clustered_difference([1] * 9, [0] * 9, ["a"] * 9, 0.95, "lower")
    reason = "all 9 examples are in one cluster; a bound needs at least two"
    assert (share.refused, share.lower, share.upper, share.refusal) == (True, 0.0, 1.0, reason)
    assert (gain.refused, gain.lower, gain.upper, gain.refusal) == (True, -1.0, 1.0, reason)


# ---- The permutation test.


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 9), alternatives)
def test_all_flips_of_single_pairs_equal_mcnemars_test(gained: int, lost: int, same: int, alternative: Any) -> None:
    """Two tests of one question on the same answers must agree."""
    new = [1] * gained + [0] * lost + [1] * (same + 1)
    old = [0] * gained + [1] * lost + [1] * (same + 1)
    expected = mcnemar_exact(gained, lost, alternative)
    assert paired_permutation(new, old, alternative, 0) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-9, 9), min_size=2, max_size=8), alternatives)
def test_few_differences_are_tested_with_all_flips(differences: list[float], alternative: Any) -> None:
    """By definition, the p-value is the share of sign choices with a total as extreme as the observed one."""
    x = np.round(differences, 2)
    totals = np.array([np.dot(x, signs) for signs in itertools.product([1, -1], repeat=len(x))])
    towards = {"greater": totals - x.sum(), "less": x.sum() - totals, "two-sided": abs(totals) - abs(x.sum())}
    expected = np.mean(towards[alternative] > -1e-9)
    assert paired_permutation(x, np.zeros(len(x)), alternative, 0) == pytest.approx(expected, abs=1e-12)


def test_random_flips_approach_the_exact_value() -> None:
    """With too many flips, some are drawn: the value varies by its standard error, and the seed fixes it."""
    new, old = [1] * 40 + [0] * 20, [0] * 40 + [1] * 20
    exact = mcnemar_exact(40, 20, "greater")  # 0.0067
    found = paired_permutation(new, old, "greater", 5)
    assert found == paired_permutation(new, old, "greater", 5)
    assert found != paired_permutation(new, old, "greater", 6)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact / PERMUTATIONS))
    assert paired_permutation(new, old, "less", 5) == pytest.approx(1, abs=0.01)
    assert paired_permutation(new, old, "two-sided", 5) == pytest.approx(2 * exact, abs=0.003)


def test_random_flips_never_give_zero() -> None:
    """Even if no flip is as extreme, the value is (0 + 1) / (n + 1): a p-value of 0 would pass any alpha."""
    assert paired_permutation([1] * 200, [0] * 200, "greater", 0, n_resamples=99) == 0.01
    assert paired_permutation([1] * 200, [0] * 200, "greater", 0) == pytest.approx(1 / 20_001)
    assert PERMUTATIONS > 10 / (0.01 / 5)  # the fifth use at alpha 0.01 can still be significant


def test_clusters_are_flipped_as_units() -> None:
    """Ten gains of one user are one gain: 4 users give 1/16 at best, for any number of rows."""
    labels = np.repeat(list("abcd"), 10)
    assert paired_permutation(np.ones(40), np.zeros(40), "greater", 0, labels) == 1 / 16
    assert paired_permutation(np.ones(40), np.zeros(40), "two-sided", 0, labels) == 1 / 8
    assert paired_permutation(np.ones(40), np.zeros(40), "greater", 0) < 0.001


def test_ties_within_rounding_count_as_extreme() -> None:
    """0.1 + 0.2 and 0.3 are the same total; ignoring the tie would halve the p-value."""
    assert paired_permutation([0.1, 0.2, -0.3], [0.0] * 3, "greater", 0) == 5 / 8
    assert paired_permutation([0.3, -0.1, -0.2], [0.0] * 3, "greater", 0) == 5 / 8
    assert paired_permutation([-0.1, -0.2, 0.3], [0.0] * 3, "less", 0) == 5 / 8


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_no_difference_is_no_evidence(alternative: Any) -> None:
    """The same holds for differences from floating point, or that cancel within each cluster."""
    assert paired_permutation([1, 0, 1] * 30, [1, 0, 1] * 30, alternative, 0) == 1
    assert paired_permutation([0.1 + 0.2] * 30, [0.3] * 30, alternative, 0) == 1
    rounded = paired_permutation([1.0] * 5 + [0.1 + 0.2] * 30, [0.0] * 5 + [0.3] * 30, "greater", 0)
    assert rounded == 1 / 32  # the 30 are not clusters with a difference, so all flips of the 5 are tried
    assert paired_permutation([1, 0] * 30, [0, 1] * 30, alternative, 0, np.repeat(np.arange(30), 2)) == 1


# ---- The complete text of each kind of error.

ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: clustered_proportion([1, 0], ["a"], 0.95, "lower"),
        "clusters has shape (1,); it needs one label for each of 2 examples",
    ),
    (
        lambda: clustered_proportion([1, 0], ["a", None], 0.95, "lower"),
        "clusters[1] is None; every example needs a label",
    ),
    (
        lambda: clustered_difference([1, 0], [1, 1], [0.0, math.nan], 0.95, "lower"),
        "clusters[1] is nan; every example needs a label",
    ),
    (
        lambda: clustered_proportion([1, math.nan], [0, 1], 0.95, "lower"),
        "right[1] is nan; every value is a finite number",
    ),
    (
        lambda: clustered_proportion([1, 0.5], [0, 1], 0.95, "lower"),
        "right holds 0.5; an answer is right (1) or wrong (0)",
    ),
    (
        lambda: clustered_proportion([1, 1], [0, 1], 0.05, "lower"),
        "confidence is 0.05; it must be between 0.5 and 1 (0.95 for an error of 5%)",
    ),
    (
        lambda: clustered_difference([1, 0], [1, 2], [0, 0], 0.95, "lower"),
        "baseline_right holds 2; an answer is right (1) or wrong (0)",
    ),
    (
        lambda: clustered_difference([1, 0], [1], [0, 0], 0.95, "lower"),
        "candidate has 2 values and baseline 1; each example needs both",
    ),
    (
        lambda: clustered_difference([1, 0], [1, 0], [0, 0], 0.95, "greater"),  # type: ignore[arg-type]
        "side is 'greater'; it is one of two-sided, lower, upper",
    ),
    (
        lambda: paired_permutation([1.0, math.inf], [1.0, 2.0], "greater", 0),
        "candidate[1] is inf; every value is a finite number",
    ),
    (
        lambda: paired_permutation([1.0], [2.0], "lower", 0),  # type: ignore[arg-type]
        "alternative is 'lower'; it is one of two-sided, greater, less",
    ),
    (lambda: paired_permutation([1.0], [2.0], "less", 0, n_resamples=0), "n is 0; at least one example is needed"),
    (
        lambda: paired_permutation([1.0, 2.0], [2.0, 2.0], "less", 0, ["a"]),
        "clusters has shape (1,); it needs one label for each of 2 examples",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors_describe_the_problem(call: Callable[[], Any], text: str) -> None:
    """An invalid number as input must raise an error instead of giving a verdict."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        call()
    assert str(caught.value) == text
