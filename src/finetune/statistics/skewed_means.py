"""Intervals of means that are skewed to the right, such as latencies: the wider of bootstrap-t and log-normal."""

import math
from dataclasses import replace

import numpy as np

from finetune.statistics.bootstrap import MINIMUM_UNLIKE, RESAMPLES, draw_units, most_common, too_little
from finetune.statistics.interval import Bound, Floats, Interval, Labels, Range, Values, as_finite, as_pairs, tail_error

LOG_T = "bootstrap-t and log-normal"


def skewed_mean_interval(
    values: Values, confidence: float, side: Bound, seed: int, n_resamples: int = RESAMPLES
) -> Interval:
    """Return the interval of the mean of positive values skewed to the right, such as latencies; see `_log_t_bounds`.

    Measured with 1,000 to 2,000 studies each. The error rate of an upper bound with a nominal rate of 0.05 is 0.051,
    0.053, 0.051, 0.050 for log-normal values with sigma 1 and n = 20, 30, 60, 150 (BCa of `mean_interval`: 0.13 and
    0.09 at n = 20 and 60), 0.044 with sigma 0.5 and 0.3, 0.011 to 0.028 for gamma ones (shape 1 and 3). With a nominal
    0.01: 0.010 to 0.013, 0.005 to 0.009, 0.001 to 0.003. Lower bounds: at most 0.051 and 0.010. The cost: with sigma 1
    and 60 values the bound is 1.40 times the mean (BCa 1.29), with sigma 0.5 1.14 times (1.12).
    Limitation: slow, rare answers that are not in the sample are invisible to every method. If one answer in twenty
    takes five times as long, no such answer is among 20 (30, 60, 150) in 0.36 (0.21, 0.046, 0.0005) of all samples, and
    in those the bound is too low. A quantile (`proportions.quantile_upper`) is not affected.
    Refused in the same cases as `resample`. Raises ValueError without values, or if one is not finite or not above 0.
    """
    x = as_finite("values", values)
    if x.min() <= 0:
        raise ValueError(f"values has {x.min():g}; a skewed mean needs values above 0")
    (lower, upper), refusal = _log_t_or_refusal(x[None], confidence, side, seed, n_resamples)
    return _one_sided(
        Interval(float(x.mean()), lower, upper, confidence, "none" if refusal else LOG_T, refusal),
        side,
        (0.0, math.inf),
    )


