"""One criterion against the evidence: what passes, what fails, what is not known, at the edges and beyond them."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config_decide import Criterion, NotWorseThanBaseline
from finetune.decide.criteria import Evidence, judge, judge_seeds
from finetune.decide.outcomes import Gate, Outcome, Status
from finetune.records import Prediction, Timing
from finetune.stats import clopper_pearson, tango
from tests.gates import (
    GATE,
    METRICS,
    PEAKS,
    POINT,
    at_least,
    at_most,
    better,
    classes,
    evidence,
    latency,
    memory,
    not_worse,
    outcome,
    pairs,
    predicted,
    quantile,
    status,
    timings,
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
def test_98_percent_at_95_percent_confidence(right: int, n: int, expected: Status) -> None:
    """31 of 31 proves nothing about 98%; 149 with no failure do, or 236 with one; three failures of 31 refute it."""
    assert status(at_least(0.98), pairs(gained=right, neither=n - right)) == expected


def test_a_bound_on_the_threshold_passes_and_one_below_does_not() -> None:
    """The edge itself: `at least` includes it, and a fail needs the whole interval below."""
    lower = clopper_pearson(30, 31, 0.95, "lower").lower
    upper = clopper_pearson(30, 31, 0.95, "upper").upper
    predictions = pairs(both=30, neither=1)
    assert status(at_least(lower), predictions) == "pass"
    assert status(at_least(math.nextafter(lower, 1)), predictions) == "inconclusive"
    assert status(at_least(upper), predictions) == "inconclusive"
    assert status(at_least(math.nextafter(upper, 1)), predictions) == "fail"


def test_an_outcome_shows_its_interval_and_its_counts() -> None:
    """What a person checks the status by: both bounds are one-sided at the stated confidence."""
    (found,) = judge(at_least(0.98), evidence(pairs(both=30, neither=1)), GATE)
    assert found.estimate == pytest.approx(30 / 31)
    assert (found.lower, found.upper) == pytest.approx((0.8559, 0.9983), abs=5e-5)
    assert (found.criterion, found.target) == ("exact_match at least 0.98", 0.98)
    assert (found.method, found.reason) == ("Clopper-Pearson", "30 of 31 right")


@pytest.mark.parametrize(("right", "expected"), [(3, "pass"), (4, "pass"), (2, "fail")])
def test_points_compare_the_estimate_alone(right: int, expected: Status) -> None:
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
def test_better_than_the_baseline(gained: int, lost: int, expected: Status) -> None:
    """One-sided exact McNemar by hand: 5 to 0 is 1/32, 4 to 0 is 1/16, 9 to 2 is 67/2048, 8 to 2 is 56/1024."""
    assert status(better(), pairs(both=40, gained=gained, lost=lost, neither=3)) == expected


def test_a_p_value_on_the_edge_does_not_pass() -> None:
    """4 to 0 is p = 0.0625; asked for less than exactly that, it is not less."""
    on_the_edge = Gate("interval", 0.9375, seed=1)
    assert status(better(), pairs(gained=4), on_the_edge) == "inconclusive"
    assert status(better(), pairs(gained=4), Gate("interval", 0.937, seed=1)) == "pass"


@pytest.mark.parametrize(
    ("gained", "lost", "expected"), [(1, 0, "pass"), (2, 2, "fail"), (0, 0, "fail"), (0, 1, "fail")]
)
def test_better_under_points_needs_one_more(gained: int, lost: int, expected: Status) -> None:
    """A tie is not better, even where nothing is proven."""
    assert status(better(), pairs(both=5, gained=gained, lost=lost), POINT) == expected


@pytest.mark.parametrize(
    ("both", "lost", "expected"), [(52, 0, "pass"), (51, 0, "inconclusive"), (90, 1, "pass"), (80, 20, "fail")]
)
def test_not_worse_than_the_baseline(both: int, lost: int, expected: Status) -> None:
    """Equal answers on 51 examples don't show that no more than 5% was lost; on 52 they do."""
    assert status(not_worse(0.05), pairs(both=both, lost=lost)) == expected


