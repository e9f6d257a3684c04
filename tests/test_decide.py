"""The gate: what passes, what does not, what is told, and that no unsound evidence is judged."""

import json
import math
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from finetune.artifacts import publish_directory, read_json, sha256_file, write_json, write_lines, write_manifest
from finetune.config import Config
from finetune.config_decide import AtLeast, BetterThanBaseline, Criterion, DecideConfig, LatencyAtMost, MemoryAtMost, NotWorseThanBaseline
from finetune.decide import stage
from finetune.decide.criteria import Evidence, Gate, Outcome, Status, judge
from finetune.decide.plots import draw, read_curves
from finetune.decide.report import amount, bar, plain_markdown, worst_examples
from finetune.decide.verdict import Verdict, found_harm, reach_verdict
from finetune.errors import DataError
from finetune.evaluate.scorers import describe_group, groups_of
from finetune.gate import show_decision
from finetune.paths import Paths
from finetune.records import Example, Prediction, Timing, to_json_lines
from finetune.stats import clopper_pearson, tango

GATE = Gate("interval", 0.95, seed=1)
POINT = Gate("point", 0.95, seed=1)
PEAKS = (10**9, 10**9 + 1, 10**9 - 1)
Pairs = Callable[..., list[Prediction]]


@pytest.fixture(scope="session")
def pairs(prediction: Callable[..., Prediction]) -> Pairs:
    """`pairs(both=3, gained=5, lost=1, neither=2)`: so many examples that both, only one or none got right."""

    def made(both: int = 0, gained: int = 0, lost: int = 0, neither: int = 0, **fields: Any) -> list[Prediction]:
        kinds = [(True, True)] * both + [(True, False)] * gained + [(False, True)] * lost + [(False, False)] * neither
        return [prediction(*kind, id=f"{at}", **fields) for at, kind in enumerate(kinds)]

    return made


def timings(candidate: float, baseline: float = 1.0, count: int = 30) -> list[Timing]:
    """Latencies around two means (10% up and down, in turns that differ), as a real clock shows them."""
    spread = [1 + 0.02 * (at % 11 - 5) for at in range(count)]
    shift = sum(spread) / count
    return [
        Timing(f"{at}", baseline * spread[-1 - at] / shift, 3, candidate * spread[at] / shift, 3) for at in range(count)
    ]


def status(criterion: Criterion, predictions: Sequence[Prediction] = (), gate: Gate = GATE, **cost: Any) -> Status:
    """The status of a criterion with one outcome."""
    (found,) = judge(criterion, evidence(predictions, **cost), gate)
    return found.status


def evidence(predictions: Sequence[Prediction] = (), latency: Any = (), memory: Sequence[int] = PEAKS) -> Evidence:
    """What the gate judges."""
    return Evidence(predictions, latency, memory)


def at_least(threshold: float, metric: Any = "exact_match", group: str = "all") -> AtLeast:
    """The metric is at least this."""
    return AtLeast(rule="at_least", metric=metric, group=group, threshold=threshold)


def better(metric: Any = "exact_match", group: str = "all") -> BetterThanBaseline:
    """The metric is above the baseline's."""
    return BetterThanBaseline(rule="better_than_baseline", metric=metric, group=group)


def not_worse(margin: float, metric: Any = "exact_match") -> NotWorseThanBaseline:
    """The metric is not below the baseline's by this."""
    return NotWorseThanBaseline(rule="not_worse_than_baseline", metric=metric, group="all", margin=margin)


def latency(seconds: float, improvement: float | None = None) -> LatencyAtMost:
    """The mean latency is under this."""
    return LatencyAtMost(rule="latency_at_most", seconds=seconds, improvement=improvement)


def memory(limit: str) -> MemoryAtMost:
    """The peak memory is at most this."""
    return MemoryAtMost(rule="memory_at_most", limit=limit)


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
def test_98_percent_at_95_percent_confidence(pairs: Pairs, right: int, n: int, expected: Status) -> None:
    """31 of 31 proves nothing about 98%; 149 with no failure do, or 236 with one; three failures of 31 refute it."""
    assert status(at_least(0.98), pairs(gained=right, neither=n - right)) == expected


def test_a_bound_on_the_threshold_passes_and_one_below_does_not(pairs: Pairs) -> None:
    """The edge itself: `at least` includes it, and a fail needs the whole interval below."""
    lower = clopper_pearson(30, 31, 0.95, "lower").lower
    upper = clopper_pearson(30, 31, 0.95, "upper").upper
    predictions = pairs(both=30, neither=1)
    assert status(at_least(lower), predictions) == "pass"
    assert status(at_least(math.nextafter(lower, 1)), predictions) == "inconclusive"
    assert status(at_least(upper), predictions) == "inconclusive"
    assert status(at_least(math.nextafter(upper, 1)), predictions) == "fail"


def test_an_outcome_shows_its_interval_and_its_counts(pairs: Pairs) -> None:
    """What a person checks the status by: both bounds are one-sided at the stated confidence."""
    (found,) = judge(at_least(0.98), evidence(pairs(both=30, neither=1)), GATE)
    assert found.estimate == pytest.approx(30 / 31)
    assert (found.lower, found.upper) == pytest.approx((0.8559, 0.9983), abs=5e-5)
    assert (found.criterion, found.target) == ("exact_match at least 0.98", 0.98)
    assert (found.method, found.reason) == ("Clopper-Pearson", "30 of 31 right")


@pytest.mark.parametrize(("right", "expected"), [(3, "pass"), (4, "pass"), (2, "fail")])
def test_points_compare_the_estimate_alone(pairs: Pairs, right: int, expected: Status) -> None:
    """3 of 4 is 75%: at the threshold it passes under `point`, where nothing is ever inconclusive."""
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
def test_better_than_the_baseline(pairs: Pairs, gained: int, lost: int, expected: Status) -> None:
    """One-sided exact McNemar by hand: 5 to 0 is 1/32, 4 to 0 is 1/16, 9 to 2 is 67/2048, 8 to 2 is 56/1024."""
    assert status(better(), pairs(both=40, gained=gained, lost=lost, neither=3)) == expected


