"""Intervals, paired tests and sample sizes: what the verdict rests on, no surer than the data allows.

Reads and writes nothing. Where the data allows no bound, the interval is open and says why
(`Interval.refused`). scipy is imported on first use: it takes 0.8 s, and light commands stay light.
"""

import math
import warnings
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
Statistic = Callable[[Floats], float]
UnitStatistic = Callable[[NDArray[Any]], float]  # of how often each unit is drawn

REALS = (-math.inf, math.inf)
RESAMPLES = 5000  # the error rate of a 95% bound then moves by 0.003 (one standard deviation) with the seed
# Measured: a one-sided 95% BCa bound of a mean should err 0.05 of the time. With 5, 10, 20 and 30 normal
# values it errs 0.11, 0.08, 0.06, 0.06; with lognormal ones (sigma 0.5) 0.17, 0.12, 0.08, 0.08.
MINIMUM_UNITS = 20
# Measured: a candidate worse by 0.05 on 52 right-or-wrong pairs is shown "not worse by 0.05" by BCa at 95%
# up to 0.09 of the time where one discordant pair is enough to use it, 0.07 with three, 0.06 with five.
MINIMUM_UNLIKE = 5
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
    _check_counts(failures=failures)

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
    _check_counts(candidate_only=candidate_only, baseline_only=baseline_only, n=n)
    if candidate_only + baseline_only > n:
        raise ValueError(f"{candidate_only} + {baseline_only} discordant pairs are more than n = {n} pairs")
    z = -NormalDist().inv_cdf(_tail(confidence, side))
    lower = -1.0 if side == "upper" else _tango_lower(candidate_only, baseline_only, n, z)
    upper = 1.0 if side == "lower" else -_tango_lower(baseline_only, candidate_only, n, z)
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


