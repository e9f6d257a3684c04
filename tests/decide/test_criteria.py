"""Criteria on binary answers: pass, fail and inconclusive results, and every boundary."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.criteria import Criterion, NotWorseThanBaseline
from finetune.decide.criteria import judge
from finetune.records.examples import Timing
from finetune.statistics.decision import Gate, Status
from finetune.statistics.proportions import clopper_pearson, tango
from tests.builders.gates import (
    GATE,
    METRICS,
    POINT,
    at_least,
    at_most,
    better,
    classes,
    evidence,
    latency,
    memory,
    not_worse,
    pairs,
    predicted,
    quantile,
    status,
)

# ---- At least a threshold


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [
        (149, 149, "pass"),
        (148, 148, "inconclusive"),
        (235, 236, "pass"),
        (234, 235, "inconclusive"),
        (31, 31, "inconclusive"),
        (29, 31, "inconclusive"),
        (28, 31, "fail"),
        (0, 31, "fail"),
        (1, 1, "inconclusive"),
        (0, 1, "fail"),
    ],
)
def test_evidence_needed_for_98_percent_at_95_percent_confidence(right: int, n: int, expected: Status) -> None:
    """31 of 31 does not prove 98%; 149 without a failure do, or 236 with one; three failures of 31 refute it."""
    assert status(at_least(0.98), pairs(gained=right, neither=n - right)) == expected


def test_a_bound_on_the_threshold_passes_and_one_below_does_not() -> None:
    """`at_least` includes the boundary, and a fail needs the complete interval below it."""
    lower = clopper_pearson(30, 31, 0.95, "lower").lower
    upper = clopper_pearson(30, 31, 0.95, "upper").upper
    predictions = pairs(both=30, neither=1)
    assert status(at_least(lower), predictions) == "pass"
    assert status(at_least(math.nextafter(lower, 1)), predictions) == "inconclusive"
    assert status(at_least(upper), predictions) == "inconclusive"
    assert status(at_least(math.nextafter(upper, 1)), predictions) == "fail"


def test_an_outcome_shows_its_interval_and_its_counts() -> None:
    """The outcome shows what its status rests on: both bounds are one-sided at the stated confidence."""
    (found,) = judge(at_least(0.98), evidence(pairs(both=30, neither=1)), GATE)
    assert found.estimate == pytest.approx(30 / 31)
    assert (found.lower, found.upper) == pytest.approx((0.8559, 0.9983), abs=5e-5)
    assert (found.criterion, found.target) == ("exact_match at least 0.98", 0.98)
    assert (found.method, found.reason) == ("Clopper-Pearson", "30 of 31 correct")


@pytest.mark.parametrize(("right", "expected"), [(3, "pass"), (4, "pass"), (2, "fail")])
def test_the_point_policy_compares_the_estimate(right: int, expected: Status) -> None:
    """3 of 4 is 75%: at the threshold it passes under `point`, which is never inconclusive."""
    assert status(at_least(0.75), pairs(both=right, neither=4 - right), POINT) == expected


# ---- Against the baseline


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [
        (5, 0, "pass"),
        (4, 0, "inconclusive"),
        (9, 2, "pass"),
        (8, 2, "inconclusive"),
        (3, 3, "inconclusive"),
        (0, 0, "inconclusive"),
        (0, 4, "inconclusive"),
        (0, 5, "fail"),
    ],
)
def test_better_than_the_baseline_uses_exact_mcnemar(gained: int, lost: int, expected: Status) -> None:
    """One-sided exact McNemar by hand: 5 to 0 is 1/32, 4 to 0 is 1/16, 9 to 2 is 67/2048, 8 to 2 is 56/1024."""
    assert status(better(), pairs(both=40, gained=gained, lost=lost, neither=3)) == expected


def test_a_p_value_at_the_level_does_not_pass() -> None:
    """4 to 0 gives p = 0.0625, which is not less than a level of exactly that."""
    on_the_edge = Gate("interval", 0.9375, seed=1)
    assert status(better(), pairs(gained=4), on_the_edge) == "inconclusive"
    assert status(better(), pairs(gained=4), Gate("interval", 0.937, seed=1)) == "pass"


@pytest.mark.parametrize(
    ("gained", "lost", "expected"), [(1, 0, "pass"), (2, 2, "fail"), (0, 0, "fail"), (0, 1, "fail")]
)
def test_better_under_the_point_policy_needs_one_more(gained: int, lost: int, expected: Status) -> None:
    """A tie is not better, even without a test."""
    assert status(better(), pairs(both=5, gained=gained, lost=lost), POINT) == expected


@pytest.mark.parametrize(
    ("both", "lost", "expected"), [(52, 0, "pass"), (51, 0, "inconclusive"), (90, 1, "pass"), (80, 20, "fail")]
)
def test_not_worse_than_the_baseline_needs_enough_examples(both: int, lost: int, expected: Status) -> None:
    """Equal answers on 51 examples do not prove that at most 5% was lost; on 52 they do."""
    assert status(not_worse(0.05), pairs(both=both, lost=lost)) == expected


def test_a_bound_at_the_margin_is_worse() -> None:
    """A candidate may be worse by less than the margin, but not by exactly the margin."""
    margin = -tango(0, 0, 52, 0.95, "lower").lower
    assert status(not_worse(margin), pairs(both=52)) == "inconclusive"
    assert status(not_worse(math.nextafter(margin, 1)), pairs(both=52)) == "pass"


@pytest.mark.parametrize(("lost", "expected"), [(4, "pass"), (5, "fail"), (6, "fail")])
def test_a_loss_of_exactly_the_margin_is_worse(lost: int, expected: Status) -> None:
    """A loss of exactly the margin fails: 5 of 100 against 0.05, compared as points."""
    assert status(not_worse(0.05), pairs(both=100 - lost, lost=lost), POINT) == expected


@pytest.mark.parametrize("criterion", [at_least(0.98), better(), not_worse(0.05)])
def test_a_perfect_single_example_proves_nothing(criterion: Criterion) -> None:
    """n = 1, right against wrong: the best possible result proves nothing."""
    assert status(criterion, pairs(gained=1)) == "inconclusive"


# ---- Macro-F1


@pytest.mark.parametrize(("threshold", "expected"), [(0.6, "pass"), (0.8, "inconclusive"), (0.95, "fail")])
def test_macro_f1_is_judged_on_its_interval(threshold: float, expected: Status) -> None:
    """About 0.8 on 60 answers: certainly above 0.6 and below 0.95, but inconclusive about 0.8."""
    assert status(at_least(threshold, "classes.macro_f1"), classes(60, 12, 30)) == expected


@pytest.mark.parametrize("criterion", [better("classes.macro_f1"), not_worse(0.05, "classes.macro_f1")])
@pytest.mark.parametrize(("candidate", "expected"), [(6, "pass"), (30, "fail"), (15, "inconclusive")])
def test_macro_f1_is_paired_with_the_baseline(criterion: Criterion, candidate: int, expected: Status) -> None:
    """Both sides are resampled together, and a margin applies to the difference of the two metrics."""
    baseline = {"pass": 30, "fail": 6, "inconclusive": 15}[expected]
    assert status(criterion, classes(60, candidate, baseline)) == expected


@pytest.mark.parametrize("n", [1, 5, 60])
@pytest.mark.parametrize(
    "criterion", [at_least(0.5, "classes.macro_f1"), better("classes.macro_f1"), not_worse(0.01, "classes.macro_f1")]
)
def test_a_bootstrap_without_variance_never_passes(n: int, criterion: Criterion) -> None:
    """If all answers are right, or all alike, a percentile bootstrap would give an interval of width 0 and pass."""
    predictions = pairs(both=n) if isinstance(criterion, NotWorseThanBaseline) else pairs(gained=n)
    (found,) = judge(criterion, evidence(predictions), GATE)
    assert found.status == "inconclusive"
    assert found.method == "none"
    assert "a bootstrap needs" in found.reason


# ---- Groups


def test_a_group_is_judged_on_its_own_examples() -> None:
    """A failing agent is not compensated by an easy one."""
    predictions = pairs(gained=149) + pairs(neither=31, agent="hard")
    assert status(at_least(0.98, group="namer"), predictions) == "pass"
    assert status(at_least(0.98, group="hard"), predictions) == "fail"
    assert status(better(group="hard"), predictions) == "inconclusive"
    assert status(at_least(0.98), predictions) == "fail"


@pytest.mark.parametrize("metric", ["exact_match", "classes.macro_f1", "overlap", "loss"])
@pytest.mark.parametrize("gate", [GATE, POINT])
def test_a_group_without_examples_is_unmeasured(metric: str, gate: Gate) -> None:
    """A group without examples is not a failure and never a pass; the record is valid JSON."""
    (found,) = judge(at_least(0.5, metric, "nobody"), evidence(pairs(gained=149)), gate)
    assert (found.status, found.reason) == ("unmeasured", "no test example belongs to nobody")
    json.dumps(found.report().to_json(), allow_nan=False)


@settings(max_examples=40)
@given(
    right=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    peaks=st.lists(st.integers(0, 3), max_size=4),
    seconds=st.lists(st.floats(-1, 2), max_size=4),
)
def test_every_outcome_is_json(right: list[tuple[bool, bool]], peaks: list[int], seconds: list[float]) -> None:
    """Infinite and missing bounds are null, so that any JSON parser can read decision.json."""
    words = {True: "ValueError", False: "wrong"}
    predictions = [predicted(words[mine], words[theirs], id=str(at)) for at, (mine, theirs) in enumerate(right)]
    rows = [Timing(str(at), 1.0, None, 1, value, None, 1) for at, value in enumerate(seconds)]
    criteria = [rule(name) for name in METRICS for rule in (better, lambda name: not_worse(0.1, name))]
    criteria += [at_least(0.5), at_least(0.5, "classes.macro_f1"), at_least(0.5, "overlap"), at_most(1.0)]
    for criterion in [*criteria, latency(1, 0.1), quantile(1), memory("2 GB")]:
        for found in judge(criterion, evidence(predictions, rows, peaks), GATE):
            json.dumps(found.report().to_json(), allow_nan=False)
            few = (
                3 if isinstance(criterion, NotWorseThanBaseline) else 5
            )  # the score interval of three gains excludes -0.1
            assert found.status != "pass" or criterion in (memory("2 GB"), at_most(1.0)) or len(right) >= few