def test_a_p_value_on_the_edge_does_not_pass(pairs: Pairs) -> None:
    """4 to 0 is p = 0.0625; asked for less than exactly that, it is not less."""
    on_the_edge = Gate("interval", 0.9375, seed=1)
    assert status(better(), pairs(gained=4), on_the_edge) == "inconclusive"
    assert status(better(), pairs(gained=4), Gate("interval", 0.937, seed=1)) == "pass"


@pytest.mark.parametrize(
    ("gained", "lost", "expected"), [(1, 0, "pass"), (2, 2, "fail"), (0, 0, "fail"), (0, 1, "fail")]
)
def test_better_under_points_needs_one_more(pairs: Pairs, gained: int, lost: int, expected: Status) -> None:
    """A tie is not better, even where nothing is proven."""
    assert status(better(), pairs(both=5, gained=gained, lost=lost), POINT) == expected


@pytest.mark.parametrize(
    ("both", "lost", "expected"), [(52, 0, "pass"), (51, 0, "inconclusive"), (90, 1, "pass"), (80, 20, "fail")]
)
def test_not_worse_than_the_baseline(pairs: Pairs, both: int, lost: int, expected: Status) -> None:
    """Equal answers on 51 examples don't show that no more than 5% was lost; on 52 they do."""
    assert status(not_worse(0.05), pairs(both=both, lost=lost)) == expected


def test_a_bound_on_the_margin_is_worse(pairs: Pairs) -> None:
    """The edge itself: a candidate may be worse by less than the margin, not by the margin."""
    margin = -tango(0, 0, 52, 0.95, "lower").lower
    assert status(not_worse(margin), pairs(both=52)) == "inconclusive"
    assert status(not_worse(math.nextafter(margin, 1)), pairs(both=52)) == "pass"


@pytest.mark.parametrize(("lost", "expected"), [(4, "pass"), (5, "fail"), (6, "fail")])
def test_the_margin_itself_is_worse(pairs: Pairs, lost: int, expected: Status) -> None:
    """Worse by exactly the margin is worse by the margin: 5 of 100 against 0.05, compared as points."""
    assert status(not_worse(0.05), pairs(both=100 - lost, lost=lost), POINT) == expected


@pytest.mark.parametrize("criterion", [at_least(0.98), better(), not_worse(0.05)])
def test_a_perfect_single_example_proves_nothing(pairs: Pairs, criterion: Criterion) -> None:
    """n = 1, right against wrong: the best result there is, and no evidence."""
    assert status(criterion, pairs(gained=1)) == "inconclusive"


# ---- Macro-F1