def relative_improvement(
    candidate: Values,
    baseline: Values,
    confidence: float,
    side: Bound,
    seed: int,
    clusters: Labels | None = None,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """Return the paired interval of 1 - mean(candidate) / mean(baseline), for latencies: 0.2 is a fifth less time.

    Both are `(n,)`, above 0, in one unit, of the same requests; method: see `_log_t_bounds`; refused as `resample` is.
    Measured for log-normal pairs (600 to 1,000 studies, n = 20 and 60): the error rate of a bound on either side with a
    nominal rate of 0.05 is 0.040 to 0.054 with sigma 1 and a correlation of 0 or 0.7, with a nominal 0.01 0.003 to
    0.015; if one side has sigma 1 and the other 0.5, at most 0.058 and 0.011. BCa has up to 0.10 and 0.04 in the first
    case, 0.16 and 0.09 in the second.
    Raises ValueError if the lengths differ, or a value is not finite or not above 0.
    """
    new, old = as_pairs(candidate, baseline)
    if min(new.min(), old.min()) <= 0:
        raise ValueError("a relative improvement needs candidates and baselines above 0")
    unit, _ = draw_units(len(new), None, clusters)
    totals: Floats = np.stack([np.bincount(unit, weights=new), np.bincount(unit, weights=old)]).astype(np.float64)
    (lower, upper), refusal = _log_t_or_refusal(totals, confidence, side, seed, n_resamples)
    estimate = float(1 - new.mean() / old.mean())
    return _one_sided(
        Interval(estimate, 1 - upper, 1 - lower, confidence, "none" if refusal else LOG_T, refusal),
        side,
        (-math.inf, 1.0),
    )


def _one_sided(found: Interval, side: Bound, bounds: Range) -> Interval:
    """Return the interval, open to the end of the range on the side that is not requested."""
    lower = bounds[0] if side == "upper" else found.lower
    upper = bounds[1] if side == "lower" else found.upper
    return replace(found, lower=lower, upper=upper)


def _log_t_or_refusal(
    x: Floats, confidence: float, side: Bound, seed: int, n_resamples: int
) -> tuple[tuple[float, float], str]:
    """Return `_log_t_bounds`, or (0, inf) and the reason of a refusal."""
    tail = tail_error(confidence, side)
    rest = x.sum(axis=1, keepdims=True) - x  # the sums without each unit
    without = rest[0] / (rest[1] if len(x) > 1 else 1.0)
    refusal = too_little(x.shape[1], most_common(without)[1] if x.shape[1] > 1 else 0, MINIMUM_UNLIKE)
    if refusal:
        return (0.0, math.inf), refusal
    return _log_t_bounds(x, tail, np.random.default_rng(seed), max(n_resamples, math.ceil(10 / tail))), ""


def _log_t_bounds(x: Floats, tail: float, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """Return bounds of mean(x[0]), or of mean(x[0]) / mean(x[1]), each with error rate `tail`; `x` is `(1 or 2, n)`.

    The pivot is t = (log of the estimate - log of the truth) / standard error by the delta method. Its distribution is
    estimated twice: from resamples of the data (bootstrap-t, Efron and Tibshirani 1993, 12.5) and from log-normal
    samples with the covariance of log(x), which is itself drawn from its fiducial distribution, an inverse Wishart one.
    The wider bound is used: the data show their own shape, but few values do not show the tail.
    """
    units = x.shape[1]
    estimate, error = _log_and_error(x[:, None])
    drawn, normal = [], []
    for start in range(0, resamples, step := max(1, 10**6 // units)):  # 8 MB at a time
        count = min(step, resamples - start)
        value, spread = _log_and_error(x[:, rng.integers(0, units, (count, units))])
        drawn.append(_pivot(value - estimate, spread))
        normal.append(_log_normal_pivots(x, count, rng))
    low, high = [], []
    for pivots in (np.concatenate(drawn), np.concatenate(normal)):
        low.append(np.quantile(pivots, tail, method="lower"))
        high.append(np.quantile(pivots, 1 - tail, method="higher"))
    with np.errstate(over="ignore"):
        lower, upper = np.exp(estimate - max(high) * error), np.exp(estimate - min(low) * error)
    return float(lower[0]), float(upper[0])


def _log_normal_pivots(x: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return the pivot of `count` log-normal samples, each with another covariance that is compatible with log(x)."""
    k, n = x.shape
    variance = np.atleast_2d(np.cov(np.log(x)))
    root = np.linalg.cholesky(variance + 1e-12 * np.trace(variance) * np.eye(k))
    wishart = np.zeros((count, k, k))  # Bartlett's decomposition
    for at in range(k):
        wishart[:, at, at] = np.sqrt(rng.chisquare(n - 1 - at, count))
        wishart[:, at, :at] = rng.standard_normal((count, at))
    roots = math.sqrt(n - 1) * root @ np.linalg.inv(wishart).transpose(0, 2, 1)
    samples = np.exp(np.einsum("ski,isn->ksn", roots, rng.standard_normal((k, count, n))))
    value, spread = _log_and_error(samples)
    log_means = (roots**2).sum(axis=2) / 2
    return _pivot(value - (log_means[:, 0] - (log_means[:, 1] if k > 1 else 0.0)), spread)


def _log_and_error(x: Floats) -> tuple[Floats, Floats]:
    """Return log(mean(x[0]) / mean(x[1])), or log(mean(x[0])) of one row, over the last axis, with standard error."""
    means = x.mean(axis=-1, keepdims=True)
    shares = x / means
    values, offsets = np.log(means[..., 0]), shares[0] if len(x) == 1 else shares[0] - shares[1]
    error = offsets.std(axis=-1, ddof=1) / math.sqrt(x.shape[-1])
    return values[0] if len(x) == 1 else values[0] - values[1], error


def _pivot(off: Floats, error: Floats) -> Floats:
    """Return off / error; infinite if a resample without variance would be overconfident."""
    with np.errstate(all="ignore"):
        return np.where(error > 1e-10, off / error, np.copysign(np.inf, off))
