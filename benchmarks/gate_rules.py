"""The probability that a rule of the gate passes a candidate of known quality: computed if possible, else simulated.

Rules on single examples are computed exactly, over all outcomes. A `Study` draws one test set of clusters, latencies or
scores and applies the rule; `rate` is the share of many such sets that pass.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import binom

from finetune.statistics.bootstrap import paired_mean_difference, resample
from finetune.statistics.clustered import clustered_difference, clustered_proportion, paired_permutation
from finetune.statistics.proportions import clopper_pearson, mcnemar_exact, quantile_upper, tango
from finetune.statistics.skewed_means import relative_improvement, skewed_mean_interval

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
SEED = 1
LARGEST_CLUSTER = 6
FEW = 1000  # resamples; the gate uses 5,000
Random = np.random.Generator
Study = Callable[[Random], bool]  # draws one test set; True if the gate passes


# ------------------------------------------------------------------------------------------------------- computed


def at_least(n: int, truth: float, threshold: float, confidence: float = CONFIDENCE) -> float:
    """Return the probability that n examples, each right with probability `truth`, prove a rate of `threshold`."""

    def passes(successes: int) -> bool:
        return clopper_pearson(successes, n, confidence, "lower").lower >= threshold

    return float(binom.sf(bisect_left(range(n + 1), True, key=passes) - 1, n, truth))


def not_worse(n: int, loss: float, gain: float, margin: float, confidence: float = CONFIDENCE) -> float:
    """Return the probability that n pairs with these chances of a loss and a gain prove "not worse by `margin`"."""
    return over_pairs(n, loss, gain, lambda lost, won: tango(won, lost, n, confidence, "lower").lower > -margin)


def better(n: int, loss: float, gain: float, confidence: float = CONFIDENCE) -> float:
    """Return the probability that the exact McNemar test finds the candidate better."""
    return over_pairs(n, loss, gain, lambda lost, won: mcnemar_exact(won, lost, "greater") < 1 - confidence)


def over_pairs(n: int, loss: float, gain: float, passes: Callable[[int, int], bool]) -> float:
    """Sum the probability of `passes(lost, gained)` over all tables; with equal losses, more gains never hurt."""
    total = 0.0
    for lost in range(n + 1):
        weight = float(binom.pmf(lost, n, loss))
        if weight > 1e-12:
            least = bisect_left(range(n - lost + 1), True, key=partial(passes, lost))
            total += weight * float(binom.sf(least - 1, n - lost, gain / (1 - loss)))
    return total


# ------------------------------------------------------------------------------------------------------ simulated


def rate(study: Study, studies: int, seed: int = SEED) -> float:
    """Return the share of simulated test sets that pass."""
    rng = np.random.default_rng(seed)
    return sum(study(rng) for _ in range(studies)) / studies


def clustered_at_least(clusters: int, truth: float, icc: float, threshold: float) -> Study:
    """Draw beta-binomial answers: each cluster has its own rate of right ones."""

    def study(rng: Random) -> bool:
        labels, _, right = draw_clusters(rng, clusters, 1 - truth, 0.0, icc)
        return clustered_proportion(right, labels, CONFIDENCE, "lower").lower >= threshold

    return study


def clustered_not_worse(clusters: int, loss: float, gain: float, icc: float, margin: float) -> Study:
    """Draw pairs; each cluster has its own probabilities of a lost and of a gained pair."""

    def study(rng: Random) -> bool:
        labels, new, old = draw_clusters(rng, clusters, gain, loss, icc)
        return clustered_difference(new, old, labels, CONFIDENCE, "lower").lower > -margin

    return study


def permuted_better(clusters: int, loss: float, gain: float, icc: float) -> Study:
    """Apply the permutation test of complete clusters to the same pairs; 999 flips are enough for 5%."""

    def study(rng: Random) -> bool:
        labels, new, old = draw_clusters(rng, clusters, gain, loss, icc)
        return paired_permutation(new, old, "greater", int(rng.integers(2**31)), labels, 999) < ALPHA

    return study


def bootstrap_not_worse(n: int, truth: float, margin: float) -> Study:
    """Draw scores whose mean difference is `truth`, skewed to losses (lognormal, standard deviation 0.15)."""

    def study(rng: Random) -> bool:
        skewed = rng.lognormal(0, 0.5, n) - math.exp(0.125)
        new = truth - 0.15 / 0.604 * skewed  # 0.604: the standard deviation of that lognormal
        seed = int(rng.integers(2**31))
        interval = paired_mean_difference(new, np.zeros(n), CONFIDENCE, "lower", seed, n_resamples=1000)
        return interval.lower > -margin

    return study


def latency_mean(n: int, sigma: float, truth: float) -> Study:
    """Draw log-normal seconds with mean `truth`, against a limit of 1."""

    def study(rng: Random) -> bool:
        seconds = truth * rng.lognormal(-(sigma**2) / 2, sigma, n)
        return skewed_mean_interval(seconds, CONFIDENCE, "upper", int(rng.integers(2**31)), FEW).upper < 1

    return study


def latency_improvement(n: int, sigma: float, truth: float) -> Study:
    """Draw a candidate with `0.8 * truth` of the baseline's time, correlated by 0.7 in logs; 0.2 is required."""

    def study(rng: Random) -> bool:
        shared, own, other = rng.standard_normal((3, n))
        new, old = (np.exp(sigma * (0.7**0.5 * shared + 0.3**0.5 * one)) for one in (own, other))
        seed = int(rng.integers(2**31))
        interval = relative_improvement(0.8 * truth * new, old, CONFIDENCE, "lower", seed, n_resamples=FEW)
        return interval.lower >= 0.2

    return study


