"""Intervals and sample sizes of proportions, alone and paired."""

import math
from statistics import NormalDist

import numpy as np

from finetune.statistics.interval import (
    SCIPY_SIDE,
    Alternative,
    Bound,
    Interval,
    Values,
    _check_lower,
    _check_share,
    _smallest,
    as_finite,
    check_alternative,
    check_counts,
    tail_error,
)


def clopper_pearson(successes: int, n: int, confidence: float, side: Bound) -> Interval:
    """Return the exact interval of a proportion, whose error rate never exceeds the nominal one; used by the gate.

    Clopper and Pearson, Biometrika 26 (1934). Raises ValueError if n is 0 or less than `successes`.
    """
    return _proportion(successes, n, confidence, side, "exact", "Clopper-Pearson")


def wilson(successes: int, n: int, confidence: float, side: Bound) -> Interval:
    """Return the score interval of a proportion, accurate on average and narrower than the exact one; used for display.

    Wilson, JASA 22 (1927). Raises ValueError if n is 0 or less than `successes`.
    """
    return _proportion(successes, n, confidence, side, "wilson", "Wilson")


def examples_needed(threshold: float, failures: int, confidence: float, side: Bound = "lower") -> int:
    """Return the smallest n with `failures` failures whose Clopper-Pearson lower bound reaches `threshold`.

    Raises ValueError if `threshold` is not within (0, 1), or `side` has no lower bound.
    """
    _check_lower("threshold", threshold, confidence, side)
    check_counts(failures=failures)

    def reaches(n: int) -> bool:
        return clopper_pearson(n - failures, n, confidence, side).lower >= threshold

    return _smallest(reaches, failures + 1)


def tango(candidate_only: int, baseline_only: int, n: int, confidence: float, side: Bound) -> Interval:
    """Return the score interval of the paired difference of success rates, candidate - baseline (-1 to 1).

    `candidate_only` and `baseline_only` count the pairs that only this side got right; `n` counts all pairs. Tango,
    Statistics in Medicine 17 (1998), 891-908. In one corner case its error rate exceeds the nominal one: at 95% and n =
    52, a true difference of -0.05 that consists only of losses is "not worse by 0.05" 0.069 of the time. Raises
    ValueError if n is 0 or less than the discordant pairs.
    """
    check_counts(candidate_only=candidate_only, baseline_only=baseline_only, n=n)
    if candidate_only + baseline_only > n:
        raise ValueError(f"{candidate_only} + {baseline_only} discordant pairs are more than n = {n} pairs")
    z = -NormalDist().inv_cdf(tail_error(confidence, side))
    lower = -1.0 if side == "upper" else tango_lower(candidate_only, baseline_only, n, z)
    upper = 1.0 if side == "lower" else -tango_lower(baseline_only, candidate_only, n, z)
    return Interval((candidate_only - baseline_only) / n, lower, upper, confidence, "Tango score")


def examples_needed_not_worse(margin: float, confidence: float, side: Bound = "lower") -> int:
    """Return the smallest n at which `tango` without discordant pairs shows that a candidate is not worse by `margin`.

    Raises ValueError if `margin` is not within (0, 1), or `side` has no lower bound.
    """
    _check_lower("margin", margin, confidence, side)
    return _smallest(lambda n: tango(0, 0, n, confidence, side).lower > -margin, 1)


def margin_shown(n: int, confidence: float) -> float | None:
    """Return the smallest margin in hundredths that `n` pairs without a discordant one show; None if not below 1."""
    lower = tango(0, 0, n, confidence, "lower").lower
    return next((hundredths / 100 for hundredths in range(1, 100) if lower > -hundredths / 100), None)


def examples_needed_better(confidence: float) -> int:
    """Return the smallest n, all right only for the candidate, at which `mcnemar_exact` shows that it is better."""
    return _smallest(lambda n: mcnemar_exact(n, 0, "greater") < 1 - confidence, 1)


def mcnemar_exact(candidate_only: int, baseline_only: int, alternative: Alternative) -> float:
    """Return the exact p-value of paired right-or-wrong scores; "greater" tests whether the candidate is better.

    McNemar, Psychometrika 12 (1947). 1 without discordant pairs. Raises ValueError for negative counts.
    """
    from scipy.stats import binomtest

    discordant = _discordant(candidate_only, baseline_only, alternative)
    return float(binomtest(candidate_only, discordant, 0.5, alternative).pvalue) if discordant else 1.0


def quantile_upper(values: Values, q: float, confidence: float) -> float | None:
    """Return a distribution-free upper bound of the q-quantile: one of the values; None if n is too small.

    It is the smallest order statistic k with P(Binomial(n, q) < k) >= confidence: David and Nagaraja, Order Statistics
    (2003), 7.1. Raises ValueError without values, if one is not finite, or for q not within (0, 1).
    """
    x = np.sort(as_finite("values", values))
    rank = _quantile_rank(len(x), q, confidence)
    return float(x[rank - 1]) if rank <= len(x) else None


def examples_needed_quantile(q: float, confidence: float) -> int:
    """Return the smallest n for which `quantile_upper` gives a bound, the largest value. Raises in the same cases."""
    return _smallest(lambda n: _quantile_rank(n, q, confidence) <= n, 1)


def _quantile_rank(n: int, q: float, confidence: float) -> int:
    from scipy.stats import binom

    _check_share("q", q)
    tail_error(confidence, "upper")
    return int(binom.ppf(confidence, n, q)) + 1


def _proportion(successes: int, n: int, confidence: float, side: Bound, method: str, name: str) -> Interval:
    from scipy.stats import binomtest

    check_counts(successes=successes, n=n)
    if successes > n:
        raise ValueError(f"{successes} successes are more than n = {n} examples")
    tail_error(confidence, side)
    test = binomtest(successes, n, alternative=SCIPY_SIDE[side])
    found = test.proportion_ci(confidence, method=method)
    return Interval(successes / n, float(found.low), float(found.high), confidence, name)


def tango_lower(gained: float, lost: float, n: float, z: float) -> float:
    """Return where, below the estimate, the score of the difference is z; the counts may be fractions of examples."""
    from scipy.optimize import brentq

    estimate = (gained - lost) / n
    if lost == n:
        return -1.0

    def excess(difference: float) -> float:
        if difference >= estimate:  # the score is 0 there, and its variance may be too
            return -z
        # The most likely probability of a lost pair under this difference: the root of Tango's quadratic.
        linear = (2 * n - gained + lost) * difference - gained - lost
        root = math.sqrt(max(linear**2 + 8 * n * lost * difference * (1 - difference), 0.0))
        variance = n * ((root - linear) / (2 * n) + difference * (1 - difference))
        return (gained - lost - n * difference) / math.sqrt(max(variance, 1e-300)) - z

    return float(brentq(excess, -1.0, estimate))


def _discordant(candidate_only: int, baseline_only: int, alternative: Alternative) -> int:
    check_counts(candidate_only=candidate_only, baseline_only=baseline_only)
    check_alternative(alternative)
    return candidate_only + baseline_only
