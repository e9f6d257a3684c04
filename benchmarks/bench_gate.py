"""How often each rule of the gate passes a candidate that it must not pass, and how often one that is good enough.

    PYTHONPATH=src python benchmarks/bench_gate.py

"wrong" is the rate of passes where the truth lies just on the bad side of the target: at most `1 - CONFIDENCE` of the
time is allowed. "power" is the rate of passes where the truth is as good as the row says. Rules on single examples are
computed exactly, over all outcomes; those on clusters and of bootstraps are simulated, and the row shows the standard
error of "wrong". Takes eight minutes.
"""

import argparse
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from finetune.artifacts import write_json
from finetune.bootstrap import paired_mean_difference, resample
from finetune.clusters import clustered_difference, clustered_proportion, paired_permutation
from finetune.skewed import relative_improvement, skewed_mean_interval
from finetune.stats import clopper_pearson, mcnemar_exact, quantile_upper, tango

ROOT = Path(__file__).parents[1]
CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
SEED = 1
LARGEST_CLUSTER = 6
FEW = 1000  # resamples; the gate takes 5,000
Random = np.random.Generator
Study = Callable[[Random], bool]  # draws one test set; True where the gate passes


@dataclass(frozen=True)
class Row:
    """One rule at one size. `truth` and `better` are what is passed wrongly, and what should pass."""

    rule: str
    size: str
    truth: str
    wrong: float
    error: float  # standard error of `wrong`; 0 where it is exact
    better: str
    power: float


