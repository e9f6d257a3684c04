"""Intervals and tests of proportions: published values, known pitfalls, and properties that must always hold."""

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

from finetune.statistics import interval
from finetune.statistics.proportions import (
    clopper_pearson,
    examples_needed,
    examples_needed_not_worse,
    examples_needed_quantile,
    mcnemar_exact,
    quantile_upper,
    tango,
    wilson,
)

SIDES: tuple[interval.Bound, ...] = ("two-sided", "lower", "upper")
confidences = st.sampled_from([0.8, 0.9, 0.95, 0.99, 0.995])
sides = st.sampled_from(SIDES)
sizes = st.integers(1, 300)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    """Draw successes and n."""
    n = draw(sizes)
    return draw(st.integers(0, n)), n


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw pairs that only the candidate got right, that only the baseline did, and the number of all pairs."""
    n = draw(sizes)
    candidate_only = draw(st.integers(0, n))
    return candidate_only, draw(st.integers(0, n - candidate_only)), n


# ---- Values: published ones, and those that the gate shows its users.


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
    """A perfect result on a small test set is the most common false proof; its bound is far from 98%."""
    assert interval(31, 31, 0.95, side).lower == pytest.approx(lower, abs=5e-6)


@pytest.mark.parametrize(
    ("side", "needed"),
    [("lower", [149, 236, 313, 386, 456, 523]), ("two-sided", [183, 277, 359, 436, 509, 581])],
)
def test_examples_needed_for_98_percent_are_as_documented(side: Any, needed: list[int]) -> None:
    """An inconclusive verdict shows these numbers to its user."""
    assert [examples_needed(0.98, failures, 0.95, side) for failures in range(6)] == needed


@pytest.mark.parametrize(("successes", "upper"), [(30, 0.9983), (29, 0.9884), (28, 0.9731)])
def test_upper_bound_of_three_failures_of_31_rejects_98_percent(successes: int, upper: float) -> None:
    """A criterion fails only if its upper bound is below the threshold: at 28 of 31, not at 29."""
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
def test_two_sided_intervals_equal_published_ones(interval: Any, successes: int, n: int, bounds: Any) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857-872: the implemented method is the named one."""
    found = interval(successes, n, 0.95, "two-sided")
    assert (found.lower, found.upper) == pytest.approx(bounds, abs=5e-5)


def test_mcnemar_p_value_equals_a_published_one() -> None:
    """Fagerland, Lydersen and Laake (2013), table 1."""
    assert mcnemar_exact(1, 7, "two-sided") == pytest.approx(0.0703, abs=5e-5)


def test_tango_interval_equals_a_published_one() -> None:
    """The same table by Tango's method; no dependency implements it, so the formula is our own."""
    found = tango(1, 7, 21, 0.95, "two-sided")
    assert (found.lower, found.upper) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [1, 31, 52, 1000])
def test_tango_bound_without_a_discordant_pair(n: int) -> None:
    """-z^2 / (n + z^2): equal answers on a small test set do not prove that nothing was lost."""
    squared = norm.ppf(0.95) ** 2
    assert tango(0, 0, n, 0.95, "lower").lower == pytest.approx(-squared / (n + squared), abs=1e-9)
    assert tango(0, 0, 31, 0.95, "lower").lower == pytest.approx(-0.0803, abs=5e-5)


@pytest.mark.parametrize(("margin", "needed"), [(0.05, 52), (0.02, 133)])
def test_examples_needed_for_not_worse_are_minimal(margin: float, needed: int) -> None:
    """The gate passes at this n and not at one less, so the advice is minimal."""
    assert examples_needed_not_worse(margin, 0.95) == needed
    assert tango(0, 0, needed, 0.95, "lower").lower > -margin >= tango(0, 0, needed - 1, 0.95, "lower").lower


def test_six_to_zero_is_the_smallest_significant_mcnemar() -> None:
    """Five wins and no loss may be chance at 5% two-sided; only an approximation would pass them."""
    assert mcnemar_exact(6, 0, "two-sided") == pytest.approx(0.031, abs=5e-4)
    assert mcnemar_exact(5, 0, "two-sided") > 0.05


def test_quantile_bound_of_p95_needs_59_values() -> None:
    """With 58 latencies even the slowest is not a 95% bound of p95, so there is None."""
    values = list(range(1, 59))
    assert examples_needed_quantile(0.95, 0.95) == 59
    assert quantile_upper(values, 0.95, 0.95) is None
    assert quantile_upper([*values, 59], 0.95, 0.95) == 59
    assert quantile_upper(range(93, 0, -1), 0.95, 0.95) == 92  # the second largest, first allowed at n = 93


