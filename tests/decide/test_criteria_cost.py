"""Criteria of latency and memory, recorded baselines, and the worst of several seeds."""

import json
from typing import Any

import pytest

from finetune.decide.criteria import Evidence, judge, judge_seeds
from finetune.decide.outcomes import Outcome
from finetune.records.examples import Timing
from finetune.statistics.decision import Status
from tests.builders.gates import (
    GATE,
    METRICS,
    PEAKS,
    POINT,
    evidence,
    latency,
    memory,
    outcome,
    quantile,
    status,
    timings,
)

# ---- Cost


@pytest.mark.parametrize(("limit", "expected"), [(0.6, "pass"), (0.5, "inconclusive"), (0.4, "fail")])
def test_latency_is_judged_on_its_upper_bound(limit: float, expected: Status) -> None:
    """A mean of 0.5 s ± 10%: the upper bound must be below the limit."""
    assert status(latency(limit), latency=timings(0.5)) == expected


@pytest.mark.parametrize(("limit", "expected"), [(0.51, "pass"), (0.49, "fail")])
def test_latency_under_the_point_policy(limit: float, expected: Status) -> None:
    """Under `point`, only the mean is compared with the limit."""
    assert status(latency(limit), gate=POINT, latency=timings(0.5)) == expected


@pytest.mark.parametrize(("asked", "expected"), [(0.0, "pass"), (0.3, "pass"), (0.4, "inconclusive"), (0.5, "fail")])
def test_improvement_over_the_baselines_latency(asked: float, expected: Status) -> None:
    """The latency must be 40% below the baseline's, in pairs; the limit in seconds is a separate outcome."""
    found = judge(latency(0.7, asked), evidence(latency=timings(0.6)), GATE)
    assert [item.status for item in found] == ["pass", expected]
    assert found[1].estimate == pytest.approx(0.4)


def test_a_slower_candidate_fails_an_improvement_of_zero() -> None:
    """An improvement of zero requires that the candidate is at least as fast as the baseline."""
    assert judge(latency(9, 0.0), evidence(latency=timings(1.2)), GATE)[1].status == "fail"


@pytest.mark.parametrize("count", [0, 1])
def test_missing_latency_is_unmeasured(count: int) -> None:
    """An empty list has no mean and a single answer has no spread; a required improvement does not change this."""
    for criterion in (latency(100), latency(100, 0.0)):
        (found,) = judge(criterion, evidence(latency=timings(0.5)[:count]), POINT)
        assert (found.status, found.reason) == ("unmeasured", "no latency was measured")


@pytest.mark.parametrize("side", ["candidate_seconds", "baseline_seconds"])
@pytest.mark.parametrize("seconds", [0.0, -0.1])
def test_an_impossible_time_leaves_the_latency_unmeasured(side: str, seconds: float) -> None:
    """An impossible time makes the others doubtful; including it would lower the mean."""
    broken = {"baseline_seconds": 1.0, "baseline_first": None, "baseline_tokens": 3}
    broken |= {"candidate_seconds": 0.5, "candidate_first": None, "candidate_tokens": 3}
    rows = [*timings(0.5), Timing("broken", **{**broken, side: seconds})]  # type: ignore[arg-type]
    (found,) = judge(latency(100, 0.0), evidence(latency=rows), GATE)
    assert found.status == "unmeasured"
    assert found.reason == "a measured time is zero or negative; the clock went backwards"


@pytest.mark.parametrize("count", [2, 3, 19])
def test_too_few_latencies_never_pass(count: int) -> None:
    """A bound on a mean of too few values would be a guess."""
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
    """At the limit it passes, a byte above it fails; a peak of zero means that nothing was measured."""
    for gate in (GATE, POINT):
        assert status(memory("2 GB"), memory=peaks, gate=gate) == expected


# ---- Quantiles, recorded baselines, seeds


@pytest.mark.parametrize(("count", "expected"), [(58, "inconclusive"), (59, "pass")])
def test_a_quantile_needs_enough_prompts(count: int, expected: Status) -> None:
    """Below 59 prompts, no order statistic bounds the 0.95 quantile at 95% confidence."""
    found = outcome(quantile(1.0), latency=timings(0.5, count=count))
    assert found.status == expected
    assert ("an upper bound on this quantile requires 59" in found.reason) == (count < 59)


def test_a_quantile_fails_if_its_lower_bound_exceeds_the_limit() -> None:
    """Answers of about 0.5 s fail a limit of 0.4 s; a limit within their range is inconclusive."""
    assert status(quantile(0.4), latency=timings(0.5, count=80)) == "fail"
    assert status(quantile(0.545), latency=timings(0.5, count=80)) == "inconclusive"
    assert status(quantile(0.56), gate=POINT, latency=timings(0.5, count=10)) == "pass"


def test_a_recorded_baseline_is_mentioned() -> None:
    """Times of another day and machine are not strictly paired, so the report mentions it."""
    found = judge(latency(1.0, 0.1), evidence(latency=timings(0.5), recorded="last year's run"), GATE)
    assert all("recorded as last year's run" in item.reason for item in found)
    assert not any("recorded" in item.reason for item in judge(latency(1.0, 0.1), evidence(latency=timings(0.5)), GATE))


SAME = {"test_sha256": "t", "makings_sha256": "m", "policy": "interval", "confidence": 0.95}


def seed_run(status: str = "pass", criterion: str = "c0", **other: Any) -> dict[str, Any]:
    """Return what `finetune seeds` records of one seed."""
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
    """Three seeds must pass, including this one, judged alike on the same evidence; none is selected."""
    own = Outcome("c0", "at_least", "quality", mine, 0, 0, 0, 0, "", "", "why")
    older = {"42": seed_run("fail")}  # a run of the current seed
    recorded = {str(at + 9): run for at, run in enumerate(others)} | older
    found = judge_seeds(3, 42, recorded, SAME, [own])
    assert found.status == expected
    if expected == "pass":
        assert found.reason == "every criterion passes with each of the seeds 9, 10, 42"
    json.dumps(found.report().to_json(), allow_nan=False)


def test_a_prompt_without_an_answer_leaves_the_latency_unmeasured() -> None:
    """The failed prompt may be the slowest: the mean of the others would be too good."""
    cost = Evidence((), timings(0.5), PEAKS, METRICS, unanswered=1)
    for found in [*judge(latency(9.0, 0.1), cost, POINT), *judge(quantile(9.0), cost, POINT)]:
        assert found.status == "unmeasured"
        assert found.reason == "the candidate failed to answer 1 of the timed prompts"


def test_a_baseline_without_times_leaves_the_improvement_unmeasured() -> None:
    """The candidate's own limit can still be judged."""
    rows = [Timing(row.id, None, None, None, row.candidate_seconds, None, 3) for row in timings(0.5)]
    found = judge(latency(1.0, 0.1), evidence(latency=rows, recorded="old"), GATE)
    assert [item.status for item in found] == ["pass", "unmeasured"]
    assert found[1].criterion == "mean latency 10% under the baseline"
    assert found[1].reason == "the baseline has no recorded times"
