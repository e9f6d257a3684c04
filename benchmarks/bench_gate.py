"""Compute how often each rule of the gate passes a candidate that must not pass, and one that is good enough.

    PYTHONPATH=src python benchmarks/bench_gate.py

"wrong" is the rate of passes if the truth is just on the bad side of the target; it must be at most `1 - CONFIDENCE`.
"power" is the rate of passes if the truth is as good as the row states. Rules on single examples are computed exactly,
over all outcomes; those on clusters and those using bootstraps are simulated, and the row includes the standard error
of "wrong". Takes eight minutes.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from gate_rules import (
    CONFIDENCE,
    SEED,
    Study,
    at_least,
    better,
    bootstrap_not_worse,
    clustered_at_least,
    clustered_not_worse,
    latency_improvement,
    latency_mean,
    latency_quantile,
    loss_at_most,
    macro_f1_at_least,
    macro_f1_better,
    not_worse,
    permuted_better,
    rate,
)
from measure import results_file, what_ran

from finetune.files.atomic import write_json


@dataclass(frozen=True)
class Row:
    """One rule at one sample size. `truth` must not pass, and `better` should pass."""

    rule: str
    size: str
    truth: str
    wrong: float
    error: float  # standard error of `wrong`; 0 if exact
    better: str
    power: float


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--studies", type=int, default=4000, help="number of simulated test sets per figure")
    parser.add_argument("--out", type=Path, default=results_file("gate"))
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
    """Return the rules on right-or-wrong answers to independent examples."""
    rows = []
    for n in (31, 52, 149, 236, 400, 1000):
        size = f"n = {n}"
        wrong, power = at_least(n, 0.95 - 1e-9, 0.95), at_least(n, 0.99, 0.95)
        rows.append(Row("at least 0.95", size, "0.95", wrong, 0, "0.99", power))
        for margin in (0.05, 0.02):
            # At the boundary, a truth with only losses is the worst case; equal sides are the good case.
            wrong = max(not_worse(n, margin + gain, gain, margin) for gain in (0.0, 0.01, 0.05))
            power = not_worse(n, 0.01, 0.01, margin)
            rows.append(Row(f"not worse by {margin}", size, f"-{margin}", wrong, 0, "0, 0.02 discordant", power))
        wrong, power = better(n, 0.1, 0.1), better(n, 0.05, 0.2)
        rows.append(Row("better", size, "0, 0.2 discordant", wrong, 0, "+0.15, 0.25 discordant", power))
    return rows


def simulated_rows(studies: int) -> list[Row]:
    """Return the rules on clusters of 1 to 6 rows, and on continuous scores."""
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
    """Return the rules on latencies: log-normal ones, for which a plain bootstrap would bound the mean too low."""
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
    """Return the rules on metrics of the complete set, by BCa: macro-F1 and the loss."""
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
    """Return a row with the standard error of its wrong rate."""
    wrong = max(chance["wrong"], 1 / studies)  # one study, if there was none
    error = math.sqrt(wrong * (1 - wrong) / studies)
    return Row(rule, size, truth, chance["wrong"], error, good, chance["power"])


if __name__ == "__main__":
    main()
