"""Error rates of each rule of the gate at the least favourable truth, and its power.

`benchmarks/bench_gate.py` gives the complete table."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import gate_rules
from finetune.statistics.clustered import clustered_difference, paired_permutation
from finetune.statistics.proportions import mcnemar_exact


@pytest.mark.parametrize("n", [31, 59, 60, 149, 236, 400])
def test_at_least_errs_within_alpha(n: int) -> None:
    """Exact: the probability to pass is summed over all outcomes. At 59 only a perfect set is a proof."""
    wrong = gate_rules.at_least(n, 0.95 - 1e-9, 0.95)
    assert wrong <= 0.05
    assert n != 59 or wrong == pytest.approx(0.95**59, rel=1e-6)


@pytest.mark.parametrize("n", [31, 149, 400])
@pytest.mark.parametrize("discordant", [0.02, 0.2, 0.8])
def test_better_errs_within_alpha(n: int, discordant: float) -> None:
    """Exact, for two equal models that differ on few or on most answers."""
    assert gate_rules.better(n, discordant / 2, discordant / 2) <= 0.05


@pytest.mark.parametrize("n", [31, 52, 100, 149, 236, 400])
@pytest.mark.parametrize("gain", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("margin", [0.05, 0.02])
def test_not_worse_errs_little_more_than_alpha(n: int, gain: float, margin: float) -> None:
    """Exact. The score interval is approximate: 0.069 at n = 52 is its known worst case, 0.058 the maximum
    elsewhere."""
    wrong = gate_rules.not_worse(n, margin + gain, gain, margin)
    assert wrong <= (0.0695 if (n, gain, margin) == (52, 0.0, 0.05) else 0.058)


@pytest.mark.parametrize(
    ("power", "floor"),
    [
        (lambda: gate_rules.at_least(149, 0.99, 0.95), 0.80),
        (lambda: gate_rules.at_least(236, 0.99, 0.95), 0.98),
        (lambda: gate_rules.not_worse(149, 0.01, 0.01, 0.05), 0.95),
        (lambda: gate_rules.not_worse(400, 0.01, 0.01, 0.02), 0.79),
        (lambda: gate_rules.better(149, 0.05, 0.2), 0.97),
    ],
)
def test_single_examples_have_power(power: Callable[[], float], floor: float) -> None:
    """A gate that never passes never errs, so the power is tested too; bench_gate.py has the complete table."""
    assert power() >= floor


def allowed(studies: int) -> float:
    """Return the rate that a rule with an error rate of 0.05 exceeds once in 700 simulations."""
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


FEW_OR_MANY = pytest.mark.parametrize("studies", [300, pytest.param(1000, marks=pytest.mark.end_to_end)])


@pytest.mark.slow
@FEW_OR_MANY
@pytest.mark.parametrize("icc", [0.5, 0.99])
@pytest.mark.parametrize(("count", "truth"), [(25, 0.8), (60, 0.8), (60, 0.95), (150, 0.8), (150, 0.95), (150, 0.98)])
def test_clustered_at_least_errs_within_alpha(count: int, truth: float, icc: float, studies: int) -> None:
    """Beta-binomial answers. Korn and Graubard's own bound fails at (150, 0.98, 0.99) and (60, 0.95, 0.99): 0.1."""
    wrong = gate_rules.rate(gate_rules.clustered_at_least(count, truth, icc, truth + 1e-9), studies)
    assert wrong <= allowed(studies)


@pytest.mark.slow
@FEW_OR_MANY
@pytest.mark.parametrize("icc", [0.5, 0.99])
@pytest.mark.parametrize("count", [25, 60, 150])
@pytest.mark.parametrize("margin", [0.05, 0.02])
def test_clustered_not_worse_errs_within_alpha(count: int, margin: float, icc: float, studies: int) -> None:
    """Losses are twice as frequent as gains. A cluster bootstrap has an error rate of 0.13 at (60, 0.02, 0.5)."""
    study = gate_rules.clustered_not_worse(count, 2 * margin, margin, icc, margin)
    assert gate_rules.rate(study, studies) <= allowed(studies)


@pytest.mark.slow
@FEW_OR_MANY
@pytest.mark.parametrize("icc", [0.1, 0.5])
@pytest.mark.parametrize("count", [12, 60])
def test_permutation_errs_within_alpha(count: int, icc: float, studies: int) -> None:
    """The models are equal, the rows dependent; with all sign flips (12 clusters) and with random ones."""
    assert gate_rules.rate(gate_rules.permuted_better(count, 0.1, 0.1, icc), studies) <= allowed(studies)


def test_a_test_that_ignores_clusters_errs() -> None:
    """McNemar's test on dependent rows calls equal models different far too often; hence the cluster methods."""

    def study(rng: np.random.Generator) -> bool:
        _, new, old = gate_rules.draw_clusters(rng, 60, 0.1, 0.1, 0.5)
        return mcnemar_exact(int((new > old).sum()), int((new < old).sum()), "greater") < 0.05

    assert gate_rules.rate(study, 1000) > 0.10


def test_the_interval_is_valid_where_the_permutation_test_errs() -> None:
    """Rare total losses may go unseen, as the docstring warns; the required bound above 0 protects against it."""
    rng = np.random.default_rng(3)
    labels, better, above = np.repeat(np.arange(60), 6), 0, 0
    for _ in range(400):
        kind = rng.choice(3, 60, p=[0.02, 0.12, 0.86])
        new, old = np.ones((60, 6)), np.ones((60, 6))
        new[kind == 0], old[kind == 1, 0] = 0, 0
        better += paired_permutation(new.ravel(), old.ravel(), "greater", 1, labels, 999) < 0.05
        above += clustered_difference(new.ravel(), old.ravel(), labels, 0.95, "lower").lower > 0
    assert better / 400 == pytest.approx(0.25, abs=0.065)
    assert above / 400 <= allowed(400)


@pytest.mark.parametrize(
    ("study", "floor"),
    [
        (gate_rules.clustered_at_least(150, 0.995, 0.1, 0.95), 0.95),
        (gate_rules.clustered_at_least(150, 0.995, 0.5, 0.95), 0.90),
        (gate_rules.clustered_not_worse(150, 0.01, 0.01, 0.1, 0.05), 0.95),
        (gate_rules.clustered_not_worse(60, 0.01, 0.01, 0.5, 0.05), 0.25),
        (gate_rules.permuted_better(25, 0.05, 0.2, 0.5), 0.42),
        (gate_rules.permuted_better(60, 0.05, 0.2, 0.5), 0.78),
    ],
)
def test_clusters_have_power(study: gate_rules.Study, floor: float) -> None:
    """The floors are about three standard errors below the rates of the table."""
    assert gate_rules.rate(study, 500) >= floor