# ---- Pitfalls: no method may turn missing evidence into certainty.


def test_mcnemar_can_be_one_sided() -> None:
    """Libraries offer only two-sided tests; "better than the baseline" is a one-sided question."""
    assert mcnemar_exact(5, 0, "greater") == pytest.approx(1 / 32)
    assert mcnemar_exact(5, 0, "less") == pytest.approx(1)


def test_no_discordant_pair_is_no_evidence() -> None:
    """Two models with equal answers must not look different."""
    assert mcnemar_exact(0, 0, "two-sided") == mcnemar_exact(0, 0, "greater") == 1


def test_tango_has_the_documented_worst_error_rate() -> None:
    """The score interval is approximate; the documented worst case is computed exactly."""
    losses = np.arange(53)
    passes = [tango(0, int(lost), 52, 0.95, "lower").lower > -0.05 for lost in losses]
    assert binom.pmf(losses, 52, 0.05) @ passes == pytest.approx(0.069, abs=5e-4)


# ---- Properties for all inputs.


@given(counts(), confidences, sides)
def test_proportions_are_inside_their_interval(count: tuple[int, int], confidence: float, side: Any) -> None:
    """An estimate outside its own interval would be contradictory."""
    for bounds_of in (clopper_pearson, wilson):
        found = bounds_of(*count, confidence, side)
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
def test_clopper_pearson_never_exceeds_its_error_rate(n: int, side: Any) -> None:
    """The exact probability of covering the truth, over all outcomes, justifies the word "proves" in a verdict."""
    outcomes = [clopper_pearson(k, n, 0.95, side) for k in range(n + 1)]
    for truth in np.linspace(0.01, 0.99, 99):
        covers = [found.lower <= truth <= found.upper for found in outcomes]
        assert binom.pmf(np.arange(n + 1), n, truth) @ covers >= 0.95 - 1e-9


@settings(deadline=None, max_examples=50)
@given(st.floats(0.5, 0.999), st.integers(0, 20), confidences, st.sampled_from(["lower", "two-sided"]))
def test_examples_needed_is_the_smallest_passing_number(
    threshold: float, failures: int, confidence: float, side: Any
) -> None:
    """With the advised number of examples and as few failures, the gate passes; with one fewer it does not."""
    needed = examples_needed(threshold, failures, confidence, side)
    assert clopper_pearson(needed - failures, needed, confidence, side).lower >= threshold
    fewer = needed - 1
    if fewer > failures:
        assert clopper_pearson(fewer - failures, fewer, confidence, side).lower < threshold


def score_by_search(difference: float, gained: int, lost: int, n: int) -> float:
    """Return Tango's score with its nuisance found by maximizing the likelihood, not by the closed form."""

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
    """At a bound the score is the normal quantile; the nuisance parameter is found by another method here."""
    found = tango(*table, confidence, "two-sided")
    z = norm.ppf((1 + confidence) / 2)
    if found.lower > -1:
        assert score_by_search(found.lower, *table) == pytest.approx(z, rel=1e-3)
    if found.upper < 1:
        assert score_by_search(found.upper, *table) == pytest.approx(-z, rel=1e-3)


@given(pairs(), confidences, sides)
def test_tango_contains_its_estimate_and_mirrors(table: tuple[int, int, int], confidence: float, side: Any) -> None:
    """Swapping the two models must only change the sign, or the gate would favour a side."""
    gained, lost, n = table
    found = tango(gained, lost, n, confidence, side)
    other_side: Any = {"lower": "upper", "upper": "lower"}.get(side, side)
    mirror = tango(lost, gained, n, confidence, other_side)
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1
    assert (mirror.lower, mirror.upper) == pytest.approx((-found.upper, -found.lower), abs=1e-9)


@pytest.mark.parametrize("table", [(0, 999_999, 10**6), (10**6, 0, 10**6), (1, 10**9 - 1, 10**9), (0, 0, 10**9)])
def test_tango_works_for_large_and_extreme_tables(table: tuple[int, int, int]) -> None:
    """Near the ends rounding can make the variance negative, so that its root must not be taken."""
    found = tango(*table, 0.95, "two-sided")
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1
    assert found.upper - found.lower < 1e-2


