"""How a pair of one-sided bounds decides a question: pass, fail, or inconclusive."""

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
        """Return the settings that must be equal to compare outcomes of different runs."""
        return {"policy": self.policy, "confidence": self.confidence}


@dataclass(frozen=True)
class Measurement:
    """The bounds of a criterion's quantity, the observation, and the p-value if a test decides."""

    lower: "Interval"
    upper: "Interval"
    seen: str
    better: float | None = None  # of the test that the candidate is better, and that it is worse
    worse: float | None = None
    exact: bool = False  # the test's error rate is guaranteed by itself

    def is_better(self, gate: Gate) -> bool:
        """Return whether a gain is proven: by the test and, if that is not exact, also by the bound.

        Measured: a permutation test of equal means with rare losses of complete clusters has an error rate of up to
        0.25 at 95% (60 clusters); test and bound together at most 0.03 (benchmarks/bench_gate.py).
        """
        proven = self.lower.lower > 0
        return proven if self.better is None else self.better < 1 - gate.confidence and (self.exact or proven)

    def is_worse(self, gate: Gate) -> bool:
        """Return whether a loss is proven, in the same way."""
        proven = self.upper.upper < 0
        return proven if self.worse is None else self.worse < 1 - gate.confidence and (self.exact or proven)


def above(lower: "Interval", upper: "Interval", target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass if the lower bound reaches the target (`strict`: exceeds it), fail if the upper one stays below it."""
    return _status(lower.lower - target, upper.upper - target, lower.estimate - target, gate, strict=strict)


def below(lower: "Interval", upper: "Interval", target: float, gate: Gate, *, strict: bool = False) -> Status:
    """Pass if the upper bound is at most the target (`strict`: below it), fail if the lower one exceeds it."""
    return _status(target - upper.upper, target - lower.lower, target - upper.estimate, gate, strict=strict)


def _status(worst: float, best: float, estimate: float, gate: Gate, *, strict: bool) -> Status:
    """Return the status by how far both bounds and the estimate are on the good side of the target."""
    if gate.policy == "point":  # an unknown value does not pass
        worst = best = -1.0 if math.isnan(estimate) else estimate
    if worst > 0 or (worst == 0 and not strict):
        return "pass"
    return "fail" if best < 0 or (best == 0 and strict) else "inconclusive"