def mean_interval(
    values: Values,
    confidence: float,
    side: Side,
    seed: int,
    clusters: Labels | None = None,
    bounds: Range = REALS,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """BCa bootstrap interval of the mean of `values` (shape `(n,)`, any unit); options as in `resample`.

    Where too little varies for a bootstrap, finite `bounds` (the least and greatest value possible) still give
    one, unless there are clusters: at most a Clopper-Pearson share of all examples differs from the most
    common value, at worst by the whole range. 31 scores of 1 within (0, 1) give what `clopper_pearson` does.
    Raises ValueError for no value, one that is not finite or out of bounds, or labels of another length.
    """
    x = _finite("values", values)
    if x.min() < bounds[0] or x.max() > bounds[1]:
        raise ValueError(f"values run from {x.min():g} to {x.max():g}, outside their bounds {bounds}")

    def mean(weights: Floats) -> float:
        return float(weights @ x / weights.sum())

    found = resample(mean, len(x), confidence, side, seed, None, clusters, bounds, n_resamples)
    if not found.refused or clusters is not None or not np.isfinite(bounds).all():
        return found
    mode, others = _most_common(x)
    share = clopper_pearson(others, len(x), confidence, "two-sided" if side == "two-sided" else "upper").upper
    lower = found.lower if side == "upper" else mode - share * (mode - bounds[0])
    upper = found.upper if side == "lower" else mode + share * (bounds[1] - mode)
    return Interval(found.estimate, lower, upper, confidence, "Clopper-Pearson share of the range")


def paired_mean_difference(
    candidate: Values,
    baseline: Values,
    confidence: float,
    side: Side,
    seed: int,
    clusters: Labels | None = None,
    bounds: Range = REALS,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """`mean_interval` of candidate - baseline, example by example (both `(n,)`); `bounds` are those of it.

    Raises ValueError as it does, and where the lengths differ.
    """
    new, old = _paired(candidate, baseline)
    return mean_interval(new - old, confidence, side, seed, clusters, bounds, n_resamples)


def relative_improvement(
    candidate: Values,
    baseline: Values,
    confidence: float,
    side: Side,
    seed: int,
    clusters: Labels | None = None,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """Paired BCa interval of 1 - mean(candidate) / mean(baseline), for latencies: 0.2 is a fifth less time.

    Both are `(n,)`, in one unit, of the same requests; options as in `resample`. Raises ValueError where the
    lengths differ, a value is not finite, a candidate is negative, or a baseline is not above 0.
    """
    new, old = _paired(candidate, baseline)
    if new.min() < 0 or old.min() <= 0:
        raise ValueError("a relative improvement needs baselines above 0 and candidates of 0 or more")

    def saved(weights: Floats) -> float:
        return float(1 - weights @ new / (weights @ old))

    return resample(saved, len(new), confidence, side, seed, None, clusters, (-math.inf, 1.0), n_resamples)


def resample(
    statistic: Statistic,
    n: int,
    confidence: float,
    side: Side,
    seed: int,
    strata: Labels | None = None,
    clusters: Labels | None = None,
    bounds: Range = REALS,
    n_resamples: int = RESAMPLES,
    minimum_unlike: int = MINIMUM_UNLIKE,
) -> Interval:
    """BCa bootstrap interval of `statistic(weights)`; `weights`, `(n,)`, is how often each example was drawn.

    `clusters` labels examples that are drawn together (rows of one conversation, repeats of one prompt); each
    of the `strata` keeps its number of draws. `bounds` is the statistic's range. It is called `n_resamples`
    times (more where the confidence needs it) and once for each unit. Refused below MINIMUM_UNITS units, or
    where fewer than `minimum_unlike` move the statistic otherwise than the most common unit of their stratum:
    what never happened in the sample is unseen. 1 will do for a metric of one model that is nearly perfect
    (macro-F1 with 3 to 5 errors, measured at 95%: errs 0.04 to 0.085), not for a difference of two (to 0.14).
    Efron, JASA 82 (1987), 171-185. Not the percentile method: measured with rare failures it errs 0.026 of
    the time at 99.5%, BCa 0.003. Raises ValueError for labels of another length, a cluster in two strata, or
    a statistic that is not finite.
    """
    _check_counts(n=n)
    _tail(confidence, side)
    unit, stratum = _draw_units(n, strata, clusters)

    def value(draws: NDArray[Any]) -> float:
        result = float(statistic(draws[unit].astype(np.float64)))
        if not math.isfinite(result):
            raise ValueError(f"the statistic of a resample is {result}; define it where a class is missing")
        return result

    estimate = value(np.ones(len(stratum)))
    found, refusal = _bca_or_refusal(value, stratum, confidence, side, seed, n_resamples, minimum_unlike)
    method = f"none: {refusal}" if refusal else "BCa bootstrap"
    lower, upper = max(found[0], float(bounds[0])), min(found[1], float(bounds[1]))
    return Interval(estimate, lower, upper, confidence, method)


def quantile_upper(values: Values, q: float, confidence: float) -> float | None:
    """Upper bound of the q-quantile, whatever the distribution: one of the values; None where n is too small.

    It is the smallest order statistic k with P(Binomial(n, q) < k) >= confidence: David and Nagaraja, Order
    Statistics (2003), 7.1. Raises ValueError for no value, one that is not finite, or q not within (0, 1).
    """
    x = np.sort(_finite("values", values))
    rank = _quantile_rank(len(x), q, confidence)
    return float(x[rank - 1]) if rank <= len(x) else None


def examples_needed_quantile(q: float, confidence: float) -> int:
    """Smallest n for which `quantile_upper` gives a bound, the greatest value. Raises as it does."""
    return _smallest(lambda n: _quantile_rank(n, q, confidence) <= n, 1)


def _quantile_rank(n: int, q: float, confidence: float) -> int:
    from scipy.stats import binom

    _check_share("q", q)
    _tail(confidence, "upper")
    return int(binom.ppf(confidence, n, q)) + 1


def _proportion(successes: int, n: int, confidence: float, side: Side, method: str, name: str) -> Interval:
    from scipy.stats import binomtest

    _check_counts(successes=successes, n=n)
    if successes > n:
        raise ValueError(f"{successes} successes are more than n = {n} examples")
    _tail(confidence, side)
    test = binomtest(successes, n, alternative=SCIPY_SIDE[side])
    found = test.proportion_ci(confidence, method=method)
    return Interval(successes / n, float(found.low), float(found.high), confidence, name)


def _tango_lower(gained: int, lost: int, n: int, z: float) -> float:
    """Where, below the estimate, the score of the difference is z."""
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


def _bca_or_refusal(
    value: UnitStatistic,
    stratum: Indices,
    confidence: float,
    side: Side,
    seed: int,
    n_resamples: int,
    minimum_unlike: int,
) -> tuple[Range, str]:
    """Bounds, or open ones and the reason why a bootstrap would feign certainty."""
    units = len(stratum)
    if units < MINIMUM_UNITS:
        return REALS, f"{units} independent examples, a bootstrap needs {MINIMUM_UNITS}"
    without = np.array([value(np.arange(units) != one) for one in range(units)])
    unlike = sum(_most_common(without[stratum == label])[1] for label in np.unique(stratum))
    if unlike < minimum_unlike:
        return REALS, f"{unlike} examples differ from the most common one, a bootstrap needs {minimum_unlike}"
    found = _bca_bounds(value, without, stratum, confidence, side, seed, n_resamples)
    return (REALS, "BCa is undefined for this sample") if np.isnan(found).any() else (found, "")


def _bca_bounds(
    value: UnitStatistic,
    without: Floats,
    stratum: Indices,
    confidence: float,
    side: Side,
    seed: int,
    n_resamples: int,
) -> Range:
    """BCa bounds of `value(draws of each unit)`, NaN where undefined; `without[i]` is it without unit i."""
    from scipy.stats import bootstrap

    def drawn(*units: Indices) -> float:
        taken = np.concatenate(units)
        if len(taken) < len(stratum):  # scipy's jackknife: one unit is missing, and its value is known
            return float(without[np.arange(len(stratum)).sum() - taken.sum()])
        return value(np.bincount(taken, minlength=len(stratum)))

    enough = math.ceil(10 / _tail(confidence, side))  # ten resamples beyond a bound
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # that BCa is undefined shows as NaN
        found = bootstrap(
            [np.flatnonzero(stratum == label) for label in np.unique(stratum)],
            drawn,
            vectorized=False,
            n_resamples=max(n_resamples, enough),
            batch=max(1, 10**6 // len(stratum)),  # 8 MB of indices at a time
            confidence_level=confidence,
            alternative=SCIPY_SIDE[side],
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def _draw_units(n: int, strata: Labels | None, clusters: Labels | None) -> tuple[Indices, Indices]:
    """The unit of each example and the stratum of each unit.

    A unit alone in its stratum would be drawn every time and so feign certainty: it joins the next smallest.
    """
    unit = np.arange(n) if clusters is None else _codes("clusters", clusters, n)
    of_example = np.zeros(n, dtype=np.intp) if strata is None else _codes("strata", strata, n)
    stratum = np.zeros(unit.max() + 1, dtype=np.intp)
    stratum[unit] = of_example
    if (stratum[unit] != of_example).any():
        raise ValueError("a cluster lies in two strata; give each cluster one, or leave out the strata")
    while True:
        labels, sizes = np.unique(stratum, return_counts=True)
        if len(labels) == 1 or sizes.min() > 1:
            return unit, stratum
        smallest, next_smallest = labels[np.argsort(sizes, kind="stable")[:2]]
        stratum[stratum == smallest] = next_smallest


def _codes(name: str, labels: Labels, n: int) -> Indices:
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}; it needs one label for each of {n} examples")
    return np.unique(array, return_inverse=True)[1]


def _most_common(values: Floats) -> tuple[float, int]:
    """The most common value and how many values differ from it by more than rounding."""
    ordered = np.sort(values)
    steps = np.diff(ordered) > 1e-10 * np.abs(ordered).max()
    group = np.concatenate([[0], np.cumsum(steps)])
    sizes = np.bincount(group)
    return float(ordered[group == sizes.argmax()][0]), int(len(values) - sizes.max())


def _smallest(is_enough: Callable[[int], bool], least: int) -> int:
    """The smallest n from `least` on that is enough, where every larger one is too."""
    low = high = least
    while not is_enough(high):
        low, high = high + 1, 2 * high
    return low + bisect_left(range(low, high), True, key=is_enough)


def _tail(confidence: float, side: Side) -> float:
    """The error probability of one bound. A confidence under 0.5 is most likely an alpha given by mistake."""
    if side not in get_args(Side):
        raise ValueError(f"side is {side!r}; it is one of {', '.join(get_args(Side))}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0.5 and 1 (0.95 for an error of 5%)")
    return (1 - confidence) / 2 if side == "two-sided" else 1 - confidence


def _check_lower(name: str, share: float, confidence: float, side: Side) -> None:
    _check_share(name, share)
    _tail(confidence, side)
    if side == "upper":
        raise ValueError(f"side is 'upper'; only a lower bound can reach a {name}")


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name} is {share}; it lies between 0 and 1, both excluded")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 0:
            raise ValueError(f"{name} is {count}; a count is a whole number of 0 or more")
        if name == "n" and count == 0:
            raise ValueError("n is 0; at least one example is needed")


def _discordant(candidate_only: int, baseline_only: int, alternative: Alternative) -> int:
    _check_counts(candidate_only=candidate_only, baseline_only=baseline_only)
    if alternative not in get_args(Alternative):
        raise ValueError(f"alternative is {alternative!r}; it is one of {', '.join(get_args(Alternative))}")
    return candidate_only + baseline_only


def _finite(name: str, values: Values) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; at least one number in one row is needed")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}[{at}] is {array[at]}; every value is a finite number")
    return array


def _paired(candidate: Values, baseline: Values) -> tuple[Floats, Floats]:
    new, old = _finite("candidate", candidate), _finite("baseline", baseline)
    if len(new) != len(old):
        raise ValueError(f"candidate has {len(new)} values and baseline {len(old)}; each example needs both")
    return new, old
