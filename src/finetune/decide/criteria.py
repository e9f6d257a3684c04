"""One criterion of the gate against the evidence: pass, fail, inconclusive or unmeasured.

Under the policy `interval` the burden of proof lies on the candidate: it passes when the whole interval is on the good
side of the target, fails when the whole interval is on the bad side, and is inconclusive in between. Under `point` the
estimate alone is compared, which proves nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from finetune.config import (
    AtLeast,
    BetterThanBaseline,
    Criterion,
    LatencyAtMost,
    MemoryAtMost,
    NotWorseThanBaseline,
    QualityCriterion,
)
from finetune.config_types import ALL
from finetune.metrics import weighted_macro_f1
from finetune.records import Prediction, Timing
from finetune.stats import (
    Interval,
    clopper_pearson,
    mcnemar_exact,
    mean_interval,
    relative_improvement,
    resample,
    tango,
)

Status = Literal["pass", "fail", "inconclusive", "unmeasured"]


@dataclass(frozen=True)
class Evidence:
    """What the gate judges."""

    predictions: Sequence[Prediction]
    latency: Sequence[Timing]
    memory_bytes: Sequence[int]  # one peak a fresh process

    def of(self, group: str) -> list[Prediction]:
        """The predictions of one agent, or all."""
        return [item for item in self.predictions if group in (ALL, item.agent)]

    def seconds(self) -> tuple[list[float], list[float]]:
        """The latencies of candidate and baseline, paired by prompt."""
        return [row.candidate_seconds for row in self.latency], [row.baseline_seconds for row in self.latency]


@dataclass(frozen=True)
class Gate:
    """How the evidence is judged: the policy, the confidence of one look, the seed of the bootstraps."""

    policy: Literal["interval", "point"]
    confidence: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """One line of the gate. `lower` and `upper` are one-sided bounds, each at the stated confidence."""

    criterion: str
    about: Literal["quality", "latency", "memory"]
    status: Status
    target: float
    estimate: float | None
    lower: float | None
    upper: float | None
    unit: str
    method: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """For the report; a bound that is not finite is null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def judge(criterion: Criterion, evidence: Evidence, gate: Gate) -> list[Outcome]:
    """The outcomes of one criterion; a latency criterion with an asked improvement has two."""
    if isinstance(criterion, LatencyAtMost):
        return judge_latency(criterion, evidence, gate)
    if isinstance(criterion, MemoryAtMost):
        return [judge_memory(criterion, evidence)]
    assert isinstance(criterion, QualityCriterion)
    predictions = evidence.of(criterion.group)
    if not predictions:
        reason = f"no test example belongs to {criterion.group}"
        return [unmeasured(criterion, math.nan, "", reason)]
    judged = judge_exact_match if criterion.metric == "exact_match" else judge_macro_f1
    return [judged(criterion, predictions, gate)]


def judge_exact_match(criterion: QualityCriterion, predictions: Sequence[Prediction], gate: Gate) -> Outcome:
    """A share of right answers: exact interval, paired score interval, or exact McNemar test."""
    n = len(predictions)
    if isinstance(criterion, AtLeast):
        right = sum(item.candidate.exact_match for item in predictions)
        lower, upper = (clopper_pearson(right, n, gate.confidence, side) for side in ("lower", "upper"))
        return at_least(criterion, criterion.threshold, lower, upper, gate, f"{right} of {n} right")
    gained, lost = discordant(predictions)
    seen = f"of {n}, {gained} right only by the candidate, {lost} only by the baseline"
    lower, upper = (tango(gained, lost, n, gate.confidence, side) for side in ("lower", "upper"))
    if isinstance(criterion, NotWorseThanBaseline):
        return at_least(criterion, -criterion.margin, lower, upper, gate, seen, strict=True)
    assert isinstance(criterion, BetterThanBaseline)
    alpha = 1 - gate.confidence
    better, worse = (mcnemar_exact(gained, lost, side) for side in ("greater", "less"))
    status: Status = "pass" if better < alpha else "fail" if worse < alpha else "inconclusive"
    if gate.policy == "point":
        status = "pass" if gained > lost else "fail"
    reason = f"{seen}; exact McNemar p = {better:.2g}, below {alpha:.3g} asked"
    return outcome(criterion, status, 0.0, lower, upper, reason)


def discordant(predictions: Sequence[Prediction]) -> tuple[int, int]:
    """How many examples only the candidate got right, and how many only the baseline."""
    gained = sum(item.candidate.exact_match and not item.baseline.exact_match for item in predictions)
    lost = sum(item.baseline.exact_match and not item.candidate.exact_match for item in predictions)
    return gained, lost


