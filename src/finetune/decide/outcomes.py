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
        endless = {name: None for name, value in fields if isinstance(value, float) and not math.isfinite(value)}
        return CriterionReport(**(dict(fields) | endless))


def above(lower: Interval, upper: Interval, target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass where the lower bound reaches the target (`strict`: exceeds it), fail where the upper one stays below."""
    return _status(lower.lower - target, upper.upper - target, lower.estimate - target, gate, strict=strict)


def below(lower: Interval, upper: Interval, target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass where the upper bound keeps to the target (`strict`: is below it), fail where the lower one exceeds it."""
    return _status(target - upper.upper, target - lower.lower, target - upper.estimate, gate, strict=strict)


def _status(worst: float, best: float, estimate: float, gate: Gate, *, strict: bool) -> Status:
    """The status by how far both bounds and the estimate are on the good side of the target."""
    if gate.policy == "point":
        worst = best = estimate
    if worst > 0 or (worst == 0 and not strict):
        return "pass"
    return "fail" if best < 0 or (best == 0 and strict) else "inconclusive"


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
    figures = (lower.estimate, lower.lower, upper.upper, unit, lower.method)
    return _outcome(criterion, about, status, target, figures, reason, higher_is_better=higher_is_better)


def unmeasured(criterion: Criterion, about: About, target: float, reason: str, unit: str = "") -> Outcome:
    """No figure, so no verdict on it; it never passes."""
    return _outcome(criterion, about, "unmeasured", target, (None, None, None, unit, "none"), reason)


def _outcome(
    criterion: Criterion,
    about: About,
    status: Status,
    target: float,
    figures: tuple[float | None, float | None, float | None, str, str],
    reason: str,
    *,
    higher_is_better: bool = True,
) -> Outcome:
    """An Outcome with the group and metric of its criterion; `figures`: estimate, bounds, unit and method."""
    group, metric = (criterion.group, criterion.metric) if isinstance(criterion, QualityCriterion) else (None, None)
    return Outcome(criterion.describe(), about, status, target, *figures, reason, group, metric, higher_is_better)
