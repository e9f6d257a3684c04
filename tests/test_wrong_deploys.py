"""The gate as a whole over thousands of simulated studies: how often it deploys what it must not, and what it should.

PYTHONPATH=src:. python -m tests.test_wrong_deploys     prints the rates
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from finetune.config_decide import Criterion, DecideConfig
from finetune.decide.criteria import judge
from finetune.decide.outcomes import Gate
from finetune.decide.verdict import reach_verdict
from tests.gates import at_least, better, evidence, not_worse, pairs

pytestmark = pytest.mark.slow

STUDIES = 4000
LEVEL = 0.95
Truth = tuple[float, float, float, float]  # chances that both are right, only the candidate, only the baseline, neither


def gate_of(criteria: list[Criterion], looks: int) -> DecideConfig:
    """A gate at 95% with these criteria."""
    return DecideConfig(
        policy="interval", confidence=LEVEL, looks=looks, seeds=1, license=None, criteria=tuple(criteria)
    )


def deploys(criteria: list[Criterion], looks: int = 1) -> Callable[[tuple[int, ...]], bool]:
    """Whether a study with these counts (both, gained, lost, neither) ends in deploy; each is judged once."""
    config = gate_of(criteria, looks)
    gate = Gate("interval", config.confidence_of_a_look, 1)

    @cache
    def judged(counts: tuple[int, ...]) -> bool:
        found = evidence(pairs(*counts))
        outcomes = [item for criterion in criteria for item in judge(criterion, found, gate)]
        return reach_verdict(config, outcomes, found, gate, 1).name == "deploy"

    return judged


def rate(criteria: list[Criterion], truth: Truth, n: int, *, looks: int = 1, seed: int = 0) -> float:
    """The share of studies of `n` examples that deploy; with several looks, of a search that stops at the first one.

    Each look is another candidate, as good as the others, on test examples of its own draw: what they share of a test
    set in truth makes the errors fewer, not more.
    """
    judged = deploys(criteria, looks)
    counts = np.random.default_rng(seed).multinomial(n, truth, size=(STUDIES, looks))
    return sum(any(judged(tuple(map(int, one))) for one in study) for study in counts) / STUDIES


THRESHOLD = [at_least(0.8)]
ALL_THREE: list[Criterion] = [at_least(0.8), better(), not_worse(0.05)]
# Truths just on the wrong side of one target, with all others far on the good side.
BOUNDARIES: dict[str, tuple[list[Criterion], Truth, int, int]] = {
    "right in exactly 80%, one look": (THRESHOLD, (0.3, 0.5, 0.0, 0.2), 60, 1),
    "right in exactly 80%, 250 examples": (THRESHOLD, (0.3, 0.5, 0.0, 0.2), 250, 1),
    "right in exactly 80%, five looks": (THRESHOLD, (0.3, 0.5, 0.0, 0.2), 60, 5),
    "three criteria, the threshold just missed": (ALL_THREE, (0.4, 0.4, 0.0, 0.2), 120, 1),
    "three criteria, no better than the baseline": (ALL_THREE, (0.88, 0.05, 0.05, 0.02), 120, 1),
    "not better at all": ([better()], (0.6, 0.1, 0.1, 0.2), 120, 1),
    "worse by exactly the margin": ([not_worse(0.05)], (0.7, 0.05, 0.1, 0.15), 120, 1),
}
GOOD: dict[str, tuple[list[Criterion], Truth, int, int, float]] = {
    "right in 95% where 80% is asked, 60 examples": (THRESHOLD, (0.3, 0.65, 0.0, 0.05), 60, 1, 0.85),
    "right in 90% where 80% is asked, 250 examples": (THRESHOLD, (0.3, 0.6, 0.0, 0.1), 250, 1, 0.95),
    "20 points better, 120 examples": ([better()], (0.5, 0.25, 0.05, 0.2), 120, 1, 0.9),
    "all three criteria, 250 examples": (ALL_THREE, (0.6, 0.3, 0.02, 0.08), 250, 1, 0.9),
    "all three criteria, 250 examples, one of five looks": (ALL_THREE, (0.6, 0.3, 0.02, 0.08), 250, 5, 0.9),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_candidate_that_is_not_good_enough_is_rarely_deployed(name: str) -> None:
    """At most one in twenty, whatever the number of criteria and of looks, give or take the simulation's own error."""
    criteria, truth, n, looks = BOUNDARIES[name]
    found = rate(criteria, truth, n, looks=looks)
    assert found <= (1 - LEVEL) + 3 * (LEVEL * (1 - LEVEL) / STUDIES) ** 0.5


@pytest.mark.parametrize("name", GOOD)
def test_a_good_candidate_is_mostly_deployed(name: str) -> None:
    """A gate that deploys nothing would never be wrong."""
    criteria, truth, n, looks, least = GOOD[name]
    assert rate(criteria, truth, n, looks=looks, seed=1) >= least


def test_a_rule_of_points_would_be_wrong_half_of_the_time() -> None:
    """That the simulation can see a wrong gate: comparing estimates deploys what just misses its target."""
    counts = np.random.default_rng(0).multinomial(60, (0.3, 0.5, 0.0, 0.2), size=STUDIES)
    assert np.mean(counts[:, 0] + counts[:, 1] >= 0.8 * 60) > 0.4


def main() -> None:
    """Print every rate."""
    tables: list[tuple[str, Any]] = [("wrongly deployed", BOUNDARIES), ("rightly deployed", GOOD)]
    for title, cases in tables:
        for name, (criteria, truth, n, looks, *_) in cases.items():
            print(f"{title}: {name}: {rate(criteria, truth, n, looks=looks):.3f}")


if __name__ == "__main__":
    main()
