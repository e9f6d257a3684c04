"""Intervals, paired tests and sample sizes: what the verdict rests on, no surer than the data allows.

Reads and writes nothing. Where the data allows no bound, the interval is open and says why
(`Interval.refused`). scipy is imported on first use: it takes 0.8 s, and light commands stay light.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Side = Literal["two-sided", "lower", "upper"]
Alternative = Literal["two-sided", "greater", "less"]
Range = tuple[float, float]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Values = Sequence[float] | NDArray[Any]
Labels = Sequence[Any] | NDArray[Any]

REALS = (-math.inf, math.inf)
SCIPY_SIDE = {"two-sided": "two-sided", "lower": "greater", "upper": "less"}


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds; a one-sided interval is open to the end of the parameter's range."""

    estimate: float
    lower: float
    upper: float
    confidence: float
    method: str

    @property
    def refused(self) -> bool:
        """True where the data allows no bound: `method` holds the reason, and a criterion is inconclusive."""
        return self.method.startswith("none:")

    def as_record(self) -> dict[str, float | str | None]:
        """The fields for a JSON report; an infinite bound is None, as JSON has no infinity."""
        fields = asdict(self).items()
        return {name: None if value in REALS else value for name, value in fields}


def clopper_pearson(successes: int, n: int, confidence: float, side: Side) -> Interval:
    """Exact interval of a proportion, which never errs more often than it says; the one to gate on.

    Clopper and Pearson, Biometrika 26 (1934). Raises ValueError where n is 0 or less than `successes`.
    """
    return _proportion(successes, n, confidence, side, "exact", "Clopper-Pearson")


def wilson(successes: int, n: int, confidence: float, side: Side) -> Interval:
    """Score interval of a proportion, right on average and narrower than the exact one; the one to show.

    Wilson, JASA 22 (1927). Raises ValueError where n is 0 or less than `successes`.
    """
    return _proportion(successes, n, confidence, side, "wilson", "Wilson")


def examples_needed(threshold: float, failures: int, confidence: float, side: Side = "lower") -> int:
    """Smallest n with that many failures at which the Clopper-Pearson lower bound reaches `threshold`.

    Raises ValueError where `threshold` is not within (0, 1), or `side` has no lower bound.
    """
    _check_lower("threshold", threshold, confidence, side)
    check_counts(failures=failures)

    def reaches(n: int) -> bool:
        return clopper_pearson(n - failures, n, confidence, side).lower >= threshold

    return _smallest(reaches, failures + 1)


def tango(candidate_only: int, baseline_only: int, n: int, confidence: float, side: Side) -> Interval:
    """Score interval of the paired difference of success rates, candidate - baseline (-1 to 1).

    `candidate_only` and `baseline_only` count the pairs that only that one got right; `n` counts all pairs.
    Tango, Statistics in Medicine 17 (1998), 891-908. In a corner it errs more often than it says: at 95% and
    n = 52, a true difference of -0.05 made of losses alone is "not worse by 0.05" 0.069 of the time.
    Raises ValueError where n is 0 or less than the discordant pairs.
    """
    check_counts(candidate_only=candidate_only, baseline_only=baseline_only, n=n)
    if candidate_only + baseline_only > n:
        raise ValueError(f"{candidate_only} + {baseline_only} discordant pairs are more than n = {n} pairs")
    z = -NormalDist().inv_cdf(tail_error(confidence, side))
    lower = -1.0 if side == "upper" else tango_lower(candidate_only, baseline_only, n, z)
    upper = 1.0 if side == "lower" else -tango_lower(baseline_only, candidate_only, n, z)
    return Interval((candidate_only - baseline_only) / n, lower, upper, confidence, "Tango score")


def examples_needed_not_worse(margin: float, confidence: float, side: Side = "lower") -> int:
    """Smallest n at which `tango` of no discordant pair shows a candidate that is not worse by `margin`.

    Raises ValueError where `margin` is not within (0, 1), or `side` has no lower bound.
    """
    _check_lower("margin", margin, confidence, side)
    return _smallest(lambda n: tango(0, 0, n, confidence, side).lower > -margin, 1)


def mcnemar_exact(candidate_only: int, baseline_only: int, alternative: Alternative) -> float:
    """Exact p-value of paired right-or-wrong scores; "greater" asks whether the candidate is better.

    McNemar, Psychometrika 12 (1947). No discordant pair is no evidence: 1. ValueError for negative counts.
    """
    from scipy.stats import binomtest

    discordant = _discordant(candidate_only, baseline_only, alternative)
    return float(binomtest(candidate_only, discordant, 0.5, alternative).pvalue) if discordant else 1.0


def mcnemar_midp(candidate_only: int, baseline_only: int, alternative: Alternative) -> float:
    """The exact p-value less half the chance of a table as extreme as this one: less timid, no guarantee.

    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013). Else as `mcnemar_exact`.
    """
    from scipy.stats import binom

    exact = mcnemar_exact(candidate_only, baseline_only, alternative)
    if not candidate_only + baseline_only:
        return exact
    # Two-sided, the mirror image of the table is as extreme, and another table unless the counts are equal.
    mirrored = alternative == "two-sided" and candidate_only != baseline_only
    chance = float(binom.pmf(candidate_only, candidate_only + baseline_only, 0.5))
    return exact - (chance if mirrored else chance / 2)


def mcnemar_asymptotic(candidate_only: int, baseline_only: int) -> float:
    """Two-sided p-value of the chi-square form without continuity correction. Else as `mcnemar_exact`."""
    discordant = _discordant(candidate_only, baseline_only, "two-sided")
    return math.erfc(abs(candidate_only - baseline_only) / math.sqrt(2 * discordant)) if discordant else 1.0


