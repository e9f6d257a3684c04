"""Judge one criterion of the gate on the evidence: pass, fail, inconclusive or unmeasured.

Under the policy `interval` the burden of proof is on the candidate: it passes if the entire interval is on the good
side of the target, fails if the entire interval is on the bad side, and is inconclusive otherwise. Under `point` only
the estimate is compared, which proves nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.config.criteria import Criterion, LatencyAtMost, LatencyQuantileAtMost, MemoryAtMost, QualityCriterion
from finetune.config.scorers import Metric
from finetune.decide.outcomes import Outcome, conclude, new_outcome, unmeasured
from finetune.decide.quality import BOUNDS, judge_quality
from finetune.records.examples import Prediction, Timing
from finetune.statistics.decision import Gate, Status, above, below
from finetune.statistics.interval import Interval
from finetune.statistics.proportions import examples_needed_quantile, quantile_upper
from finetune.statistics.skewed_means import relative_improvement, skewed_mean_interval

ENOUGH_PEAKS = 3  # fresh processes, of which the largest peak is used


@dataclass(frozen=True)
class Evidence:
    """The evidence that the gate judges; `recorded` names a baseline that was not measured in the same session.

    `unanswered` counts latency prompts that the candidate did not answer; they rank as the slowest.
    """

    predictions: Sequence[Prediction]
    latency: Sequence[Timing]
    memory_bytes: Sequence[int]  # one peak per fresh process
    metrics: Mapping[str, Metric]
    recorded: str | None = None
    unanswered: int = 0

    def seconds(self) -> list[float]:
        """The candidate's latencies."""
        return [row.candidate_seconds for row in self.latency]

    def baseline_seconds(self) -> list[float] | None:
        """The baseline's latencies, paired with the candidate's by prompt; None unless all are known."""
        known = [row.baseline_seconds for row in self.latency if row.baseline_seconds is not None]
        return known if len(known) == len(self.latency) else None


def judge(criterion: Criterion, evidence: Evidence, gate: Gate) -> list[Outcome]:
    """Return the outcomes of one criterion; a latency criterion with a required improvement has two."""
    if isinstance(criterion, LatencyAtMost | LatencyQuantileAtMost):
        trouble = find_latency_problem(evidence)
        if trouble:
            return [unmeasured(criterion, "latency", criterion.seconds, trouble, "s")]
        if isinstance(criterion, LatencyQuantileAtMost):
            return [judge_quantile(criterion, evidence, gate)]
        return judge_latency(criterion, evidence, gate)
    if isinstance(criterion, MemoryAtMost):
        return [judge_memory(criterion, evidence)]
    assert isinstance(criterion, QualityCriterion)
    return [judge_quality(criterion, evidence.metrics[criterion.metric], evidence.predictions, gate)]


def find_latency_problem(evidence: Evidence) -> str | None:
    """Return why the latencies are invalid, or None if they are valid."""
    if evidence.unanswered:
        return f"the candidate failed to answer {evidence.unanswered} of the timed prompts"
    if len(evidence.latency) < 2:
        return "no latency was measured"
    if min(evidence.seconds() + (evidence.baseline_seconds() or [])) <= 0:
        return "a measured time is zero or negative; the clock went backwards"
    return None


def judge_latency(criterion: LatencyAtMost, evidence: Evidence, gate: Gate) -> list[Outcome]:
    """Compare the mean with the limit, and judge the paired improvement on the baseline if one is required."""
    candidate, baseline = evidence.seconds(), evidence.baseline_seconds()
    lower, upper = (skewed_mean_interval(candidate, gate.confidence, side, gate.seed) for side in BOUNDS)
    where = (
        f"recorded as {evidence.recorded}, not measured in the same session"
        if evidence.recorded
        else "in the same session"
    )
    shown = "not known per prompt" if baseline is None else f"{sum(baseline) / len(baseline):.3f} s, {where}"
    seen = f"mean of {len(candidate)} prompts, one at a time; baseline {shown}"
    limit = criterion.seconds
    status = below(lower, upper, limit, gate, strict=True)
    found = [conclude(criterion, "latency", status, limit, lower, upper, seen, "s")]
    if criterion.improvement is not None and baseline is None:
        half = unmeasured(criterion, "latency", criterion.improvement, "the baseline has no recorded times")
        found.append(replace(half, criterion=criterion.describe_improvement(), higher_is_better=True))
    elif criterion.improvement is not None and baseline is not None:
        low, high = (relative_improvement(candidate, baseline, gate.confidence, side, gate.seed) for side in BOUNDS)
        status = above(low, high, criterion.improvement, gate)
        reason = f"1 - mean(candidate) / mean(baseline), paired; baseline {where}"
        half = conclude(criterion, "latency", status, criterion.improvement, low, high, reason)
        found.append(replace(half, criterion=criterion.describe_improvement(), higher_is_better=True))
    return found


