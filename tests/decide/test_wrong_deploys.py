"""The complete gate, from evidence to verdict: how often it deploys wrongly, and how often rightly.

PYTHONPATH=src:. python -m tests.decide.test_wrong_deploys prints the rates (three minutes)

Binary answers are computed exactly, over all tables of outcomes; the others are simulated with enough resamples for
these rates (FEW instead of 5,000)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from scipy.stats import multinomial

from finetune.config.criteria import AnyCriterion
from finetune.config.decide import DecideConfig
from finetune.decide import criteria as judging
from finetune.decide import quality
from finetune.decide.criteria import Evidence, judge
from finetune.decide.verdict import reach_verdict
from finetune.records.examples import Prediction, Timing
from finetune.statistics.bootstrap import paired_mean_difference, resample
from finetune.statistics.clustered import paired_permutation
from finetune.statistics.decision import Gate
from finetune.statistics.skewed_means import relative_improvement, skewed_mean_interval
from tests.builders.gates import at_least, better, evidence, latency, not_worse, pairs, predicted

pytestmark = pytest.mark.slow

LEVEL = 0.95
COVERED = 0.998  # of the probability of all tables; the rest counts against the gate
FEW = 500
Random = np.random.Generator
Truth = tuple[float, float, float, float]  # chances that both are right, only the candidate, only the baseline, neither


def verdict(criteria: Sequence[AnyCriterion], found: Evidence, looks: int = 1, policy: str = "interval") -> str:
    """Return the verdict of a study with these criteria, at 95% over all uses."""
    config = DecideConfig(
        policy=policy,  # type: ignore[arg-type]
        confidence=LEVEL,
        looks=looks,
        seeds=1,
        license=None,
        criteria=tuple(criteria),
    )
    gate = Gate(config.policy, config.confidence_of_a_look, 1)
    outcomes = [item for criterion in criteria for item in judge(criterion, found, gate)]
    return reach_verdict(config, outcomes, found, gate, 1).name


# ---- Binary answers: exact.


def likely_tables(truth: Truth, n: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield the likeliest counts (both, gained, lost, neither) with their probabilities, until COVERED is reached."""
    kinds = [at for at, chance in enumerate(truth) if chance]
    cuts = np.array(list(combinations(range(n + len(kinds) - 1), len(kinds) - 1)), dtype=int)
    edges = np.column_stack([np.full(len(cuts), -1), cuts, np.full(len(cuts), n + len(kinds) - 1)])
    counts = np.zeros((len(cuts), 4), dtype=int)
    counts[:, kinds] = np.diff(edges, axis=1) - 1
    chances = multinomial.pmf(counts[:, kinds], n, [truth[at] for at in kinds])
    order = np.argsort(-chances)
    enough = int(np.searchsorted(np.cumsum(chances[order]), COVERED)) + 1
    for at in order[:enough]:
        yield tuple(counts[at].tolist()), float(chances[at])


@cache
def chance(
    criteria: tuple[AnyCriterion, ...], truth: Truth, n: int, looks: int = 1, policy: str = "interval"
) -> tuple[float, float]:
    """Return the least and the greatest probability of a deploy; with several uses, of a search that stops at the first
    one.

    Each use is another equally good candidate on an independent draw of test examples: actually sharing a test set
    makes errors fewer, not more."""
    deployed = seen = 0.0
    for counts, weight in likely_tables(truth, n):
        seen += weight
        deployed += weight * verdict(criteria, evidence(pairs(*counts)), looks, policy).startswith("deploy")
    return 1 - (1 - deployed) ** looks, 1 - (1 - min(deployed + 1 - seen, 1.0)) ** looks