def test_a_bound_on_the_margin_is_worse() -> None:
    """The edge itself: a candidate may be worse by less than the margin, not by the margin."""
    margin = -tango(0, 0, 52, 0.95, "lower").lower
    assert status(not_worse(margin), pairs(both=52)) == "inconclusive"
    assert status(not_worse(math.nextafter(margin, 1)), pairs(both=52)) == "pass"


@pytest.mark.parametrize(("lost", "expected"), [(4, "pass"), (5, "fail"), (6, "fail")])
def test_the_margin_itself_is_worse(lost: int, expected: Status) -> None:
    """Worse by exactly the margin is worse by the margin: 5 of 100 against 0.05, compared as points."""
    assert status(not_worse(0.05), pairs(both=100 - lost, lost=lost), POINT) == expected


@pytest.mark.parametrize("criterion", [at_least(0.98), better(), not_worse(0.05)])
def test_a_perfect_single_example_proves_nothing(criterion: Criterion) -> None:
    """n = 1, right against wrong: the best result there is, and no evidence."""
    assert status(criterion, pairs(gained=1)) == "inconclusive"


# ---- Macro-F1


@pytest.mark.parametrize(("threshold", "expected"), [(0.6, "pass"), (0.8, "inconclusive"), (0.95, "fail")])
def test_macro_f1_at_least(threshold: float, expected: Status) -> None:
    """About 0.8 on 60 answers: sure of more than 0.6, of less than 0.95, and of nothing about 0.8."""
    assert status(at_least(threshold, "classes.macro_f1"), classes(60, 12, 30)) == expected


@pytest.mark.parametrize(
    ("candidate", "baseline", "expected"), [(6, 30, "pass"), (30, 6, "fail"), (20, 20, "inconclusive")]
)
def test_macro_f1_better_than_the_baseline(candidate: int, baseline: int, expected: Status) -> None:
    """Paired by example: both sides are drawn together."""
    assert status(better("classes.macro_f1"), classes(60, candidate, baseline)) == expected


@pytest.mark.parametrize(
    ("candidate", "baseline", "expected"), [(6, 30, "pass"), (30, 6, "fail"), (12, 10, "inconclusive")]
)
def test_macro_f1_not_worse_than_the_baseline(candidate: int, baseline: int, expected: Status) -> None:
    """The margin is on the difference of the two metrics."""
    assert status(not_worse(0.05, "classes.macro_f1"), classes(60, candidate, baseline)) == expected


@pytest.mark.parametrize("n", [1, 5, 60])
@pytest.mark.parametrize(
    "criterion", [at_least(0.5, "classes.macro_f1"), better("classes.macro_f1"), not_worse(0.01, "classes.macro_f1")]
)
def test_a_bootstrap_without_variance_never_passes(n: int, criterion: Criterion) -> None:
    """All right, or all alike: a percentile bootstrap would give an interval of no width and pass."""
    predictions = pairs(both=n) if isinstance(criterion, NotWorseThanBaseline) else pairs(gained=n)
    (found,) = judge(criterion, evidence(predictions), GATE)
    assert found.status == "inconclusive"
    assert found.method == "none"
    assert "a bootstrap needs" in found.reason


# ---- Groups


def test_a_group_is_judged_on_its_own_examples() -> None:
    """An agent that fails must not be carried by another that is easy."""
    predictions = pairs(gained=149) + pairs(neither=31, agent="hard")
    assert status(at_least(0.98, group="namer"), predictions) == "pass"
    assert status(at_least(0.98, group="hard"), predictions) == "fail"
    assert status(better(group="hard"), predictions) == "inconclusive"
    assert status(at_least(0.98), predictions) == "fail"


@pytest.mark.parametrize("metric", ["exact_match", "classes.macro_f1", "overlap", "loss"])
@pytest.mark.parametrize("gate", [GATE, POINT])
def test_a_group_without_examples_is_unmeasured(metric: str, gate: Gate) -> None:
    """No example is no failure, and that must never be a pass; the record is JSON all the same."""
    (found,) = judge(at_least(0.5, metric, "nobody"), evidence(pairs(gained=149)), gate)
    assert (found.status, found.reason) == ("unmeasured", "no test example belongs to nobody")
    json.dumps(found.to_json(), allow_nan=False)


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
    broken = {"baseline_seconds": 1.0, "baseline_first": None, "baseline_tokens": 3}
    broken |= {"candidate_seconds": 0.5, "candidate_first": None, "candidate_tokens": 3}
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