@pytest.fixture(scope="session")
def classes(prediction: Callable[..., Prediction]) -> Callable[..., list[Prediction]]:
    """`classes(60, candidate=12, baseline=30)`: 60 answers of three classes, this many of them wrong."""

    def made(n: int, candidate: int, baseline: int) -> list[Prediction]:
        names = ["KeyError", "TypeError", "ValueError"]
        wrong = [{*range(0, n, max(n // count, 1))} if count else set() for count in (candidate, baseline)]
        return [
            prediction(
                names[(at + 1) % 3] if at in wrong[0] else names[at % 3],
                names[(at + 2) % 3] if at in wrong[1] else names[at % 3],
                id=f"{at}",
                reference=names[at % 3],
            )
            for at in range(n)
        ]

    return made


@pytest.mark.parametrize(("threshold", "expected"), [(0.6, "pass"), (0.8, "inconclusive"), (0.95, "fail")])
def test_macro_f1_at_least(classes: Callable[..., list[Prediction]], threshold: float, expected: Status) -> None:
    """About 0.8 on 60 answers: sure of more than 0.6, of less than 0.95, and of nothing about 0.8."""
    assert status(at_least(threshold, "macro_f1"), classes(60, 12, 30)) == expected


@pytest.mark.parametrize(
    ("candidate", "baseline", "expected"), [(6, 30, "pass"), (30, 6, "fail"), (20, 20, "inconclusive")]
)
def test_macro_f1_better_than_the_baseline(
    classes: Callable[..., list[Prediction]], candidate: int, baseline: int, expected: Status
) -> None:
    """Paired by example: both sides are drawn together."""
    assert status(better("macro_f1"), classes(60, candidate, baseline)) == expected


@pytest.mark.parametrize(
    ("candidate", "baseline", "expected"), [(6, 30, "pass"), (30, 6, "fail"), (12, 10, "inconclusive")]
)
def test_macro_f1_not_worse_than_the_baseline(
    classes: Callable[..., list[Prediction]], candidate: int, baseline: int, expected: Status
) -> None:
    """The margin is on the difference of the two metrics."""
    assert status(not_worse(0.05, "macro_f1"), classes(60, candidate, baseline)) == expected


@pytest.mark.parametrize("n", [1, 5, 60])
@pytest.mark.parametrize("criterion", [at_least(0.5, "macro_f1"), better("macro_f1"), not_worse(0.01, "macro_f1")])
def test_a_bootstrap_without_variance_never_passes(pairs: Pairs, n: int, criterion: Criterion) -> None:
    """All right, or all alike: a percentile bootstrap would give an interval of no width and pass."""
    predictions = pairs(both=n) if isinstance(criterion, NotWorseThanBaseline) else pairs(gained=n)
    (found,) = judge(criterion, evidence(predictions), GATE)
    assert found.status == "inconclusive"
    assert found.method == "none"
    assert "a bootstrap needs" in found.reason


# ---- Groups


def test_a_group_is_judged_on_its_own_examples(pairs: Pairs) -> None:
    """An agent that fails must not be carried by another that is easy."""
    predictions = pairs(gained=149) + pairs(neither=31, agent="hard")
    assert status(at_least(0.98, group="namer"), predictions) == "pass"
    assert status(at_least(0.98, group="hard"), predictions) == "fail"
    assert status(better(group="hard"), predictions) == "inconclusive"
    assert status(at_least(0.98), predictions) == "fail"


@pytest.mark.parametrize("metric", ["exact_match", "macro_f1"])
@pytest.mark.parametrize("gate", [GATE, POINT])
def test_a_group_without_examples_is_unmeasured(pairs: Pairs, metric: str, gate: Gate) -> None:
    """No example is no failure, and that must never be a pass; the record is JSON all the same."""
    (found,) = judge(at_least(0.5, metric, "nobody"), evidence(pairs(gained=149)), gate)
    assert (found.status, found.reason) == ("unmeasured", "no test example belongs to nobody")
    assert found.to_json()["target"] is None
    assert bar(found) is None


# ---- Cost


@pytest.mark.parametrize(("limit", "expected"), [(0.6, "pass"), (0.5, "inconclusive"), (0.4, "fail")])
def test_latency_against_its_limit(limit: float, expected: Status) -> None:
    """A mean of 0.5 s, 10% up and down: the upper bound must be under the limit."""
    assert status(latency(limit), latency=timings(0.5)) == expected


@pytest.mark.parametrize(("limit", "expected"), [(0.51, "pass"), (0.49, "fail")])
def test_latency_under_points(limit: float, expected: Status) -> None:
    """The mean alone."""
    assert status(latency(limit), gate=POINT, latency=timings(0.5)) == expected


@pytest.mark.parametrize(("asked", "expected"), [(0.0, "pass"), (0.3, "pass"), (0.4, "inconclusive"), (0.5, "fail")])
def test_the_improvement_on_the_baselines_latency(asked: float, expected: Status) -> None:
    """40% less than the baseline, in pairs; the limit of seconds is an outcome of its own."""
    found = judge(latency(0.7, asked), evidence(latency=timings(0.6)), GATE)
    assert [item.status for item in found] == ["pass", expected]
    assert found[1].estimate == pytest.approx(0.4)


def test_a_slower_candidate_fails_an_improvement_of_zero() -> None:
    """Zero asks for at least as fast as the baseline."""
    assert judge(latency(9, 0.0), evidence(latency=timings(1.2)), GATE)[1].status == "fail"


@pytest.mark.parametrize("count", [0, 1])
def test_latency_that_was_not_measured_is_unmeasured(count: int) -> None:
    """An empty list has no mean, and one answer has no spread; with an asked improvement too."""
    for criterion in (latency(100), latency(100, 0.0)):
        (found,) = judge(criterion, evidence(latency=timings(0.5)[:count]), POINT)
        assert (found.status, found.reason) == ("unmeasured", "no latency was measured")


@pytest.mark.parametrize("side", ["candidate_seconds", "baseline_seconds"])
@pytest.mark.parametrize("seconds", [0.0, -0.1])
def test_a_clock_that_went_backwards_measured_nothing(side: str, seconds: float) -> None:
    """One impossible time makes the others doubtful; leaving it in would make the mean shorter."""
    broken = {"baseline_seconds": 1.0, "baseline_tokens": 3, "candidate_seconds": 0.5, "candidate_tokens": 3}
    rows = [*timings(0.5), Timing("broken", **{**broken, side: seconds})]  # type: ignore[arg-type]
    (found,) = judge(latency(100, 0.0), evidence(latency=rows), GATE)
    assert found.status == "unmeasured"
    assert found.reason == "a measured time is not above zero; the clock went backwards"


@pytest.mark.parametrize("count", [2, 3, 19])
def test_too_few_latencies_never_pass(count: int) -> None:
    """A bound on a mean of which so little was seen would be a guess."""
    found = judge(latency(100, 0.0), evidence(latency=timings(0.5)[:count]), GATE)
    assert [item.status for item in found] == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ((2_000_000_000, 1, 1), "pass"),
        ((1, 2_000_000_001, 1), "fail"),
        ((1, 1, 1, 1, 2_000_000_001), "fail"),
        ((), "unmeasured"),
        ((1, 1), "unmeasured"),
        ((1, 1, 0), "unmeasured"),
        ((0, 0, 0), "unmeasured"),
        ((1, 1, -1), "unmeasured"),
    ],
)
def test_memory_is_the_largest_of_three_peaks(peaks: tuple[int, ...], expected: Status) -> None:
    """At the limit passes, a byte above fails; zero is what a counter says that counts nothing: no small peak."""
    for gate in (GATE, POINT):
        assert status(memory("2 GB"), memory=peaks, gate=gate) == expected


@settings(max_examples=40)
@given(
    right=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    peaks=st.lists(st.integers(0, 3), max_size=4),
    seconds=st.lists(st.floats(-1, 2), max_size=4),
)
def test_every_outcome_is_json(
    prediction: Callable[..., Prediction], right: list[tuple[bool, bool]], peaks: list[int], seconds: list[float]
) -> None:
    """Infinite and missing bounds are null: decision.json must be read by anything that reads JSON."""
    predictions = [prediction(*pair, id=str(at)) for at, pair in enumerate(right)]
    rows = [Timing(str(at), 1.0, 1, value, 1) for at, value in enumerate(seconds)]
    criteria = [at_least(0.5), better(), not_worse(0.1), at_least(0.5, "macro_f1"), latency(1, 0.1), memory("2 GB")]
    for criterion in criteria:
        for found in judge(criterion, evidence(predictions, rows, peaks), GATE):
            json.dumps(found.to_json(), allow_nan=False)
            line = bar(found)
            assert line is None or all(0 <= line[at] <= 100 for at in ("left", "estimate", "target"))


# ---- The verdict

TRAINED = {"validation_loss": 1.0, "last_validation_loss": 1.0, "steps": 100, "kept_step": 50}


@pytest.fixture(scope="session")
def verdict_of(change: Callable[..., Config], pairs: Pairs) -> Callable[..., Verdict]:
    """`verdict_of([at_least(0.98)], predictions)`: judged at 95% in one look."""

    def reached(
        criteria: Sequence[Criterion],
        predictions: Sequence[Prediction],
        *,
        look: int = 1,
        policy: str = "interval",
        latency: Any = (),
        memory: Sequence[int] = PEAKS,
        **trained: Any,
    ) -> Verdict:
        gate = Gate(policy, 0.95, seed=1)  # type: ignore[arg-type]
        found = Evidence(predictions, latency, memory)
        outcomes = [item for criterion in criteria for item in judge(criterion, found, gate)]
        config = asked(change, criteria, policy)
        return reach_verdict(config, outcomes, found, gate, look, TRAINED | trained)

    return reached


def asked(change: Callable[..., Config], criteria: Sequence[Criterion], policy: str = "interval") -> DecideConfig:
    """The gate of these criteria: 95%, one look."""
    written = [criterion.model_dump(mode="json") for criterion in criteria]
    keys = {"policy": policy, "confidence": 0.95, "looks": 1, "criteria": written}
    return change(decide=keys).decide


def codes(verdict: Verdict) -> list[str]:
    """The codes of its suggestions."""
    return [item.code for item in verdict.suggestions]


def test_deploy_needs_every_criterion(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """All pass: deploy, with nothing left to say. One peak a byte too high: not deploy."""
    criteria = [at_least(0.5), better(), memory("2 GB")]
    found = verdict_of(criteria, pairs(gained=30))
    assert found == Verdict("deploy", "All 3 criteria pass: deploy this adapter.", (), ())
    found = verdict_of(criteria, pairs(gained=30), memory=(2_000_000_001,) * 3)
    assert found.name == "iterate"
    assert found.reasons == ("fail: peak memory at most 2 GB (the largest of 3 fresh processes)",)
    assert found.sentence == "1 of 3 criteria do not pass yet."


@pytest.mark.parametrize(
    ("criterion", "cost"),
    [(memory("2 GB"), {"memory": ()}), (latency(9), {"latency": ()}), (at_least(0.5, group="nobody"), {})],
)
def test_what_was_not_measured_is_not_deployed(
    pairs: Pairs, verdict_of: Callable[..., Verdict], criterion: Criterion, cost: Any
) -> None:
    """Absent evidence must weigh against the candidate, under either policy."""
    for policy in ("interval", "point"):
        found = verdict_of([better(), criterion], pairs(gained=30), policy=policy, **cost)
        assert found.name == "iterate"
        assert found.reasons[0].startswith("unmeasured: ")


def test_31_of_31_is_too_little_for_98_percent(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """The commonest false proof: the verdict is iterate, and it names the 149 examples that would be enough."""
    found = verdict_of([at_least(0.98)], pairs(gained=31))
    assert found.name == "iterate"
    assert found.reasons == ("inconclusive: exact_match at least 0.98 (31 of 31 right)",)
    assert found.suggestions[0].code == "more-test-examples"
    assert found.suggestions[0].text == (
        "exact_match at least 0.98: 31 of 31 is too little evidence; at this rate 149 test examples with at most 0 "
        "failures would show it"
    )


def test_the_examples_that_are_asked_for_are_enough(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """Advice that would fail again is worse than none: with as many as it says, the criterion passes."""
    criteria = [at_least(0.9)]
    found = verdict_of(criteria, pairs(gained=57, neither=3))
    numbers = re.search(r"at this rate (\d+) test examples with at most (\d+) failures", found.suggestions[0].text)
    assert numbers
    needed, failures = int(numbers[1]), int(numbers[2])
    assert failures == round(needed * 3 / 60)
    assert verdict_of(criteria, pairs(gained=needed - failures, neither=failures)).name == "deploy"


def test_more_examples_are_no_advice_below_the_threshold(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """30 of 31 is under 98%: at this rate more examples would prove the failure."""
    assert "more-test-examples" not in codes(verdict_of([at_least(0.98)], pairs(gained=30, neither=1)))


def test_harm_is_an_abort(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """Ten answers lost and none gained is p = 1/1024: more of the same training is no way out."""
    found = verdict_of([at_least(0.5)], pairs(both=5, lost=10))
    assert found.name == "abort"
    assert found.sentence == "The candidate does harm: do not go on with this one."
    assert found.reasons[0] == ("worse than the baseline: 10 answers lost, 0 gained (exact McNemar p = 0.00098)")
    assert found.suggestions == ()
    assert verdict_of([at_least(0.5)], pairs(both=5, lost=4)).name != "abort"


def test_no_improvement_and_no_hope_is_an_abort(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """A target that is refuted, and nothing that got better: the honest word is stop."""
    found = verdict_of([at_least(0.9)], pairs(both=10, neither=30), latency=timings(1.0))
    assert found.name == "abort"
    assert found.sentence == "No improvement on quality or cost, and targets are out of reach: stop here."
    assert found.reasons == ("fail: exact_match at least 0.9 (10 of 40 right)",)


@pytest.mark.parametrize("way", ["quality", "latency"])
def test_an_improvement_is_worth_an_iteration(pairs: Pairs, verdict_of: Callable[..., Verdict], way: str) -> None:
    """Out of reach today, but shown to move the right way."""
    predictions = pairs(both=10, gained=5, neither=25) if way == "quality" else pairs(both=10, neither=30)
    seconds = timings(0.6 if way == "latency" else 1.0)
    assert verdict_of([at_least(0.9)], predictions, latency=seconds).name == "iterate"


def test_too_little_evidence_is_never_an_abort(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """Inconclusive and no improvement: nothing is refuted yet."""
    assert verdict_of([at_least(0.9)], pairs(both=9, neither=1)).name == "iterate"


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ({"kept_step": 100}, "more-epochs"),
        ({"kept_step": 50, "last_validation_loss": 1.03}, "lower-learning-rate"),
        ({"kept_step": 50, "last_validation_loss": 1.01}, None),
    ],
)
def test_the_curve_tells_what_to_try(
    pairs: Pairs, verdict_of: Callable[..., Verdict], trained: dict[str, Any], expected: str | None
) -> None:
    """Still falling at the end, risen by more than 2%, or neither."""
    found = codes(verdict_of([better()], pairs(both=5, gained=2, neither=1), **trained))
    assert [code for code in found if code in ("more-epochs", "lower-learning-rate")] == (
        [expected] if expected else []
    )


def test_the_risen_loss_is_told_with_its_figures(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """A person decides by how much."""
    found = verdict_of([better()], pairs(gained=2), last_validation_loss=1.25)
    text = "the validation loss rose from 1.000 (step 50) to 1.250: lower the learning rate"
    assert text in [item.text for item in found.suggestions]


def test_the_group_that_fails_most_needs_data(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """By share, not by number: the large group has more failures and the small one fails more often."""
    predictions = pairs(gained=40, neither=10, agent="large") + pairs(gained=2, neither=3, agent="small")
    found = verdict_of([at_least(0.9)], predictions)
    assert found.suggestions[-1].code == "more-data"
    assert found.suggestions[-1].text == "add training examples of small, the group that fails most"


def test_latency_asks_for_shorter_answers_and_not_for_data(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """LoRA adds no speed: what helps is fewer tokens or a smaller base."""
    found = verdict_of([better(), latency(0.5)], pairs(gained=30), latency=timings(0.9))
    assert codes(found) == ["shorter-answers"]


def test_a_missed_improvement_of_latency_asks_for_shorter_answers(
    pairs: Pairs, verdict_of: Callable[..., Verdict]
) -> None:
    """The second half of the latency criterion is about time too, though its figure is a share."""
    found = verdict_of([better(), latency(5.0, 0.4)], pairs(gained=30), latency=timings(0.9))
    assert codes(found) == ["shorter-answers"]


def test_past_the_declared_looks_nothing_is_deployed(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """The error probability of this test set is used up, whatever the criteria say; a fresh set is the first advice."""
    criteria = [at_least(0.5), better(), memory("2 GB")]
    assert verdict_of(criteria, pairs(gained=30), look=1).name == "deploy"
    found = verdict_of(criteria, pairs(gained=30), look=2)
    assert found.name == "iterate"
    assert found.reasons == ("look 2 at this test set, 1 were declared: a fresh test set is due",)
    assert codes(found)[0] == "fresh-test-set"


def test_spent_looks_are_not_counted_as_a_criterion(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """All three criteria pass; to say that one of them does not would send its reader looking for it."""
    found = verdict_of([at_least(0.5), better(), memory("2 GB")], pairs(gained=30), look=2)
    assert "1 of 3 criteria" not in found.sentence
    found = verdict_of([better()], pairs(gained=2), look=2)
    assert "2 of 1 criteria" not in found.sentence


def test_points_prove_nothing(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """The best outcome of the policy `point` says so in its name, even where intervals would have passed."""
    found = verdict_of([at_least(0.5), better()], pairs(gained=30), policy="point")
    assert found.name == "deploy-unproven"
    assert found.sentence == "Every estimate meets its target, but nothing is proven."


@given(
    found=st.lists(
        st.tuples(st.sampled_from(["pass", "fail", "inconclusive", "unmeasured"]), st.sampled_from(["", "s", "bytes"])),
        min_size=1,
        max_size=5,
    ),
    kinds=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8),
    look=st.integers(1, 3),
    policy=st.sampled_from(["interval", "point"]),
    kept=st.sampled_from([50, 100]),
)
def test_no_wrong_deploy(
    change: Callable[..., Config],
    prediction: Callable[..., Prediction],
    found: list[tuple[Any, str]],
    kinds: list[tuple[bool, bool]],
    look: int,
    policy: Any,
    kept: int,
) -> None:
    """Deploy if and only if every criterion passes within the declared looks, on intervals; else it says why not."""
    outcomes = [
        Outcome(f"c{at}", "quality", kind, 0, 0, 0, 0, unit, "", "why") for at, (kind, unit) in enumerate(found)
    ]
    predictions = [prediction(*kind, id=str(at)) for at, kind in enumerate(kinds)]
    trained = TRAINED | {"kept_step": kept}
    config = asked(change, [better()], policy)
    verdict = reach_verdict(config, outcomes, evidence(predictions), Gate(policy, 0.95, 1), look, trained)
    harmed = found_harm(evidence(predictions), Gate(policy, 0.95, 1)) is not None
    proven = all(kind == "pass" for kind, _ in found) and look <= config.looks and not harmed
    assert (verdict.name == "abort") or not harmed
    assert (verdict.name == "deploy") == (proven and policy == "interval")
    assert (verdict.name == "deploy-unproven") == (proven and policy == "point")
    assert bool(verdict.reasons) != proven
    for at, (kind, _) in enumerate(found):
        assert (f"{kind}: c{at} (why)" in verdict.reasons) == (kind != "pass")


# ---- Figures and the page


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "n/a"),
        (math.inf, "s", "n/a"),
        (math.nan, "bytes", "n/a"),
        (1_234_567_890, "bytes", "1.23 GB"),
        (0.5, "s", "0.500 s"),
        (0.98765, "", "0.988"),
    ],
)
def test_figures_for_people(value: float | None, unit: str, text: str) -> None:
    """What was not measured has no figure; a zero there would look like a good one."""
    assert amount(value, unit) == text


def test_lost_answers_are_shown_first(prediction: Callable[..., Prediction]) -> None:
    """What the base could and the candidate can't is harm; then the least probable references; right ones never."""
    rows = [
        prediction(True, False, id="right"),
        prediction(False, False, id="sure", nats=1.0),
        prediction(False, False, id="unsure", nats=9.0),
        prediction(False, True, id="lost", nats=0.5),
    ]
    assert [item.id for item in worst_examples(rows, 12)] == ["lost", "unsure", "sure"]
    assert [item.id for item in worst_examples(rows, 1)] == ["lost"]


CURVES = "step\tepoch\tloss\tlearning_rate\tgradient_norm\n10\t0.5\t4.5\t0.001\t3.5\n20\t1\t2.5\t0.0005\t1.5\n"
VALIDATION_CURVE = "step\tepoch\tvalidation_loss\n20\t1\t2.75\n"


@pytest.fixture
def curves_folder(tmp_path: Path) -> Path:
    """The curves of two logged steps and one evaluation."""
    (tmp_path / "curves.tsv").write_text(CURVES, encoding="utf-8")
    (tmp_path / "validation_curve.tsv").write_text(VALIDATION_CURVE, encoding="utf-8")
    return tmp_path


def test_curves_are_read_as_points(curves_folder: Path) -> None:
    """Training and validation are logged at different steps; a table that is none is an error, not an empty plot."""
    curves = read_curves(curves_folder)
    assert curves["loss"] == [(10, 4.5), (20, 2.5)]
    assert curves["validation_loss"] == [(20, 2.75)]
    path = curves_folder / "curves.tsv"
    path.write_text(CURVES.splitlines()[0] + "\n", encoding="utf-8")
    assert list(read_curves(curves_folder)) == ["epoch", "validation_loss"]
    path.write_text(CURVES.replace("0.5\t4.5", "0.5\tx"), encoding="utf-8")
    with pytest.raises(DataError, match=r"is no table of curves"):
        read_curves(curves_folder)


def test_a_plot_is_the_same_bytes_every_time(curves_folder: Path) -> None:
    """matplotlib puts the date and random ids into an SVG unless it is told not to; curves may be empty."""
    curves = read_curves(curves_folder)
    first = draw(curves, ("loss", "validation_loss"), "Loss")
    assert first.startswith("<svg") and first == draw(curves, ("loss", "validation_loss"), "Loss")
    assert draw({}, ("loss",), "Loss").startswith("<svg")


class Page(HTMLParser):
    """A page's tags with their attributes, and its text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


# ---- The stage


class Run:
    """The files that decide reads, in a folder of their own: 12 test examples, 10 of them gained by the candidate."""

    def __init__(self, root: Path, change: Callable[..., Config], example: Callable[..., Example]) -> None:
        self.paths = Paths(root)
        criteria = [better(), latency(1.0), memory("2 GB")]
        self.config = change(decide=asked(change, criteria).model_dump(mode="json"), recipe="tiny", seed=42)
        self.train = [example(f"train {at}", line=at) for at in range(3)]
        self.test = [example(f"test {at}", line=at) for at in range(12)]

    def predict(self, prediction: Callable[..., Prediction], **fields: Any) -> list[Prediction]:
        """One prediction a test example; the last two are wrong on both sides."""
        return [
            prediction(at < 10, False, id=one.id, **{"prompt": one.prompt[-1].content, **fields})
            for at, one in enumerate(self.test)
        ]

    def write(self, predictions: list[Prediction]) -> None:
        """Everything that the stages before decide leave behind, all of one run."""
        paths = self.paths
        for name, examples in (("train", self.train), ("validation", []), ("test", self.test)):
            write_lines(paths.prepared / f"{name}.jsonl", to_json_lines(examples))
        with publish_directory(paths.adapter) as folder:
            (folder / "adapter_model.safetensors").write_bytes(bytes(100))
            test = sha256_file(paths.prepared / "test.jsonl")
            write_manifest(folder, {"adapter_sha256": "a" * 64, "prepared_sha256": {"test": test}})
        write_lines(paths.predictions, to_json_lines(predictions))
        write_lines(paths.latency, to_json_lines(timings(0.5)))
        write_lines(paths.reports / "curves.tsv", [CURVES])
        write_lines(paths.reports / "validation_curve.tsv", [VALIDATION_CURVE])
        for name, content in self.reports(predictions).items():
            write_json(paths.reports / f"{name}.json", content)

    def reports(self, predictions: list[Prediction]) -> dict[str, dict[str, Any]]:
        """The reports of the stages before, as far as decide reads them."""
        paths = self.paths
        test = sha256_file(paths.prepared / "test.jsonl")
        side = {"mean_seconds": 0.5, "p50_seconds": 0.5, "p95_seconds": 0.6, "mean_tokens": 3, "tokens_per_second": 6}
        return {
            "prepare": {
                "prepared_sha256": {"test": test},
                "sources": {"rows": {"read": 16, "dropped": {"exact_duplicate": 1}, "kept": 15}},
                "splits": {name: {"examples": size} for name, size in (("train", 3), ("validation", 0), ("test", 12))},
            },
            "validation": {
                "errors": 0,
                "findings": [],
                "tokens": {"train": {"supervised_tokens": 9, "tokens": 90, "lost_supervised_tokens": 0}},
            },
            "train": {
                "adapter_sha256": "a" * 64,
                "fingerprint": "f" * 64,
                "tier": "bitwise",
                "attention": "sdpa",
                "micro_batch": 16,
                "accumulation": 1,
                "first_validation_loss": 2.0,
                "warnings": ["the training <loss> jumped"],
                "parameters": {"trainable": 10, "total": 100},
                **TRAINED,
            },
            "train_cost": {"wall_seconds": 12.5},
            "evaluation": {
                "adapter_sha256": "a" * 64,
                "test_sha256": test,
                "predictions_sha256": sha256_file(paths.predictions),
                "base": {"name": "models/tiny-base", "revision": "sha256:abc"},
                "generation": {"max_new_tokens": 16},
                "groups": {name: describe_group(members) for name, members in groups_of(predictions).items()},
            },
            "cost": {
                "adapter_sha256": "a" * 64,
                "latency_sha256": sha256_file(paths.latency),
                "latency": {"prompts": 30, "baseline": side, "candidate": side},
                "memory": {"processes": 3, "largest_bytes": max(PEAKS), "bytes": list(PEAKS)},
                "machine": {"processor": "a processor", "cores": 2, "device": "cpu"},
                "versions": {"python": "3.12.0"},
            },
        }

    def decide(self) -> dict[str, Any]:
        """The decision."""
        stage.run(self.config, self.paths)
        return read_json(self.paths.reports / "decision.json")

    def refusal(self) -> str:
        """The text of the DataError, with ROOT for the folder; nothing may have been written or counted."""
        with pytest.raises(DataError) as caught:
            stage.run(self.config, self.paths)
        written = [self.paths.reports / "decision.json", self.paths.reports / "report.html", self.paths.model_card]
        assert not [path for path in [*written, self.paths.looks] if path.exists()]
        return str(caught.value).replace(str(self.paths.root), "ROOT")

    def edit(self, report: str, *keys: str, value: Any) -> None:
        """Change one value of a report."""
        path = self.paths.reports / f"{report}.json"
        content = read_json(path)
        at = content
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        write_json(path, content)


@pytest.fixture
def sound(
    tmp_path: Path,
    change: Callable[..., Config],
    example: Callable[..., Example],
    prediction: Callable[..., Prediction],
) -> Run:
    """A run whose evidence is sound and good."""
    run = Run(tmp_path, change, example)
    run.write(run.predict(prediction))
    return run


def test_sound_evidence_is_decided_and_told(sound: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The counterpart of all refusals below; the page, the card and the gate say the same word, twice alike."""
    decision = sound.decide()
    assert (decision["verdict"], decision["passed"], decision["look"]) == ("deploy", 3, 1)
    assert [item["status"] for item in decision["criteria"]] == ["pass"] * 3
    assert (decision["adapter_sha256"], decision["policy"]) == ("a" * 64, "interval")
    assert read_json(sound.paths.looks) == {decision["test_sha256"]: ["a" * 64]}

    html = (sound.paths.reports / "report.html").read_text(encoding="utf-8")
    card = sound.paths.model_card.read_text(encoding="utf-8")
    assert "<h1>deploy</h1>" in html
    assert "**Verdict: deploy.** All 3 criteria pass: deploy this adapter." in card
    header = YAML(typ="safe", pure=True).load(card.split("---\n")[1])
    assert header["base_model"] == "models/tiny-base"

    assert sound.decide() == decision
    assert (sound.paths.reports / "report.html").read_text(encoding="utf-8") == html
    assert sound.paths.model_card.read_text(encoding="utf-8") == card
    capsys.readouterr()
    assert show_decision(sound.paths) == 0
    assert capsys.readouterr().out.startswith("deploy: All 3 criteria pass: deploy this adapter.\n")


NAMESPACES = (
    "http://www.w3.org/2000/svg",
    "http://www.w3.org/1999/xlink",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "http://purl.org/dc/",
    "http://creativecommons.org/ns#",
)


def test_the_page_is_safe_and_needs_no_network(
    tmp_path: Path,
    change: Callable[..., Config],
    example: Callable[..., Example],
    prediction: Callable[..., Prediction],
) -> None:
    """Prompts and answers are strangers' text: shown to the letter, run by no browser, whatever bytes are in them."""
    run = Run(tmp_path, change, example)
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"
    control = "nul\x00 escape\x1b[31m bell\x07 nel\x85 line\u2028 right\u202e lone\ufffe"
    predictions = run.predict(prediction, prompt=evil + " prompt", reference="<b>reference</b>", agent="<i>agent</i>")
    strange = [
        prediction(
            evil, control, id=one.id, prompt=evil + " prompt", reference="<b>reference</b>", agent="<i>agent</i>"
        )
        for one in predictions[-2:]
    ]
    run.write([*predictions[:-2], *strange])
    assert run.decide()["verdict"] == "deploy"

    html = (tmp_path / "reports/report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "img", "i", "link", "iframe", "base", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for text in (evil, evil + " prompt", "<b>reference</b>", "<i>agent</i>"):
        assert text in page.text
    assert "nel\ufffd line\ufffd right\ufffd" in page.text
    assert html.rstrip().endswith("</html>")
    assert "Provenance" in page.text.split("nel\ufffd", 1)[1]

    found = set(re.findall(r"https?://[^\s\"'<>)]+", html))
    assert not [url for url in found if not url.startswith(NAMESPACES)]
    loaded = [
        value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "poster", "data")
    ]
    assert all(value.startswith("#") for value in loaded)
    assert not re.search(r"@import|url\((?!['\"]?#)", html)


def test_a_changed_test_set_is_refused(sound: Run) -> None:
    """A hard example taken out after the evaluation would raise every score."""
    write_lines(sound.paths.prepared / "test.jsonl", to_json_lines(sound.test[1:]))
    assert (
        sound.refusal() == "ROOT/data/prepared/test.jsonl: is not the test set that was evaluated; run evaluate again"
    )


@pytest.mark.parametrize("keys", [("evaluation", "test_sha256"), ("prepare", "prepared_sha256", "test")])
def test_reports_of_another_test_set_are_refused(sound: Run, keys: tuple[str, ...]) -> None:
    """The file is right and a report speaks of another one: prepare or evaluate ran on something else."""
    sound.edit(*keys, value="0" * 64)
    assert "is not the test set that was evaluated" in sound.refusal()


def test_changed_predictions_are_refused(sound: Run, prediction: Callable[..., Prediction]) -> None:
    """One answer made right by hand."""
    predictions = sound.predict(prediction)
    write_lines(
        sound.paths.predictions, to_json_lines([*predictions[:-1], prediction(True, False, id=predictions[-1].id)])
    )
    assert sound.refusal() == "ROOT/out/predictions.jsonl: is not the file that evaluate wrote; run evaluate again"


def test_answers_to_another_test_set_are_refused(sound: Run, prediction: Callable[..., Prediction]) -> None:
    """The hash is right, but an example was never answered: a score of the rest is a score of a choice."""
    sound.write(sound.predict(prediction)[:-1])
    assert sound.refusal() == "ROOT/out/predictions.jsonl: holds the answers to another test set; run evaluate again"


@pytest.mark.parametrize("report", ["train", "evaluation"])
def test_another_adapter_is_refused(sound: Run, report: str) -> None:
    """The verdict is on the adapter that ships: trained again after the evaluation, it is another one."""
    sound.edit(report, "adapter_sha256", value="b" * 64)
    assert sound.refusal() == "ROOT/out/adapter: is not the adapter that was evaluated; run evaluate again"


def test_an_adapter_published_anew_is_refused(sound: Run) -> None:
    """The folder is whole and its manifest is right: of another adapter than the one in the reports."""
    with publish_directory(sound.paths.adapter) as folder:
        (folder / "adapter_model.safetensors").write_bytes(bytes(200))
        write_manifest(folder, {"adapter_sha256": "b" * 64})
    assert sound.refusal() == "ROOT/out/adapter: is not the adapter that was evaluated; run evaluate again"


def test_an_adapter_that_was_touched_is_refused(sound: Run) -> None:
    """Its manifest holds the hash of every file."""
    path = sound.paths.adapter / "adapter_model.safetensors"
    path.write_bytes(bytes(99) + b"\x01")
    assert sound.refusal().startswith("ROOT/out/adapter/adapter_model.safetensors: is not the file that was published")


def test_a_leaked_prompt_is_refused(
    sound: Run, example: Callable[..., Example], prediction: Callable[..., Prediction]
) -> None:
    """In white space and answer it may differ: it was trained on all the same."""
    sound.train.append(example(" test  3\n", "another answer"))
    sound.write(sound.predict(prediction))
    leak = sound.test[3].id
    assert sound.refusal() == f"data/prepared: 1 test prompts stand in train too ({leak}…); run prepare again"


def test_errors_of_validate_are_refused(sound: Run) -> None:
    """Among them the budget of supervised tokens that truncation may cost."""
    sound.edit("validation", "errors", value=1)
    text = "reports/validation.json: holds errors, among them budgets for lost tokens; run validate again"
    assert sound.refusal() == text


@pytest.mark.parametrize(
    "name",
    [
        "reports/prepare.json",
        "reports/validation.json",
        "reports/train.json",
        "reports/train_cost.json",
        "reports/evaluation.json",
        "reports/cost.json",
        "reports/curves.tsv",
        "reports/validation_curve.tsv",
        "out/predictions.jsonl",
        "out/latency.jsonl",
        "out/adapter/manifest.json",
        "data/prepared/train.jsonl",
        "data/prepared/test.jsonl",
    ],
)
def test_missing_evidence_is_told_and_not_judged(sound: Run, name: str) -> None:
    """Nothing is decided on half the evidence, and the missing file is named without a traceback."""
    (sound.paths.root / name).unlink()
    assert sound.refusal().startswith(f"ROOT/{name}: ")


def test_a_second_candidate_is_a_second_look(sound: Run) -> None:
    """One look was declared: the next adapter on this test set needs a fresh one, however good it is."""
    write_json(sound.paths.looks, {sha256_file(sound.paths.prepared / "test.jsonl"): ["b" * 64]})
    decision = sound.decide()
    assert (decision["verdict"], decision["look"], decision["passed"]) == ("iterate", 2, 3)
    assert decision["suggestions"][0]["code"] == "fresh-test-set"


def test_an_adapter_of_other_splits_is_refused(sound: Run) -> None:
    """Prepared anew under another seed, the test set holds what this adapter was trained on."""
    with publish_directory(sound.paths.adapter) as folder:
        write_manifest(folder, {"adapter_sha256": "a" * 64, "prepared_sha256": {"test": "another"}})
    assert sound.refusal() == "ROOT/out/adapter: was trained on other splits than these; run train again (dvc repro)"


def test_harm_is_never_deployed(pairs: Pairs, verdict_of: Callable[..., Verdict]) -> None:
    """Sixty answers lost and none gained is harm, though every criterion that was asked for passes."""
    found = verdict_of([at_least(0.1)], pairs(lost=60, both=140))
    assert found.name == "abort"
    assert found.reasons[0].startswith("worse than the baseline: 60 answers lost, 0 gained")


def test_the_card_is_not_broken_by_what_it_tells() -> None:
    """A name from the data is text in a table: no column, no line, no tag and no control character of its own."""
    assert plain_markdown("a|b\n# <script>\x1b") == "a\\|b # &lt;script>\ufffd"
    assert plain_markdown(3) == 3


# ---- The exit code


@pytest.mark.parametrize(("verdict", "code"), [("deploy", 0), ("iterate", 10), ("deploy-unproven", 10), ("abort", 20)])
def test_the_gate_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: str, code: int) -> None:
    """CI ships on 0 alone, and what is unproven is no 0."""
    content = {"verdict": verdict, "sentence": "A sentence.", "reasons": ["fail: a [bold] reason"]}
    write_json(tmp_path / "reports/decision.json", content)
    assert show_decision(Paths(tmp_path)) == code
    assert capsys.readouterr().out.splitlines()[:2] == [f"{verdict}: A sentence.", "  fail: a [bold] reason"]


def test_without_a_decision_there_is_no_gate(tmp_path: Path) -> None:
    """An exit code of 0 for nothing decided would ship anything."""
    with pytest.raises(DataError, match=r"decision.json: no such file; run the stage that writes it"):
        show_decision(Paths(tmp_path))