THRESHOLD = (at_least(0.8),)
ALL_THREE: tuple[AnyCriterion, ...] = (at_least(0.8), better(), not_worse(0.05))
Exact = tuple[tuple[AnyCriterion, ...], Truth, int, int]
JUST_MISSED: Truth = (0.0, 0.8 - 1e-9, 0.0, 0.2 + 1e-9)
# Truths just on the wrong side of one target, and far on the right side of all others.
BOUNDARIES: dict[str, Exact] = {
    "right in 80%, 60 examples": (THRESHOLD, JUST_MISSED, 60, 1),
    "right in 80%, 250 examples": (THRESHOLD, JUST_MISSED, 250, 1),
    "right in 80%, 60 examples, five looks": (THRESHOLD, JUST_MISSED, 60, 5),
    "three criteria, the threshold just missed": (ALL_THREE, JUST_MISSED, 120, 1),
    "three criteria, no better than the baseline": (ALL_THREE, (0.9, 0.05, 0.05, 0.0), 120, 1),
    "not better at all": ((better(),), (0.8, 0.1, 0.1, 0.0), 60, 1),
}
# Tango's score interval is approximate: its error rate is slightly too high, most of all if there are only losses.
CORNERS: dict[str, tuple[Exact, float]] = {
    "worse by the margin, half as many gains": (((not_worse(0.05),), (0.85, 0.05, 0.1, 0.0), 60, 1), 0.051),
    "worse by the margin, losses only, 52 examples": (((not_worse(0.05),), (0.95, 0.0, 0.05, 0.0), 52, 1), 0.0694),
}
GOOD: dict[str, tuple[Exact, float]] = {
    "right in 95%, required: 80%, 60 examples": ((THRESHOLD, (0.0, 0.95, 0.0, 0.05), 60, 1), 0.85),
    "right in 90%, required: 80%, 250 examples": ((THRESHOLD, (0.0, 0.9, 0.0, 0.1), 250, 1), 0.95),
    "20 points better, 120 examples": (((better(),), (0.75, 0.22, 0.03, 0.0), 120, 1), 0.9),
    "all three criteria, 120 examples, one of five looks": ((ALL_THREE, (0.78, 0.2, 0.02, 0.0), 120, 5), 0.9),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_bad_candidate_is_rarely_deployed(name: str) -> None:
    """The rate is at most 0.05, for any number of criteria and of uses."""
    assert chance(*BOUNDARIES[name])[1] <= 1 - LEVEL + (1 - COVERED)


@pytest.mark.parametrize("name", CORNERS)
def test_the_documented_error_rates_of_the_score_interval_hold(name: str) -> None:
    """The documented exceptions to 0.05 are exact: neither higher nor lower."""
    case, documented = CORNERS[name]
    least, most = chance(*case)
    assert least - 0.001 <= documented <= most + 0.001


@pytest.mark.parametrize("name", GOOD)
def test_a_good_candidate_is_usually_deployed(name: str) -> None:
    """A gate that never deploys would never be wrong, so the power is tested too."""
    case, least = GOOD[name]
    assert chance(*case)[0] >= least


def test_the_point_policy_is_wrong_half_of_the_time() -> None:
    """The computation detects a wrong gate: comparing estimates often deploys candidates just below the target."""
    least, most = chance(THRESHOLD, JUST_MISSED, 60, policy="point")
    assert 0.4 < least <= most < 0.7


# ---- Times, macro-F1 and mean scores: simulated.

Draw = Callable[[Random], Evidence]


@dataclass(frozen=True)
class Simulated:
    """A case whose truth is on the boundary, with the documented rate if that exceeds 0.05."""

    criterion: AnyCriterion
    draw: Draw
    studies: int
    documented: float = 0.05

    def allowed(self) -> float:
        """Return the rate that a rule with the documented error rate exceeds once in 700 simulations."""
        return self.documented + 3 * math.sqrt(self.documented * (1 - self.documented) / self.studies)


@contextmanager
def few_resamples() -> Iterator[None]:
    """Use only FEW draws for bootstraps and permutations."""
    with ExitStack() as stack:
        for place, method in (
            (judging, skewed_mean_interval),
            (judging, relative_improvement),
            (quality, resample),
            (quality, paired_mean_difference),
            (quality, paired_permutation),
        ):
            stack.enter_context(patch.object(place, method.__name__, partial(method, n_resamples=FEW)))
        yield


def rate(case: Simulated, seed: int = 0) -> float:
    """Return the share of simulated studies that deploy."""
    rng = np.random.default_rng(seed)
    with few_resamples():
        return sum(verdict([case.criterion], case.draw(rng)) == "deploy" for _ in range(case.studies)) / case.studies


def skewed_times(rng: Random, n: int, sigma: float, ratio: float = 1.0) -> Evidence:
    """Return log-normal seconds with mean `ratio`, and a baseline with mean 1 correlated with them (0.7)."""
    shared, own, other = rng.standard_normal((3, n))
    mine, theirs = (np.exp(sigma * (0.7**0.5 * shared + 0.3**0.5 * one) - sigma**2 / 2) for one in (own, other))
    pairs = enumerate(zip(ratio * mine, theirs, strict=True))
    rows = [Timing(f"{at}", float(old), 0.1, 3, float(new), 0.1, 3) for at, (new, old) in pairs]
    return evidence(latency=rows)


NAMES = ("KeyError", "TypeError", "ValueError")
RIGHT = 0.85  # classes of equal size with evenly spread errors: macro-F1 of the population has this value too


def labelled(rng: Random, n: int) -> Evidence:
    """Return class labels that both sides predict with the same probability and independent errors."""
    truth = rng.integers(0, 3, n)
    sides = [np.where(rng.random(n) < RIGHT, truth, (truth + rng.integers(1, 3, n)) % 3) for _ in range(2)]
    rows = zip(truth, *sides, strict=True)
    return evidence(
        [predicted(NAMES[a], NAMES[b], id=f"{at}", reference=NAMES[t]) for at, (t, a, b) in enumerate(rows)]
    )


def scored(rng: Random, n: int) -> Evidence:
    """Return scores that are 0.05 worse on average: most better, few much worse (0.2 less a beta with a mean of 0.25).

    If all were worse, the gate would detect harm and abort at any margin, and the test would prove nothing."""
    found: list[Prediction] = []
    for at, loss in enumerate(rng.beta(0.5, 1.5, n).tolist()):
        sides: dict[str, Any] = {"of_candidate": {"overlap": 1.0 - loss}, "of_baseline": {"overlap": 0.8}}
        found.append(predicted("ValueError", "ValueError", id=f"{at}", **sides))
    return evidence(found)


SIMULATED: dict[str, Simulated] = {
    "mean latency at its limit, sigma 1, 20 prompts": Simulated(
        latency(1.0), partial(skewed_times, n=20, sigma=1.0), 400
    ),
    "mean latency at its limit, sigma 0.5, 60 prompts": Simulated(
        latency(1.0), partial(skewed_times, n=60, sigma=0.5), 200
    ),
    "latency a fifth less, sigma 1, 30 prompts": Simulated(
        latency(100.0, 0.2), partial(skewed_times, n=30, sigma=1.0, ratio=0.8), 100
    ),
    "macro-F1 at its threshold, 60 examples": Simulated(
        at_least(RIGHT, "classes.macro_f1"), partial(labelled, n=60), 15, 0.085
    ),
    "macro-F1 not better, 60 examples": Simulated(better("classes.macro_f1"), partial(labelled, n=60), 15),
    "mean score worse by the margin, 60 examples": Simulated(
        not_worse(0.05, "overlap"), partial(scored, n=60), 60, 0.08
    ),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_simulated_studies_rarely_deploy_bad_candidates(name: str) -> None:
    """The rate is compared with the level, or with the documented rate if the method is known to err more."""
    assert rate(SIMULATED[name]) <= SIMULATED[name].allowed()


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", SIMULATED)
def test_many_simulated_studies_rarely_deploy_bad_candidates(name: str) -> None:
    """The same with ten times as many studies."""
    assert rate(many := more(SIMULATED[name]), seed=1) <= many.allowed()


def more(case: Simulated) -> Simulated:
    """Return the same case with ten times the studies."""
    return Simulated(case.criterion, case.draw, 10 * case.studies, case.documented)


def test_skewed_times_within_the_limit_are_deployed() -> None:
    """The rule must keep its power on skewed times: mean at 75% of the limit, 60 prompts, sigma 0.5."""
    case = Simulated(latency(1.0), partial(skewed_times, n=60, sigma=0.5, ratio=0.75), 60)
    assert rate(case) >= 0.9


def main() -> None:
    """Print every rate."""
    exact = {**BOUNDARIES, **{name: case for name, (case, _) in CORNERS.items()}}
    for name, case in exact.items():
        print(f"wrongly deployed: {name}: {chance(*case)[0]:.4f}, exact", flush=True)
    for name, simulated in SIMULATED.items():
        many = more(simulated)
        print(f"wrongly deployed: {name}: {rate(many, seed=1):.3f} of {many.studies} studies", flush=True)
    for name, (case, _) in GOOD.items():
        print(f"rightly deployed: {name}: {chance(*case)[0]:.4f}, exact", flush=True)


if __name__ == "__main__":
    main()
