"""How a pair of one-sided bounds decides a question: pass, fail, or inconclusive in between."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from finetune.statistics.interval import Interval

Status = Literal["pass", "fail", "inconclusive", "unmeasured"]


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
class Measurement:
    """The bounds of what a criterion asks for, what was seen, and the p-value where a test decides."""

    lower: "Interval"
    upper: "Interval"
    seen: str
    better: float | None = None  # of the test that the candidate is better, and that it is worse
    worse: float | None = None
    exact: bool = False  # the test keeps its word by itself

    def is_better(self, gate: Gate) -> bool:
        """Whether the gain is proven: by the test, and where that is not exact by the bound too.

        Measured: a permutation of means that are equal, with rare losses of whole clusters, errs up to 0.25 of the time
        at 95% (60 clusters); test and bound together 0.03 at most (benchmarks/bench_gate.py).
        """
        proven = self.lower.lower > 0
        return proven if self.better is None else self.better < 1 - gate.confidence and (self.exact or proven)

    def is_worse(self, gate: Gate) -> bool:
        """Whether a loss is proven, in the same way."""
        proven = self.upper.upper < 0
        return proven if self.worse is None else self.worse < 1 - gate.confidence and (self.exact or proven)


def above(lower: "Interval", upper: "Interval", target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass where the lower bound reaches the target (`strict`: exceeds it), fail where the upper one stays below."""
    return _status(lower.lower - target, upper.upper - target, lower.estimate - target, gate, strict=strict)


def below(lower: "Interval", upper: "Interval", target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass where the upper bound keeps to the target (`strict`: is below it), fail where the lower one exceeds it."""
    return _status(target - upper.upper, target - lower.lower, target - upper.estimate, gate, strict=strict)


def _status(worst: float, best: float, estimate: float, gate: Gate, *, strict: bool) -> Status:
    """The status by how far both bounds and the estimate are on the good side of the target."""
    if gate.policy == "point":  # a figure that is not known is no pass
        worst = best = -1.0 if math.isnan(estimate) else estimate
    if worst > 0 or (worst == 0 and not strict):
        return "pass"
    return "fail" if best < 0 or (best == 0 and strict) else "inconclusive"