def latency_quantile(n: int, sigma: float, truth: float) -> Study:
    """Draw log-normal seconds with 0.95 quantile `truth`, against a limit of 1."""

    def study(rng: Random) -> bool:
        bound = quantile_upper(truth * rng.lognormal(-1.6448536 * sigma, sigma, n), 0.95, CONFIDENCE)
        return bound is not None and bound < 1

    return study


def macro_f1(truth: Any, answers: Any, weights: Any) -> float:
    """Return macro-F1 of three classes; one that is missing on both sides counts 0."""
    table = np.bincount(3 * truth + answers, weights, 9).reshape(3, 3)
    return float((2 * np.diag(table) / np.maximum(table.sum(0) + table.sum(1), 1)).mean())


def answers_of(rng: Random, truth: Any, right: float) -> Any:
    """Draw answers that are right with this probability, else evenly wrong: with equal classes, also the macro-F1."""
    return np.where(rng.random(len(truth)) < right, truth, (truth + rng.integers(1, 3, len(truth))) % 3)


def macro_f1_at_least(n: int, right: float) -> Study:
    """Compare macro-F1 of equal classes with 0.85."""

    def study(rng: Random) -> bool:
        truth = rng.integers(0, 3, n)
        statistic = partial(macro_f1, truth, answers_of(rng, truth, right))
        seed = int(rng.integers(2**31))
        interval = resample(statistic, n, CONFIDENCE, "lower", seed, n_resamples=FEW, minimum_unlike=1)
        return interval.lower >= 0.85

    return study


def macro_f1_better(n: int, right: float) -> Study:
    """Compare with a baseline that is right 0.85 of the time, with independent mistakes."""

    def study(rng: Random) -> bool:
        truth = rng.integers(0, 3, n)
        new, old = answers_of(rng, truth, right), answers_of(rng, truth, 0.85)

        def gain(weights: Any) -> float:
            return macro_f1(truth, new, weights) - macro_f1(truth, old, weights)

        return resample(gain, n, CONFIDENCE, "lower", int(rng.integers(2**31)), n_resamples=FEW).lower > 0

    return study


def loss_at_most(n: int, loss: float) -> Study:
    """Draw nats per token over the complete set, in answers of 3 to 30 tokens: log-normal by answer (sigma 0.5)."""

    def study(rng: Random) -> bool:
        tokens = rng.integers(3, 31, n)
        nats = tokens * loss * rng.lognormal(-0.125, 0.5, n)

        def mean(weights: Any) -> float:
            return float(weights @ nats / (weights @ tokens))

        return resample(mean, n, CONFIDENCE, "upper", int(rng.integers(2**31)), n_resamples=FEW).upper <= 1

    return study


def draw_clusters(rng: Random, clusters: int, first: float, second: float, icc: float) -> tuple[Any, Any, Any]:
    """Draw labels and two 0/1 vectors: rows are (1, 0) with probability `first`, (0, 1) with `second`, else (1, 1).

    Both probabilities vary between clusters (beta, intraclass correlation `icc`), so rows of one are correlated.
    """
    sizes = rng.integers(1, LARGEST_CLUSTER + 1, clusters)
    labels = np.repeat(np.arange(clusters), sizes)
    spread = (1 - icc) / icc
    of_first = rng.beta(first * spread, (1 - first) * spread, clusters)
    of_second = np.zeros(clusters)
    if second:  # of the remainder after the first one
        of_second = (1 - of_first) * rng.beta(second * spread, (1 - first - second) * spread, clusters)
    chance = rng.random(len(labels))
    only_first = chance < of_first[labels]
    only_second = ~only_first & (chance < (of_first + of_second)[labels])
    return labels, (~only_second).astype(float), (~only_first).astype(float)
