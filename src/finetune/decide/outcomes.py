"""What a criterion comes to: its status, its bounds, and why."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from finetune.config.decide import Criterion, QualityCriterion
from finetune.reports.decision import CriterionReport
from finetune.statistics.decision import Status
from finetune.statistics.interval import Interval

About = Literal["quality", "latency", "memory", "seeds"]


@dataclass(frozen=True)
class Outcome:
    """One line of the gate. `lower` and `upper` are one-sided bounds, each at the stated confidence."""

    criterion: str
    rule: str  # the criterion's kind, a key of RULES; "seeds" of all of them under other seeds
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
    higher_is_better: bool = True  # of what is measured; of a comparison, the gain

    def report(self) -> CriterionReport:
        """For the report; a bound that is not finite is None."""
        fields = asdict(self).items()
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields
        }
        return CriterionReport(**finite)


def conclude(
    criterion: Criterion,
    about: About,
    status: Status,
    target: float,
    lower: Interval,
    upper: Interval,
    reason: str,
    unit: str = "",
) -> Outcome:
    """An Outcome from its two one-sided bounds; a bound that was refused says why."""
    if refusal := lower.refusal or upper.refusal:
        reason = f"{reason}; {refusal}"
    quality = criterion if isinstance(criterion, QualityCriterion) else None
    return Outcome(
        criterion=criterion.describe(),
        rule=criterion.rule,
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
        higher_is_better=not criterion.ceiling,
    )


def unmeasured(criterion: Criterion, about: About, target: float, reason: str, unit: str = "") -> Outcome:
    """No figure, so no verdict on it; it never passes."""
    quality = criterion if isinstance(criterion, QualityCriterion) else None
    return Outcome(
        criterion=criterion.describe(),
        rule=criterion.rule,
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
        higher_is_better=not criterion.ceiling,
    )
