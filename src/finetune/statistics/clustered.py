"""Inference on right-or-wrong and paired scores of clustered examples: rows of one user, repetitions of a prompt.

Rows of one cluster tend to be right or wrong together, so they are worth fewer examples than there are rows. Reads and
writes no files. If each example is a separate cluster, all results are those of `proportions`.
"""

import numpy as np

from finetune.statistics.interval import (
    Alternative,
    Bound,
    Floats,
    Indices,
    Interval,
    Labels,
    Values,
    as_codes,
    as_finite,
    as_pairs,
    check_alternative,
    check_counts,
    tail_error,
)
from finetune.statistics.proportions import clopper_pearson, tango, tango_lower

Right = Values  # right or wrong: booleans, or 0 and 1
# A p-value near 0.01 / 5 then varies by 0.0003 (one standard deviation) with the seed; the minimum is 0.00005.
PERMUTATIONS = 20_000
SIGNS_AT_ONCE = 10**6  # 8 MB
ROUNDING = 1e-10  # of the largest score, per row: a smaller difference is due to floating point


def clustered_proportion(right: Right, clusters: Labels, confidence: float, side: Bound) -> Interval:
    """Return the Clopper-Pearson interval of the share of right examples (`(n,)`) at the effective sample size.

    Korn and Graubard, Survey Methodology 24 (1998), 193-201, made more conservative: see `_effective_size`. Clusters of
    one example each give `clopper_pearson`. A single cluster allows no bound and is refused.
    Measured over truths of 0.8, 0.95 and 0.98, 25 to 300 clusters, and sizes of 1 to 6, geometric, 10, or a few of 20
    among single ones: the error rate of a bound with a nominal rate of 0.05 is at most 0.003, 0.014 and 0.049 if rows
    correlate by 0.1, 0.5 and 1; that of a nominal 0.01 at most 0.008, of 0.0025 at most 0.0025 (sizes not all 10). The
    cost in power: with 0.995 right answers, 60 clusters of 1 to 6 never prove 0.95 (they are worth 48 examples), 150 do
    in 95 to 99%.
    Raises ValueError for scores that are neither right nor wrong, or labels of another length.
    """
    from scipy.stats import beta

    x, tail = _right("right", right), tail_error(confidence, side)
    unit = as_codes("clusters", clusters, len(x))
    share = float(x.mean())
    if _all_single(unit):
        return clopper_pearson(int(x.sum()), len(x), confidence, side)
    if not unit.any():
        return Interval(share, 0.0, 1.0, confidence, "none", _one_cluster(len(x)))
    size = _effective_size(x, unit, tail)
    successes, failures = share * size, (1 - share) * size
    lower = 0.0 if side == "upper" or not successes else float(beta.ppf(tail, successes, failures + 1))
    upper = 1.0 if side == "lower" or not failures else float(beta.ppf(1 - tail, successes + 1, failures))
    return Interval(share, lower, upper, confidence, f"Clopper-Pearson, effective sample size {size:.1f} (clusters)")


def clustered_difference(
    candidate_right: Right,
    baseline_right: Right,
    clusters: Labels,
    confidence: float,
    side: Bound,
) -> Interval:
    """Return Tango's interval of the paired difference of success rates (`(n,)` each) at the effective sample size.

    The discordant pairs keep their share of it: see `_effective_size`. Clusters of one example each give `tango`; a
    single cluster is refused.
    Measured as above, at margins of 0.05 and 0.02: the error rate of a bound with a nominal rate of 0.05 is at most
    0.003, 0.019 and 0.056 if rows correlate by 0.1, 0.5 and 1, except in `tango`'s own corner case, which 52 equal
    all-or-nothing clusters share (0.07). A cluster bootstrap is worse: BCa has 0.16 with 25 clusters, 0.13 with 60 and
    0.08 with 150 (margin 0.02, correlation 0.5).
    Raises ValueError as `clustered_proportion` does, and if the lengths differ.
    """
    from scipy.stats import norm

    as_pairs(candidate_right, baseline_right)
    new, old = _right("candidate_right", candidate_right), _right("baseline_right", baseline_right)
    unit, tail = as_codes("clusters", clusters, len(new)), tail_error(confidence, side)
    gained, lost, n = int((new > old).sum()), int((new < old).sum()), len(new)
    if _all_single(unit):
        return tango(gained, lost, n, confidence, side)
    estimate = (gained - lost) / n
    if not unit.any():
        return Interval(estimate, -1.0, 1.0, confidence, "none", _one_cluster(n))
    size, z = _effective_size(new - old, unit, tail), -float(norm.ppf(tail))
    won, gone = gained / n * size, lost / n * size
    lower = -1.0 if side == "upper" else tango_lower(won, gone, size, z)
    upper = 1.0 if side == "lower" else -tango_lower(gone, won, size, z)
    return Interval(estimate, lower, upper, confidence, f"Tango score, effective sample size {size:.1f} (clusters)")