# ---- Metrics that are means, and figures of the whole set


def scored(values: Sequence[tuple[float, float]], **fields: Any) -> list[Prediction]:
    """Examples whose overlap is, of candidate and baseline, as told."""
    return [
        predicted("a", "b", id=f"{at}", of_candidate={"overlap": mine}, of_baseline={"overlap": theirs}, **fields)
        for at, (mine, theirs) in enumerate(values)
    ]


SPREAD = [(0.6 + 0.01 * (at % 21), 0.5 + 0.01 * (at % 13)) for at in range(60)]  # means 0.70 and 0.56


@pytest.mark.parametrize(("threshold", "expected"), [(0.65, "pass"), (0.70, "inconclusive"), (0.75, "fail")])
def test_a_mean_score_at_least(threshold: float, expected: Status) -> None:
    """The interval of a mean, about 0.70 give or take 0.013."""
    assert status(at_least(threshold, "overlap"), scored(SPREAD)) == expected


def test_a_mean_score_against_the_baseline() -> None:
    """Paired by example; a tie is not better, and a smaller loss than the margin is not worse."""
    worse = [(theirs, mine) for mine, theirs in SPREAD]
    assert status(better("overlap"), scored(SPREAD)) == "pass"
    assert status(better("overlap"), scored(worse)) == "fail"
    assert status(better("overlap"), scored([(0.5, 0.5)] * 60)) == "inconclusive"
    assert status(not_worse(0.3, "overlap"), scored(worse)) == "pass"
    assert status(not_worse(0.05, "overlap"), scored(worse)) == "fail"
    assert "paired permutation p = " in outcome(better("overlap"), scored(SPREAD)).reason


def by_loss(candidate: float, baseline: float) -> list[Prediction]:
    """Forty references that the sides find so likely, in nats of 3 tokens, more or less."""
    return [
        predicted(
            "a",
            "a",
            id=f"{at}",
            of_candidate={"nats": candidate + 0.05 * (at % 5)},
            of_baseline={"nats": baseline + 0.05 * (at % 7)},
        )
        for at in range(40)
    ]


def test_less_loss_is_better() -> None:
    """The direction of a metric is its own: 0.7 nats a token against 1.05."""
    assert status(at_most(0.8), by_loss(2.0, 3.0)) == "pass"
    assert status(at_most(0.6), by_loss(2.0, 3.0)) == "fail"
    assert status(at_most(2.3, "perplexity"), by_loss(2.0, 3.0)) == "pass"
    assert status(better("loss"), by_loss(2.0, 3.0)) == "pass"
    assert status(better("loss"), by_loss(3.0, 2.0)) == "fail"
    assert status(not_worse(0.5, "loss"), by_loss(3.0, 2.0)) == "pass"
    assert outcome(at_most(0.8), by_loss(2.0, 3.0)).higher_is_better is False
    assert outcome(better("loss"), by_loss(2.0, 3.0)).estimate == pytest.approx(0.35, abs=0.02)  # a gain


def test_what_a_side_was_not_asked_is_unmeasured() -> None:
    """A recorded run or a server tells no likelihood: no loss of it is known, and none may pass."""
    predictions = by_loss(2.0, 3.0)
    predictions[7] = predicted("a", "a", id="7", of_baseline={"nats": None})
    assert status(at_most(0.9), predictions) == "pass"
    found = outcome(better("loss"), predictions)
    assert (found.status, found.reason) == (
        "unmeasured",
        "the baseline was not asked how likely it finds the references",
    )


@pytest.mark.parametrize("metric", ["exact_match", "overlap"])
@pytest.mark.parametrize("gate", [GATE, POINT])
def test_a_score_that_is_missing_is_never_a_pass(metric: str, gate: Gate) -> None:
    """One answer that the scorer could not score: the mean of the others would be another metric."""
    predictions = pairs(gained=200)
    predictions[3].candidate.scores[metric] = None
    for criterion in (at_least(0.5, metric), better(metric), not_worse(0.1, metric)):
        found = outcome(criterion, predictions, gate)
        assert found.status == "unmeasured"
        assert found.reason == f"{metric} has no score of the candidate's answer to namer-3"