def judge_macro_f1(criterion: QualityCriterion, predictions: Sequence[Prediction], gate: Gate) -> Outcome:
    """Macro-F1 or its paired difference, by a bootstrap over examples, stratified by agent."""
    references = [item.reference.strip() for item in predictions]
    candidate = weighted_macro_f1(references, [item.candidate.text.strip() for item in predictions])
    baseline = weighted_macro_f1(references, [item.baseline.text.strip() for item in predictions])
    strata = [item.agent for item in predictions]
    alone = isinstance(criterion, AtLeast)

    def statistic(weights: Any) -> float:
        return candidate(weights) if alone else candidate(weights) - baseline(weights)

    bounds = (0.0, 1.0) if alone else (-1.0, 1.0)
    lower, upper = (
        resample(
            statistic,
            len(predictions),
            gate.confidence,
            side,
            gate.seed,
            strata=strata,
            bounds=bounds,
        )
        for side in ("lower", "upper")
    )
    ones = np.ones(len(predictions))
    seen = f"candidate {candidate(ones):.3f}, baseline {baseline(ones):.3f}, {len(predictions)} examples"
    if isinstance(criterion, AtLeast):
        return at_least(criterion, criterion.threshold, lower, upper, gate, seen)
    target = -criterion.margin if isinstance(criterion, NotWorseThanBaseline) else 0.0
    return at_least(criterion, target, lower, upper, gate, seen, strict=True)


def judge_latency(criterion: LatencyAtMost, evidence: Evidence, gate: Gate) -> list[Outcome]:
    """The mean against the limit, and the paired improvement on the baseline where one is asked for."""
    if len(evidence.latency) < 2:
        return [unmeasured(criterion, criterion.seconds, "s", "no latency was measured")]
    candidate, baseline = evidence.seconds()
    if min(candidate + baseline) <= 0:
        reason = "a measured time is not above zero; the clock went backwards"
        return [unmeasured(criterion, criterion.seconds, "s", reason)]
    lower, upper = (
        mean_interval(candidate, gate.confidence, side, gate.seed, bounds=(0.0, math.inf))
        for side in ("lower", "upper")
    )
    seen = f"mean of {len(candidate)} prompts, one at a time; baseline {sum(baseline) / len(baseline):.3f} s"
    limit = criterion.seconds
    status: Status = "pass" if upper.upper < limit else "fail" if lower.lower >= limit else "inconclusive"
    if gate.policy == "point":
        status = "pass" if lower.estimate < limit else "fail"
    found = [outcome(criterion, status, limit, lower, upper, seen, unit="s")]
    if criterion.improvement is not None:
        low, high = (
            relative_improvement(candidate, baseline, gate.confidence, side, gate.seed) for side in ("lower", "upper")
        )
        found.append(
            at_least(criterion, criterion.improvement, low, high, gate, "1 - mean(candidate) / mean(baseline), paired")
        )
    return found


def judge_memory(criterion: MemoryAtMost, evidence: Evidence) -> Outcome:
    """The largest of at least three fresh processes; zero or absent is unmeasured and never passes."""
    peaks, limit = evidence.memory_bytes, criterion.limit_bytes
    if len(peaks) < 3 or min(peaks) <= 0:
        reason = f"{len(peaks)} peaks, the least {min(peaks, default=0)}; three above zero are needed"
        return unmeasured(criterion, limit, "bytes", reason)
    status: Status = "pass" if max(peaks) <= limit else "fail"
    reason = f"the largest of {len(peaks)} fresh processes"
    return Outcome(
        criterion=criterion.describe(),
        about="memory",
        status=status,
        target=limit,
        estimate=max(peaks),
        lower=min(peaks),
        upper=max(peaks),
        unit="bytes",
        method="largest observed",
        reason=reason,
    )


def subject(criterion: Criterion) -> Literal["quality", "latency", "memory"]:
    """What a criterion is about."""
    if isinstance(criterion, LatencyAtMost):
        return "latency"
    return "memory" if isinstance(criterion, MemoryAtMost) else "quality"


def unmeasured(criterion: Criterion, target: float, unit: str, reason: str) -> Outcome:
    """No figure, so no verdict on it; it never passes."""
    return Outcome(
        criterion.describe(), subject(criterion), "unmeasured", target, None, None, None, unit, "none", reason
    )


def at_least(
    criterion: Criterion,
    target: float,
    lower: Interval,
    upper: Interval,
    gate: Gate,
    reason: str,
    *,
    strict: bool = False,
) -> Outcome:
    """Pass where the lower bound reaches the target (`strict`: exceeds it), fail where the upper one stays below."""
    passed = lower.lower > target if strict else lower.lower >= target
    failed = upper.upper <= target if strict else upper.upper < target
    if gate.policy == "point":
        passed = lower.estimate > target if strict else lower.estimate >= target
        failed = not passed
    return outcome(criterion, "pass" if passed else "fail" if failed else "inconclusive", target, lower, upper, reason)


def outcome(
    criterion: Criterion, status: Status, target: float, lower: Interval, upper: Interval, reason: str, unit: str = ""
) -> Outcome:
    """An Outcome from its two one-sided bounds; a bootstrap that refused says why."""
    if lower.refused or upper.refused:
        refusal = lower.method if lower.refused else upper.method
        reason = f"{reason}; {refusal.removeprefix('none: ')}"
    return Outcome(
        criterion=criterion.describe(),
        about=subject(criterion),
        status=status,
        target=target,
        estimate=lower.estimate,
        lower=lower.lower,
        upper=upper.upper,
        unit=unit,
        method=lower.method.split(":")[0],
        reason=reason,
    )