def paired_permutation(
    candidate: Values,
    baseline: Values,
    alternative: Alternative,
    seed: int,
    clusters: Labels | None = None,
    n_resamples: int = PERMUTATIONS,
) -> float:
    """Return the sign-flip p-value of the mean of candidate - baseline (both `(n,)`); "greater": for a better
    candidate.

    If the two are alike, each cluster's difference could equally have the other sign: Fisher, The Design of Experiments
    (1935), section 21. If the clusters with a difference have at most `n_resamples` flips, all are tried:
    right-or-wrong scores then give `mcnemar_exact`. Otherwise, the result is (hits + 1) / (n_resamples + 1), which is
    also valid (Phipson and Smyth, SAGMB 9:39 (2010)) and at least 1 / (n_resamples + 1), two-sided twice that. Without
    a difference it is 1.
    It tests whether the two differ, and for a mean only whether they differ evenly: if clusters of 6 gain one row 0.12
    of the time and lose all 0.02 of it, so that the means are equal, it finds the candidate better 0.25 of the time at
    5% (60 clusters), because the losses may not be in the sample. `clustered_difference` then does so at most 0.03 of
    the time: with clusters, also require its lower bound to be above 0. Likewise for single lognormal losses: 0.09 (n =
    30).
    Raises ValueError for values that are not finite, another length, or an unknown alternative.
    """
    from scipy.stats import permutation_test

    new, old = as_pairs(candidate, baseline)
    check_alternative(alternative)
    check_counts(n=n_resamples)
    unit = np.arange(len(new)) if clusters is None else as_codes("clusters", clusters, len(new))
    sums = np.bincount(unit, weights=new - old)
    rounding = ROUNDING * np.maximum(np.abs(new), np.abs(old)).max() * len(new)
    sums = sums[np.abs(sums) > rounding]
    steps = np.round(sums / rounding)  # integers, so that totals that differ only by rounding are equal
    steps = np.pad(steps, (0, max(0, 2 - len(steps))))  # scipy requires two; a cluster of 0 changes no share
    test = permutation_test(
        [steps],
        np.sum,
        permutation_type="samples",
        alternative=alternative,
        n_resamples=n_resamples,
        batch=max(1, SIGNS_AT_ONCE // len(steps)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _effective_size(values: Floats, unit: Indices, tail: float) -> float:
    """Return how many independent examples carry as much information on the mean of `values` as these clustered rows.

    Korn and Graubard (1998): the variance of independent rows divided by that of the ratio estimator over clusters,
    times the squared ratio of the t quantiles of both degrees of freedom. They bound it by n. That errs too often if
    few clusters contain the rarer outcome, because the variance between clusters is then unknown (95%, 150 clusters of
    1 to 6 rows, truth 0.98: error rate 0.086 if rows correlate by 0.5, 0.115 if clusters are all or nothing). So it is
    bounded by n^2 / (sum of squared sizes) instead (Kish, Survey Sampling (1965)): the size if each cluster is all or
    nothing. This bound also applies if nothing varies. No cluster counts as more than one example.
    """
    from scipy.stats import t as student

    n, sizes = len(values), np.bincount(unit)
    count = len(sizes)
    least = float(n**2 / (sizes**2).sum())
    off = np.bincount(unit, weights=values) - values.mean() * sizes
    between = count / (count - 1) * float((off**2).sum()) / n**2
    if between < ROUNDING / n**2:  # off by rounding only
        return least
    freedom = float(student.ppf(tail, n - 1) / student.ppf(tail, count - 1)) ** 2
    return min(least, float(values.var()) / n / between * n * freedom)


def _right(name: str, right: Right) -> Floats:
    x = as_finite(name, right)
    other = x[(x != 0) & (x != 1)]
    if len(other):
        raise ValueError(f"{name} holds {other[0]:g}; an answer is right (1) or wrong (0)")
    return x


def _all_single(unit: Indices) -> bool:
    return int(unit.max()) + 1 == len(unit)


def _one_cluster(n: int) -> str:
    return f"all {n} examples are in one cluster; a bound needs at least two"