def test_a_metric_is_judged_on_what_its_scorer_scores() -> None:
    """An agent whose answers a scorer leaves out counts neither way; a group of them alone is unmeasured."""
    predictions = pairs(gained=149) + pairs(neither=31, agent="prose")
    for item in predictions[149:]:
        del item.candidate.scores["exact_match"]
    assert status(at_least(0.98), predictions) == "pass"
    found = outcome(at_least(0.98, group="prose"), predictions)
    assert (found.status, found.reason) == ("unmeasured", "exact_match scores no test example of prose")


# ---- Clusters


def in_clusters(predictions: list[Prediction], size: int) -> list[Prediction]:
    """The same examples, so many of each cluster."""
    return [
        Prediction(**{name: getattr(item, name) for name in item.__slots__} | {"cluster": f"c{at // size}"})
        for at, item in enumerate(predictions)
    ]


def test_repeats_of_one_prompt_are_no_new_evidence() -> None:
    """149 right answers prove 98%; the same 149 from 30 conversations, five of each, do not."""
    assert status(at_least(0.98), pairs(gained=149)) == "pass"
    found = outcome(at_least(0.98), in_clusters(pairs(gained=149), 5))
    assert found.status == "inconclusive"
    assert found.reason == "149 of 149 right in 30 clusters"
    assert found.lower is not None and found.lower < clopper_pearson(149, 149, 0.95, "lower").lower


@pytest.mark.parametrize("criterion", [better(), better("overlap"), not_worse(0.05), not_worse(0.05, "overlap")])
def test_a_comparison_in_clusters_needs_as_many_clusters(criterion: Criterion) -> None:
    """Six gained answers are p = 0.016; six that are all of one conversation are one."""
    alone = pairs(both=120, gained=6)
    assert status(criterion, alone) == "pass"
    together = [*in_clusters(alone[:120], 60), *in_clusters(alone[120:], 6)]
    assert status(criterion, together) == "inconclusive"


def test_a_figure_of_the_whole_set_draws_clusters_whole() -> None:
    """The interval of F1 is wider where answers come in conversations."""
    predictions = classes(60, 12, 30)
    single = outcome(at_least(0.6, "classes.macro_f1"), predictions)
    grouped = outcome(at_least(0.6, "classes.macro_f1"), in_clusters(sorted(predictions, key=right_first), 2))
    assert single.lower is not None and grouped.lower is not None
    assert grouped.lower < single.lower
    assert outcome(at_least(0.6, "classes.macro_f1"), in_clusters(predictions, 6)).status == "inconclusive"


def right_first(item: Prediction) -> float:
    """Orders right answers before wrong ones, so that clusters of neighbours are alike."""
    return -(item.candidate.scores["exact_match"] or 0)


# ---- Quantiles, recorded baselines, seeds


@pytest.mark.parametrize(("count", "expected"), [(58, "inconclusive"), (59, "pass")])
def test_a_quantile_needs_enough_prompts(count: int, expected: Status) -> None:
    """Below 59 no order statistic bounds the 0.95 quantile at 95% confidence."""
    found = outcome(quantile(1.0), latency=timings(0.5, count=count))
    assert found.status == expected
    assert ("59 are needed to bound this quantile" in found.reason) == (count < 59)


def test_a_quantile_fails_where_its_lower_bound_is_beyond() -> None:
    """All answers of about 0.5 s against 0.4; and against a limit among them, nothing is known."""
    assert status(quantile(0.4), latency=timings(0.5, count=80)) == "fail"
    assert status(quantile(0.545), latency=timings(0.5, count=80)) == "inconclusive"
    assert status(quantile(0.56), gate=POINT, latency=timings(0.5, count=10)) == "pass"


def test_a_recorded_baseline_is_named_as_such() -> None:
    """Times of another day and machine are no pairs in the strict sense: the reader is told."""
    found = judge(latency(1.0, 0.1), evidence(latency=timings(0.5), recorded="last year's run"), GATE)
    assert all("recorded as last year's run" in item.reason for item in found)
    assert not any("recorded" in item.reason for item in judge(latency(1.0, 0.1), evidence(latency=timings(0.5)), GATE))


SAME = {"test_sha256": "t", "makings_sha256": "m", "policy": "interval", "confidence": 0.95}


