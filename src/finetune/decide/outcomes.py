"""What a criterion comes to: its status, its bounds, and why."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from finetune.config.criteria import Criterion, QualityCriterion
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
        endless = {name: None for name, value in fields if isinstance(value, float) and not math.isfinite(value)}
        return CriterionReport(**(dict(fields) | endless))


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
    figures = (lower.estimate, lower.lower, upper.upper, unit, lower.method)
    return new_outcome(criterion, about, status, target, figures, reason)


def unmeasured(criterion: Criterion, about: About, target: float, reason: str, unit: str = "") -> Outcome:
    """No figure, so no verdict on it; it never passes."""
    return new_outcome(criterion, about, "unmeasured", target, (None, None, None, unit, "none"), reason)


def new_outcome(
    criterion: Criterion,
    about: About,
    status: Status,
    target: float,
    figures: tuple[float | None, float | None, float | None, str, str],
    reason: str,
) -> Outcome:
    """An Outcome with what follows from its criterion; `figures`: estimate, bounds, unit and method."""
    group, metric = (criterion.group, criterion.metric) if isinstance(criterion, QualityCriterion) else (None, None)
    estimate, lower, upper, unit, method = figures
    return Outcome(
        criterion=criterion.describe(),
        rule=criterion.rule,
        about=about,
        status=status,
        target=target,
        estimate=estimate,
        lower=lower,
        upper=upper,
        unit=unit,
        method=method,
        reason=reason,
        group=group,
        metric=metric,
        higher_is_better=not criterion.ceiling,
    )