@given(pairs())
def test_tango_gets_stricter_with_confidence(table: tuple[int, int, int]) -> None:
    """Each further use of a test set raises the confidence, and may only make passing harder."""
    bounds = [tango(*table, confidence, "lower").lower for confidence in (0.9, 0.95, 0.99, 0.999)]
    assert bounds == sorted(bounds, reverse=True)


@given(st.integers(0, 200), st.integers(0, 200))
def test_swapping_the_models_swaps_mcnemars_alternative(gained: int, lost: int) -> None:
    """One-sided, the p-value of "better" is that of "worse" with the models swapped."""
    p = mcnemar_exact
    assert p(gained, lost, "greater") == pytest.approx(p(lost, gained, "less"), abs=1e-12)
    assert p(gained, lost, "two-sided") == pytest.approx(p(lost, gained, "two-sided"), abs=1e-12)
    assert all(0 <= p(gained, lost, alternative) <= 1 for alternative in ("two-sided", "greater", "less"))


@given(st.floats(0.5, 0.99), confidences)
def test_quantile_bound_exists_from_the_advised_size_on(q: float, confidence: float) -> None:
    """Advice and bound must follow one rule, or the advised number could be insufficient."""
    needed = examples_needed_quantile(q, confidence)
    assert quantile_upper(np.arange(needed), q, confidence) is not None
    assert needed == 1 or quantile_upper(np.arange(needed - 1), q, confidence) is None
    assert 1 - q**needed >= confidence - 1e-9


@pytest.mark.parametrize(("n", "q", "confidence"), [(59, 0.95, 0.95), (100, 0.9, 0.95), (200, 0.5, 0.99)])
def test_quantile_bound_never_exceeds_its_error_rate(n: int, q: float, confidence: float) -> None:
    """The bound's rank k fails with probability P(Binomial(n, q) >= k); one rank less would fail too often."""
    rank = quantile_upper(np.arange(1, n + 1), q, confidence)
    assert rank is not None
    assert binom.cdf(rank - 1, n, q) >= confidence > binom.cdf(rank - 2, n, q)


@pytest.mark.parametrize("module", ["proportions", "bootstrap", "clustered", "skewed_means"])
def test_importing_is_fast(module: str) -> None:
    """`finetune recipes` must answer at once: neither torch nor scipy may load before they are needed."""
    code = (
        f"import sys, finetune.statistics.{module}; sys.exit(', '.join({{'torch', 'scipy'}} & set(sys.modules)) or 0)"
    )
    source = Path(interval.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- The complete text of each kind of error, for users and callers.

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
        "confidence is 0.05; it must be between 0.5 and 1 (0.95 for an error of 5%)",
    ),
    (
        lambda: clopper_pearson(3, 4, 1.0, "lower"),
        "confidence is 1.0; it must be between 0.5 and 1 (0.95 for an error of 5%)",
    ),
    (
        lambda: wilson(3, 4, 0.95, "greater"),  # type: ignore[arg-type]
        "side is 'greater'; it is one of two-sided, lower, upper",
    ),
    (lambda: tango(3, 2, 4, 0.95, "lower"), "3 + 2 discordant pairs are more than n = 4 pairs"),
    (lambda: tango(0, 0, 0, 0.95, "lower"), "n is 0; at least one example is needed"),
    (
        lambda: mcnemar_exact(3, 2, "lower"),  # type: ignore[arg-type]
        "alternative is 'lower'; it is one of two-sided, greater, less",
    ),
    (
        lambda: mcnemar_exact(-3, 2, "greater"),
        "candidate_only is -3; a count is a whole number of 0 or more",
    ),
    (lambda: examples_needed(1.0, 0, 0.95), "threshold is 1.0; it must be between 0 and 1, both excluded"),
    (
        lambda: examples_needed(0.9, 0, 0.95, "upper"),
        "side is 'upper'; only a lower bound can reach a threshold",
    ),
    (lambda: examples_needed_not_worse(0, 0.95), "margin is 0; it must be between 0 and 1, both excluded"),
    (lambda: examples_needed_quantile(math.nan, 0.95), "q is nan; it must be between 0 and 1, both excluded"),
    (
        lambda: quantile_upper([], 0.9, 0.95),
        "values has shape (0,); at least one number in one row is needed",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors_describe_the_problem(call: Callable[[], Any], text: str) -> None:
    """An invalid number as input must raise an error instead of giving a verdict."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        call()
    assert str(caught.value) == text