def seed_run(status: str = "pass", criterion: str = "c0", **other: Any) -> dict[str, Any]:
    """What `make seeds` records of one seed."""
    return {**SAME, **other, "criteria": {criterion: {"status": status, "estimate": 0.5}}}


@pytest.mark.parametrize(
    ("others", "mine", "expected"),
    [
        ([seed_run(), seed_run()], "pass", "pass"),
        ([seed_run()], "pass", "unmeasured"),
        ([seed_run(), seed_run("inconclusive")], "pass", "inconclusive"),
        ([seed_run(), seed_run("fail")], "pass", "fail"),
        ([seed_run(), seed_run()], "fail", "fail"),
        ([seed_run(), seed_run(test_sha256="other")], "pass", "unmeasured"),
        ([seed_run(), seed_run(makings_sha256="of older data")], "pass", "unmeasured"),
        ([seed_run(), seed_run(policy="point")], "pass", "unmeasured"),
        ([seed_run(), seed_run(confidence=0.6)], "pass", "unmeasured"),
        ([seed_run(), seed_run(criterion="another")], "pass", "unmeasured"),
        ([seed_run(), seed_run(), seed_run("fail")], "pass", "fail"),
    ],
)
def test_the_worst_seed_decides(others: list[dict[str, Any]], mine: Any, expected: Status) -> None:
    """Three seeds must pass, this one among them, judged alike on the same evidence; none is chosen."""
    own = Outcome("c0", "quality", mine, 0, 0, 0, 0, "", "", "why")
    older = {"42": seed_run("fail")}  # of this seed
    recorded = {str(at + 9): run for at, run in enumerate(others)} | older
    found = judge_seeds(3, 42, recorded, SAME, [own])
    assert found.status == expected
    if expected == "pass":
        assert found.reason == "every criterion passes under each of the seeds 9, 10, 42"
    json.dumps(found.to_json(), allow_nan=False)


def test_a_prompt_without_an_answer_leaves_the_latency_unmeasured() -> None:
    """It was the slowest of all: the mean of the others would be a better one than any user sees."""
    cost = Evidence((), timings(0.5), PEAKS, METRICS, unanswered=1)
    for found in [*judge(latency(9.0, 0.1), cost, POINT), *judge(quantile(9.0), cost, POINT)]:
        assert (found.status, found.reason) == (
            "unmeasured",
            "1 of the timed prompts got no answer of the candidate",
        )


def test_a_baseline_without_times_leaves_the_improvement_unmeasured() -> None:
    """The candidate's own limit can be judged all the same."""
    rows = [Timing(row.id, None, None, None, row.candidate_seconds, None, 3) for row in timings(0.5)]
    found = judge(latency(1.0, 0.1), evidence(latency=rows, recorded="old"), GATE)
    assert [item.status for item in found] == ["pass", "unmeasured"]
    assert found[1].criterion == "mean latency 10% under the baseline"
    assert found[1].reason == "the baseline's times are not known"


@settings(max_examples=40)
@given(
    right=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    peaks=st.lists(st.integers(0, 3), max_size=4),
    seconds=st.lists(st.floats(-1, 2), max_size=4),
)
def test_every_outcome_is_json(right: list[tuple[bool, bool]], peaks: list[int], seconds: list[float]) -> None:
    """Infinite and missing bounds are null: decision.json must be read by anything that reads JSON."""
    words = {True: "ValueError", False: "wrong"}
    predictions = [predicted(words[mine], words[theirs], id=str(at)) for at, (mine, theirs) in enumerate(right)]
    rows = [Timing(str(at), 1.0, None, 1, value, None, 1) for at, value in enumerate(seconds)]
    criteria = [rule(name) for name in METRICS for rule in (better, lambda name: not_worse(0.1, name))]
    criteria += [at_least(0.5), at_least(0.5, "classes.macro_f1"), at_least(0.5, "overlap"), at_most(1.0)]
    for criterion in [*criteria, latency(1, 0.1), quantile(1), memory("2 GB")]:
        for found in judge(criterion, evidence(predictions, rows, peaks), GATE):
            json.dumps(found.to_json(), allow_nan=False)
            assert found.status != "pass" or criterion in (memory("2 GB"), at_most(1.0)) or len(right) >= 5
