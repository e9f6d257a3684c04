"""What a criterion comes to: its status, its bounds, and how a pair of one-sided bounds decides it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from finetune.config.decide import Criterion, QualityCriterion
from finetune.reports.decision import CriterionReport
from finetune.statistics.interval import Interval

Status = Literal["pass", "fail", "inconclusive", "unmeasured"]
About = Literal["quality", "latency", "memory", "seeds"]


@dataclass(frozen=True)
class Gate:
    """How the evidence is judged: the policy, the confidence of one look, the seed of the bootstraps."""

    policy: Literal["interval", "point"]
    confidence: float
    seed: int

    def strictness(self) -> dict[str, Any]:
        """What another run's outcomes must have been judged by to stand beside these."""
        return {"policy": self.policy, "confidence": self.confidence}


@dataclass(frozen=True)
class Outcome:
    """One line of the gate. `lower` and `upper` are one-sided bounds, each at the stated confidence."""

    criterion: str
    about: About
    status: Status
    target: float
    estimate: float | None
    lower: float | None
    upper: float | None
    unit: str
    method: str
    reason: str
    group: str | None = None
    metric: str | None = None
    higher_is_better: bool = True

    def report(self) -> CriterionReport:
        """For the report; a bound that is not finite is None."""
        fields = asdict(self).items()
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields
        }
        return CriterionReport(**finite)


def above(lower: Interval, upper: Interval, target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass where the lower bound reaches the target (`strict`: exceeds it), fail where the upper one stays below."""
    passed = lower.lower > target if strict else lower.lower >= target
    failed = upper.upper <= target if strict else upper.upper < target
    if gate.policy == "point":
        passed = lower.estimate > target if strict else lower.estimate >= target
        failed = not passed
    return "pass" if passed else "fail" if failed else "inconclusive"


def below(lower: Interval, upper: Interval, target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass where the upper bound keeps to the target (`strict`: is below it), fail where the lower one exceeds it."""
    passed = upper.upper < target if strict else upper.upper <= target
    failed = lower.lower >= target if strict else lower.lower > target
    if gate.policy == "point":
        passed = upper.estimate < target if strict else upper.estimate <= target
        failed = not passed
    return "pass" if passed else "fail" if failed else "inconclusive"


def conclude(
    criterion: Criterion,
    about: About,
    status: Status,
    target: float,
    lower: Interval,
    upper: Interval,
    reason: str,
    *,
    unit: str = "",
    higher_is_better: bool = True,
) -> Outcome:
    """An Outcome from its two one-sided bounds; a bound that was refused says why."""
    if refusal := lower.refusal or upper.refusal:
        reason = f"{reason}; {refusal}"
    quality = criterion if isinstance(criterion, QualityCriterion) else None
    return Outcome(
        criterion=criterion.describe(),
        about=about,
        status=status,
        target=target,
        estimate=lower.estimate,
        lower=lower.lower,
        upper=upper.upper,
        unit=unit,
        method=lower.method,
        reason=reason,
        group=quality.group if quality else None,
        metric=quality.metric if quality else None,
        higher_is_better=higher_is_better,
    )


def unmeasured(criterion: Criterion, about: About, target: float, reason: str, unit: str = "") -> Outcome:
    """No figure, so no verdict on it; it never passes."""
    quality = criterion if isinstance(criterion, QualityCriterion) else None
    return Outcome(
        criterion=criterion.describe(),
        about=about,
        status="unmeasured",
        target=target,
        estimate=None,
        lower=None,
        upper=None,
        unit=unit,
        method="none",
        reason=reason,
        group=quality.group if quality else None,
        metric=quality.metric if quality else None,
    )