def main() -> None:
    """Print the table and write it as JSON."""
    from measure import what_ran  # beside this script; tests that import it from elsewhere need no psutil

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--studies", type=int, default=4000, help="simulated test sets a figure")
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/results/gate-{date.today()}.json")
    options = parser.parse_args()
    rows = [*exact_rows(), *simulated_rows(options.studies), *skewed_rows(options.studies // 8)]
    rows += whole_set_rows(options.studies // 20)
    print("| rule | size | truth | wrong | ± | better | power |\n|---|---|---|---|---|---|---|")
    for row in rows:
        cells = (
            row.rule,
            row.size,
            row.truth,
            f"{row.wrong:.4f}",
            f"{row.error:.4f}" if row.error else "exact",
            row.better,
            f"{row.power:.3f}",
        )
        print(f"| {' | '.join(cells)} |")
    about = {"seed": SEED, "confidence": CONFIDENCE, "studies": options.studies}
    write_json(options.out, {**about, "rows": [asdict(row) for row in rows], **what_ran()})


def exact_rows() -> list[Row]:
    """The rules on right-or-wrong answers to examples that are independent."""
    rows = []
    for n in (31, 52, 149, 236, 400, 1000):
        size = f"n = {n}"
        wrong, power = at_least(n, 0.95 - 1e-9, 0.95), at_least(n, 0.99, 0.95)
        rows.append(Row("at least 0.95", size, "0.95", wrong, 0, "0.99", power))
        for margin in (0.05, 0.02):
            # At the boundary, losses alone are the worst truth there is; that the two are alike is the good one.
            wrong = max(not_worse(n, margin + gain, gain, margin) for gain in (0.0, 0.01, 0.05))
            power = not_worse(n, 0.01, 0.01, margin)
            rows.append(Row(f"not worse by {margin}", size, f"-{margin}", wrong, 0, "0, 0.02 discordant", power))
        wrong, power = better(n, 0.1, 0.1), better(n, 0.05, 0.2)
        rows.append(Row("better", size, "0, 0.2 discordant", wrong, 0, "+0.15, 0.25 discordant", power))
    return rows


def simulated_rows(studies: int) -> list[Row]:
    """The rules on clusters of 1 to LARGEST_CLUSTER rows, and on continuous scores."""
    rows = []
    for clusters in (25, 60, 150):
        size = f"{clusters} clusters"
        for icc in (0.1, 0.5):
            chance = {
                "wrong": rate(clustered_at_least(clusters, 0.95, icc, 0.95), studies),
                "power": rate(clustered_at_least(clusters, 0.995, icc, 0.95), studies),
            }
            rows.append(simulated(f"at least 0.95, ICC {icc}", size, "0.95", chance, "0.995", studies))
            chance = {
                "wrong": rate(clustered_not_worse(clusters, 0.1, 0.05, icc, 0.05), studies),
                "power": rate(clustered_not_worse(clusters, 0.01, 0.01, icc, 0.05), studies),
            }
            rows.append(simulated(f"not worse by 0.05, ICC {icc}", size, "-0.05", chance, "0", studies))
            few = studies // 4  # a permutation takes longer
            chance = {
                "wrong": rate(permuted_better(clusters, 0.1, 0.1, icc), few),
                "power": rate(permuted_better(clusters, 0.05, 0.2, icc), few),
            }
            rows.append(simulated(f"better (permutation), ICC {icc}", size, "0", chance, "+0.15", few))
    for n in (30, 60, 150):
        few = studies // 4
        chance = {
            "wrong": rate(bootstrap_not_worse(n, -0.05, 0.05), few),
            "power": rate(bootstrap_not_worse(n, 0, 0.05), few),
        }
        rows.append(simulated("mean score not worse by 0.05", f"n = {n}", "-0.05", chance, "0", few))
    return rows


def skewed_rows(studies: int) -> list[Row]:
    """The rules on latencies: log-normal ones, whose mean a bootstrap alone would set too low."""
    rows = []
    for n in (20, 60, 150):
        for sigma in (0.5, 1.0):
            rules: dict[str, tuple[Callable[[float], Study], str, str]] = {
                "mean latency": (partial(latency_mean, n, sigma), "the limit", "3/4 of it"),
                "latency improvement": (partial(latency_improvement, n, sigma), "as asked", "1/4 less than asked"),
                "0.95 quantile of latency": (partial(latency_quantile, n, sigma), "the limit", "3/4 of it"),
            }
            for rule, (study, truth, good) in rules.items():
                chance = {"wrong": rate(study(1.0), studies), "power": rate(study(0.75), studies)}
                rows.append(simulated(f"{rule}, sigma {sigma}", f"n = {n}", truth, chance, good, studies))
    return rows


def whole_set_rows(studies: int) -> list[Row]:
    """The rules on figures of the whole set, by BCa: macro-F1 and the loss."""
    rows = []
    for n in (60, 150):
        for rule, study, truth, good in (
            ("macro-F1 at least 0.85", macro_f1_at_least, 0.85, 0.95),
            ("macro-F1 better", macro_f1_better, 0.85, 0.97),
            ("loss at most 1", loss_at_most, 1.0, 0.8),
        ):
            chance = {"wrong": rate(study(n, truth), studies), "power": rate(study(n, good), studies)}
            rows.append(simulated(rule, f"n = {n}", f"{truth:g}", chance, f"{good:g}", studies))
    return rows


def simulated(rule: str, size: str, truth: str, chance: dict[str, float], good: str, studies: int) -> Row:
    """A row with the standard error of its wrong rate."""
    error = math.sqrt(max(chance["wrong"], 1 / studies) / studies)
    return Row(rule, size, truth, chance["wrong"], error, good, chance["power"])


def at_least(n: int, truth: float, threshold: float, confidence: float = CONFIDENCE) -> float:
    """The chance that n examples, each right with chance `truth`, prove a rate of `threshold`."""

    def passes(successes: int) -> bool:
        return clopper_pearson(successes, n, confidence, "lower").lower >= threshold

    return float(binom.sf(bisect_left(range(n + 1), True, key=passes) - 1, n, truth))


def not_worse(n: int, loss: float, gain: float, margin: float, confidence: float = CONFIDENCE) -> float:
    """The chance that n pairs with these chances of a lost and of a gained one prove "not worse by `margin`"."""
    return over_pairs(n, loss, gain, lambda lost, won: tango(won, lost, n, confidence, "lower").lower > -margin)


def better(n: int, loss: float, gain: float, confidence: float = CONFIDENCE) -> float:
    """The chance that the exact McNemar test finds the candidate better."""
    return over_pairs(n, loss, gain, lambda lost, won: mcnemar_exact(won, lost, "greater") < 1 - confidence)


def over_pairs(n: int, loss: float, gain: float, passes: Callable[[int, int], bool]) -> float:
    """The chance of `passes(lost, gained)` over all tables; with as many lost, more gained pairs never hurt."""
    total = 0.0
    for lost in range(n + 1):
        weight = float(binom.pmf(lost, n, loss))
        if weight > 1e-12:
            least = bisect_left(range(n - lost + 1), True, key=partial(passes, lost))
            total += weight * float(binom.sf(least - 1, n - lost, gain / (1 - loss)))
    return total


def rate(study: Study, studies: int, seed: int = SEED) -> float:
    """The share of simulated test sets that pass."""
    rng = np.random.default_rng(seed)
    return sum(study(rng) for _ in range(studies)) / studies


def clustered_at_least(clusters: int, truth: float, icc: float, threshold: float) -> Study:
    """Beta-binomial answers: each cluster has its own rate of right ones."""

    def study(rng: Random) -> bool:
        labels, _, right = draw_clusters(rng, clusters, 1 - truth, 0.0, icc)
        return clustered_proportion(right, labels, CONFIDENCE, "lower").lower >= threshold

    return study


def clustered_not_worse(clusters: int, loss: float, gain: float, icc: float, margin: float) -> Study:
    """Each cluster has its own chances of a lost and of a gained pair."""

    def study(rng: Random) -> bool:
        labels, new, old = draw_clusters(rng, clusters, gain, loss, icc)
        return clustered_difference(new, old, labels, CONFIDENCE, "lower").lower > -margin

    return study


def permuted_better(clusters: int, loss: float, gain: float, icc: float) -> Study:
    """The same pairs by the permutation test of whole clusters; 999 flips will do for 5%."""

    def study(rng: Random) -> bool:
        labels, new, old = draw_clusters(rng, clusters, gain, loss, icc)
        return paired_permutation(new, old, "greater", int(rng.integers(2**31)), labels, 999) < ALPHA

    return study


def bootstrap_not_worse(n: int, truth: float, margin: float) -> Study:
    """Scores whose difference is `truth` on average, skewed to losses (lognormal, standard deviation 0.15)."""

    def study(rng: Random) -> bool:
        skewed = rng.lognormal(0, 0.5, n) - math.exp(0.125)
        new = truth - 0.15 / 0.604 * skewed  # 0.604: the standard deviation of that lognormal
        seed = int(rng.integers(2**31))
        found = paired_mean_difference(new, np.zeros(n), CONFIDENCE, "lower", seed, n_resamples=1000)
        return found.lower > -margin

    return study


def latency_mean(n: int, sigma: float, truth: float) -> Study:
    """Log-normal seconds whose mean is `truth`, against a limit of 1."""

    def study(rng: Random) -> bool:
        seconds = truth * rng.lognormal(-(sigma**2) / 2, sigma, n)
        return skewed_mean_interval(seconds, CONFIDENCE, "upper", int(rng.integers(2**31)), FEW).upper < 1

    return study


def latency_improvement(n: int, sigma: float, truth: float) -> Study:
    """A candidate that takes `0.8 * truth` of the baseline's time, correlated with it by 0.7 in logs; 0.2 is asked."""

    def study(rng: Random) -> bool:
        shared, own, other = rng.standard_normal((3, n))
        new, old = (np.exp(sigma * (0.7**0.5 * shared + 0.3**0.5 * one)) for one in (own, other))
        seed = int(rng.integers(2**31))
        found = relative_improvement(0.8 * truth * new, old, CONFIDENCE, "lower", seed, n_resamples=FEW)
        return found.lower >= 0.2

    return study


def latency_quantile(n: int, sigma: float, truth: float) -> Study:
    """Log-normal seconds whose 0.95 quantile is `truth`, against a limit of 1."""

    def study(rng: Random) -> bool:
        bound = quantile_upper(truth * rng.lognormal(-1.6448536 * sigma, sigma, n), 0.95, CONFIDENCE)
        return bound is not None and bound < 1

    return study


def macro_f1(truth: Any, answers: Any, weights: Any) -> float:
    """Of three classes; one that is missing on both sides counts 0."""
    table = np.bincount(3 * truth + answers, weights, 9).reshape(3, 3)
    return float((2 * np.diag(table) / np.maximum(table.sum(0) + table.sum(1), 1)).mean())


def answers_of(rng: Random, truth: Any, right: float) -> Any:
    """Answers right with this chance, else spread evenly: of equal classes, the macro-F1 of all is this too."""
    return np.where(rng.random(len(truth)) < right, truth, (truth + rng.integers(1, 3, len(truth))) % 3)


def macro_f1_at_least(n: int, right: float) -> Study:
    """Macro-F1 of equal classes against 0.85."""

    def study(rng: Random) -> bool:
        truth = rng.integers(0, 3, n)
        statistic = partial(macro_f1, truth, answers_of(rng, truth, right))
        seed = int(rng.integers(2**31))
        found = resample(statistic, n, CONFIDENCE, "lower", seed, n_resamples=FEW, minimum_unlike=1)
        return found.lower >= 0.85

    return study


def macro_f1_better(n: int, right: float) -> Study:
    """Against a baseline that is right 0.85 of the time, with mistakes of its own."""

    def study(rng: Random) -> bool:
        truth = rng.integers(0, 3, n)
        new, old = answers_of(rng, truth, right), answers_of(rng, truth, 0.85)

        def gain(weights: Any) -> float:
            return macro_f1(truth, new, weights) - macro_f1(truth, old, weights)

        return resample(gain, n, CONFIDENCE, "lower", int(rng.integers(2**31)), n_resamples=FEW).lower > 0

    return study


def loss_at_most(n: int, loss: float) -> Study:
    """Nats a token over the whole set, in answers of 3 to 30 tokens: log-normal from answer to answer (sigma 0.5)."""

    def study(rng: Random) -> bool:
        tokens = rng.integers(3, 31, n)
        nats = tokens * loss * rng.lognormal(-0.125, 0.5, n)

        def mean(weights: Any) -> float:
            return float(weights @ nats / (weights @ tokens))

        return resample(mean, n, CONFIDENCE, "upper", int(rng.integers(2**31)), n_resamples=FEW).upper <= 1

    return study


def draw_clusters(rng: Random, clusters: int, first: float, second: float, icc: float) -> tuple[Any, Any, Any]:
    """Labels and two 0/1 vectors: row by row `first` is the chance of (1, 0), `second` that of (0, 1), else (1, 1).

    Both chances vary from cluster to cluster (beta, intraclass correlation `icc`), so rows of one go together.
    """
    sizes = rng.integers(1, LARGEST_CLUSTER + 1, clusters)
    labels = np.repeat(np.arange(clusters), sizes)
    spread = (1 - icc) / icc
    of_first = rng.beta(first * spread, (1 - first) * spread, clusters)
    of_second = np.zeros(clusters)
    if second:  # of what the first one leaves
        of_second = (1 - of_first) * rng.beta(second * spread, (1 - first - second) * spread, clusters)
    chance = rng.random(len(labels))
    only_first = chance < of_first[labels]
    only_second = ~only_first & (chance < (of_first + of_second)[labels])
    return labels, (~only_second).astype(float), (~only_first).astype(float)


if __name__ == "__main__":
    main()