def quantile_upper(values: Values, q: float, confidence: float) -> float | None:
    """Upper bound of the q-quantile, whatever the distribution: one of the values; None where n is too small.

    It is the smallest order statistic k with P(Binomial(n, q) < k) >= confidence: David and Nagaraja, Order
    Statistics (2003), 7.1. Raises ValueError for no value, one that is not finite, or q not within (0, 1).
    """
    x = np.sort(as_finite("values", values))
    rank = _quantile_rank(len(x), q, confidence)
    return float(x[rank - 1]) if rank <= len(x) else None


def examples_needed_quantile(q: float, confidence: float) -> int:
    """Smallest n for which `quantile_upper` gives a bound, the greatest value. Raises as it does."""
    return _smallest(lambda n: _quantile_rank(n, q, confidence) <= n, 1)


def _quantile_rank(n: int, q: float, confidence: float) -> int:
    from scipy.stats import binom

    _check_share("q", q)
    tail_error(confidence, "upper")
    return int(binom.ppf(confidence, n, q)) + 1


def _proportion(successes: int, n: int, confidence: float, side: Side, method: str, name: str) -> Interval:
    from scipy.stats import binomtest

    check_counts(successes=successes, n=n)
    if successes > n:
        raise ValueError(f"{successes} successes are more than n = {n} examples")
    tail_error(confidence, side)
    test = binomtest(successes, n, alternative=SCIPY_SIDE[side])
    found = test.proportion_ci(confidence, method=method)
    return Interval(successes / n, float(found.low), float(found.high), confidence, name)


def tango_lower(gained: float, lost: float, n: float, z: float) -> float:
    """Where, below the estimate, the score of the difference is z; the counts may be fractions of examples."""
    from scipy.optimize import brentq

    estimate = (gained - lost) / n
    if lost == n:
        return -1.0

    def excess(difference: float) -> float:
        if difference >= estimate:  # the score is 0 there, and its variance may be too
            return -z
        # The likeliest chance of a lost pair under this difference: the root of Tango's quadratic.
        linear = (2 * n - gained + lost) * difference - gained - lost
        root = math.sqrt(max(linear**2 + 8 * n * lost * difference * (1 - difference), 0.0))
        variance = n * ((root - linear) / (2 * n) + difference * (1 - difference))
        return (gained - lost - n * difference) / math.sqrt(max(variance, 1e-300)) - z

    return float(brentq(excess, -1.0, estimate))


def _smallest(is_enough: Callable[[int], bool], least: int) -> int:
    """The smallest n from `least` on that is enough, where every larger one is too."""
    low = high = least
    while not is_enough(high):
        low, high = high + 1, 2 * high
    return low + bisect_left(range(low, high), True, key=is_enough)


def tail_error(confidence: float, side: Side) -> float:
    """The error probability of one bound. A confidence under 0.5 is most likely an alpha given by mistake."""
    if side not in get_args(Side):
        raise ValueError(f"side is {side!r}; it is one of {', '.join(get_args(Side))}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0.5 and 1 (0.95 for an error of 5%)")
    return (1 - confidence) / 2 if side == "two-sided" else 1 - confidence


def _check_lower(name: str, share: float, confidence: float, side: Side) -> None:
    _check_share(name, share)
    tail_error(confidence, side)
    if side == "upper":
        raise ValueError(f"side is 'upper'; only a lower bound can reach a {name}")


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name} is {share}; it lies between 0 and 1, both excluded")


def check_counts(**counts: int) -> None:
    """ValueError for a count that is none; the one named n is at least 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 0:
            raise ValueError(f"{name} is {count}; a count is a whole number of 0 or more")
        if name == "n" and count == 0:
            raise ValueError("n is 0; at least one example is needed")


def _discordant(candidate_only: int, baseline_only: int, alternative: Alternative) -> int:
    check_counts(candidate_only=candidate_only, baseline_only=baseline_only)
    check_alternative(alternative)
    return candidate_only + baseline_only


def check_alternative(alternative: Alternative) -> None:
    """ValueError for a question that no test here answers."""
    if alternative not in get_args(Alternative):
        raise ValueError(f"alternative is {alternative!r}; it is one of {', '.join(get_args(Alternative))}")


def as_finite(name: str, values: Values) -> Floats:
    """The values as `(n,)` floats; ValueError for no value, another shape, or one that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; at least one number in one row is needed")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}[{at}] is {array[at]}; every value is a finite number")
    return array


def as_codes(name: str, labels: Labels, n: int) -> Indices:
    """Labels as numbers from 0 on, `(n,)`; ValueError for another shape, or an example without a label."""
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}; it needs one label for each of {n} examples")
    # Examples without a label would otherwise share one, or be strangers to each other: nobody knows which.
    lacking = [at for at, label in enumerate(labels) if label is None or label != label]
    if lacking:
        raise ValueError(f"{name}[{lacking[0]}] is {labels[lacking[0]]}; every example needs a label")
    return np.unique(array, return_inverse=True)[1]


def as_pairs(candidate: Values, baseline: Values) -> tuple[Floats, Floats]:
    """Both as `as_finite`, of one length; else ValueError."""
    new, old = as_finite("candidate", candidate), as_finite("baseline", baseline)
    if len(new) != len(old):
        raise ValueError(f"candidate has {len(new)} values and baseline {len(old)}; each example needs both")
    return new, old