def judge_quantile(criterion: LatencyQuantileAtMost, evidence: Evidence, gate: Gate) -> Outcome:
    """Compare a quantile with the limit, using distribution-free bounds."""
    import numpy as np

    candidate = evidence.seconds()
    q, limit = criterion.quantile, criterion.seconds
    highest = quantile_upper(candidate, q, gate.confidence)
    lowest = quantile_upper([-value for value in candidate], 1 - q, gate.confidence)
    needed = examples_needed_quantile(q, gate.confidence)
    reason = f"of {len(candidate)} prompts, one at a time"
    if highest is None:
        reason += f"; an upper bound on this quantile requires {needed}"
    estimate = float(np.quantile(candidate, q))
    method = ("none", "too few prompts") if highest is None else ("order statistic", "")
    lower = Interval(estimate, 0.0 if lowest is None else -lowest, float("inf"), gate.confidence, *method)
    upper = Interval(estimate, 0.0, float("inf") if highest is None else highest, gate.confidence, *method)
    status = below(lower, upper, limit, gate, strict=True)
    return conclude(criterion, "latency", status, limit, lower, upper, reason, "s")


def judge_memory(criterion: MemoryAtMost, evidence: Evidence) -> Outcome:
    """Judge the largest peak of at least three fresh processes; zero or missing values are unmeasured, never a pass."""
    peaks, limit = evidence.memory_bytes, criterion.limit_bytes
    if len(peaks) < ENOUGH_PEAKS or min(peaks) <= 0:
        reason = (
            f"{len(peaks)} peaks, the smallest {min(peaks, default=0)}; at least three peaks above zero are required"
        )
        return unmeasured(criterion, "memory", limit, reason, "bytes")
    status: Status = "pass" if max(peaks) <= limit else "fail"
    figures = (max(peaks), min(peaks), max(peaks), "bytes", "largest observed")
    return new_outcome(criterion, "memory", status, limit, figures, f"largest of {len(peaks)} fresh processes")


def judge_seeds(
    required: int, seed: int, recorded: Mapping[str, Any], same: Mapping[str, Any], mine: Sequence[Outcome]
) -> Outcome:
    """Check whether enough seeds of this recipe, including this run's, pass every criterion.

    `recorded` holds the records of `finetune seeds` in data/seeds.json by seed. Only those that agree with this run in
    `same` are used: test set, inputs of the adapter, and strictness of the gate.
    """
    names = [item.criterion for item in mine]
    runs = {int(name): run for name, run in recorded.items() if int(name) != seed}
    known = {
        name: [run["criteria"][criterion]["status"] for criterion in names]
        for name, run in runs.items()
        if all(run.get(key) == value for key, value in same.items())
        and all(criterion in run["criteria"] for criterion in names)
    }
    known[seed] = [item.status for item in mine]
    passing = [name for name, found in known.items() if set(found) == {"pass"}]
    statuses: set[str] = {status for found in known.values() for status in found}
    worst: Status = "pass"
    if len(known) < required or "unmeasured" in statuses:
        worst = "unmeasured"
    elif len(passing) < len(known):
        worst = "fail" if "fail" in statuses else "inconclusive"
    missing = f"run the missing ones with ./finetune seeds --count {required}"
    reason = f"{len(passing)} of {len(known)} seeds pass every criterion ({missing})"
    if worst == "pass":
        reason = f"every criterion passes with each of the seeds {', '.join(map(str, sorted(known)))}"
    return Outcome(
        criterion=f"all of {required} seeds pass",
        rule="seeds",
        about="seeds",
        status=worst,
        target=required,
        estimate=len(passing),
        lower=None,
        upper=None,
        unit="seeds",
        method="worst seed",
        reason=reason,
    )
