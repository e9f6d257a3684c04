"""The outcome of a criterion: its status, its bounds and the reason."""

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
    """One row of the gate. `lower` and `upper` are one-sided bounds, each at the stated confidence."""

    criterion: str
    rule: str  # the criterion's kind, a key of RULES; "seeds" for all criteria under other seeds
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
    higher_is_better: bool = True  # of the measured value; of a comparison, the gain

    def report(self) -> CriterionReport:
        """Convert to the report's form; a bound that is not finite becomes None."""
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
    """Build an Outcome from two one-sided bounds, with the reason if a bound was refused."""
    if refusal := lower.refusal or upper.refusal:
        reason = f"{reason}; {refusal}"
    figures = (lower.estimate, lower.lower, upper.upper, unit, lower.method)
    return new_outcome(criterion, about, status, target, figures, reason)


def unmeasured(criterion: Criterion, about: About, target: float, reason: str, unit: str = "") -> Outcome:
    """Build the outcome of a criterion without a measured value; it never passes."""
    return new_outcome(criterion, about, "unmeasured", target, (None, None, None, unit, "none"), reason)


def new_outcome(
    criterion: Criterion,
    about: About,
    status: Status,
    target: float,
    figures: tuple[float | None, float | None, float | None, str, str],
    reason: str,
) -> Outcome:
    """Build an Outcome and derive fields from its criterion; `figures`: estimate, bounds, unit and method."""
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
