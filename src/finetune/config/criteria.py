"""The criteria of the gate: one class for each rule, with its keys and its decision."""

import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union, get_args

from pydantic import Field

from finetune.config.scorers import Metric
from finetune.config.types import MemoryAmount, OpenShare, PositiveFloat, Section, Share, Text, parse_bytes
from finetune.records.examples import ALL
from finetune.statistics.decision import Gate, Measurement, Status, above, below

Number = Annotated[float, Field(allow_inf_nan=False)]


class Criterion(Section):
    """What all criteria of the gate have in common: the rule, also in words."""

    compared: ClassVar[bool] = False  # whether the candidate's gain on the baseline is measured
    ceiling: ClassVar[bool] = False  # whether its target is an upper limit
    rule: str

    def describe(self) -> str:
        """Return the rule in words, e.g. `exact_match of exception-namer at least 0.6`."""
        raise NotImplementedError

    @property
    def about(self) -> str:
        """Return the subject and the direction; no two criteria may share both."""
        return self.describe()


class QualityCriterion(Criterion):
    """A criterion on the answers to all test examples, or to those of one agent or source."""

    compared = True
    by_test: ClassVar[bool] = False  # a paired test decides, if there is one for the metric
    metric: Text
    group: Text

    @property
    def subject(self) -> str:
        """The measured quantity in words."""
        return self.metric if self.group == ALL else f"{self.metric} of {self.group}"

    @property
    def target(self) -> float:
        """The target on the criterion's own scale; for a comparison, of the candidate's gain."""
        return 0.0

    def status(self, measurement: Measurement, gate: Gate) -> Status:
        """Return whether the measurement meets the rule."""
        if self.by_test and measurement.better is not None and gate.policy == "interval":
            return "pass" if measurement.is_better(gate) else "fail" if measurement.is_worse(gate) else "inconclusive"
        return above(measurement.lower, measurement.upper, self.target, gate, strict=self.compared)

    def misfit(self, metric: Metric) -> str:  # noqa: ARG002
        """Return why the rule does not suit this metric, as `key: problem`; empty if it does."""
        return ""

    def least_examples(self, confidence: float) -> tuple[int, str] | None:  # noqa: ARG002
        """Return the fewest examples that could prove it and the condition for that; None if a bootstrap decides."""
        return None

    def reachable(self, have: int, confidence: float) -> str:  # noqa: ARG002
        """Return a weaker rule that `have` right-or-wrong examples could prove, as `key: value`; empty if none."""
        return ""


class ThresholdCriterion(QualityCriterion):
    """A criterion on the candidate's metric alone, which must stay on one side of `threshold`."""

    compared = False
    side: ClassVar[str]  # in words, as in the rule
    threshold: Number

    def describe(self) -> str:
        return f"{self.about} {self.threshold:g}"

    @property
    def about(self) -> str:
        return f"{self.subject} {self.side}"

    @property
    def target(self) -> float:
        return self.threshold

    def misfit(self, metric: Metric) -> str:
        if metric.higher_is_better == self.ceiling:
            better, rule = ("more", "at_least") if metric.higher_is_better else ("less", "at_most")
            return f"rule: for {metric.name}, {better} is better; use {rule}"
        if metric.lowest < self.threshold < metric.highest:
            return ""
        return f"threshold: must lie between {metric.lowest:g} and {metric.highest:g}; found {self.threshold:g}"


class AtLeast(ThresholdCriterion):
    """The candidate's metric is at least `threshold`."""

    side = "at least"
    rule: Literal["at_least"]

    def least_examples(self, confidence: float) -> tuple[int, str]:
        from finetune.statistics.proportions import examples_needed

        needed, one, two = (examples_needed(self.threshold, failures, confidence) for failures in range(3))
        return needed, f"even with no failure ({one:,} with one failure, {two:,} with two)"

    def reachable(self, have: int, confidence: float) -> str:
        from finetune.statistics.proportions import clopper_pearson

        share = math.floor(clopper_pearson(have, have, confidence, "lower").lower * 100) / 100
        return f"threshold: {share:g}" if share > 0 else ""


class AtMost(ThresholdCriterion):
    """The candidate's metric is at most `threshold`: for loss and perplexity, where lower is better."""

    side = "at most"
    ceiling = True
    rule: Literal["at_most"]

    def status(self, measurement: Measurement, gate: Gate) -> Status:
        return below(measurement.lower, measurement.upper, self.target, gate)


class BetterThanBaseline(QualityCriterion):
    """The candidate's metric is better than the baseline's, paired by example."""

    by_test = True
    rule: Literal["better_than_baseline"]

    def describe(self) -> str:
        return f"{self.subject} better than the baseline"

    def least_examples(self, confidence: float) -> tuple[int, str]:
        from finetune.statistics.proportions import examples_needed_better

        condition = "even if the candidate is correct and the baseline wrong on each of them"
        return examples_needed_better(confidence), condition


class NotWorseThanBaseline(QualityCriterion):
    """The candidate's metric is worse than the baseline's by less than `margin`, paired by example."""

    rule: Literal["not_worse_than_baseline"]
    margin: PositiveFloat

    def describe(self) -> str:
        return f"{self.subject} not worse than the baseline by {self.margin:g}"

    @property
    def about(self) -> str:
        return f"{self.subject} not worse than the baseline"

    @property
    def target(self) -> float:
        return -self.margin

    def misfit(self, metric: Metric) -> str:
        whole = self.margin >= metric.highest - metric.lowest
        return f"margin: {self.margin:g} is the entire range of {metric.name}" if whole else ""

    def least_examples(self, confidence: float) -> tuple[int, str]:
        from finetune.statistics.proportions import examples_needed_not_worse

        condition = "even if both models are correct on the same examples"
        return examples_needed_not_worse(self.margin, confidence), condition

    def reachable(self, have: int, confidence: float) -> str:
        from finetune.statistics.proportions import margin_shown

        margin = margin_shown(have, confidence)
        return f"margin: {margin:g}" if margin is not None else ""


class LatencyAtMost(Criterion):
    """Mean seconds per answer, and optionally the fraction by which it must be shorter than the baseline's."""

    ceiling = True
    rule: Literal["latency_at_most"]
    seconds: PositiveFloat
    improvement: Share | None

    def describe(self) -> str:
        return f"mean latency under {self.seconds:g} s"

    def describe_improvement(self) -> str:
        """Describe the required improvement, if there is one."""
        return f"mean latency {self.improvement or 0:.0%} under the baseline"

    @property
    def about(self) -> str:
        return "mean latency"


class LatencyQuantileAtMost(Criterion):
    """A quantile of the seconds per answer: e.g. 95% of the answers take at most this long."""

    ceiling = True
    rule: Literal["latency_quantile_at_most"]
    quantile: OpenShare
    seconds: PositiveFloat

    def describe(self) -> str:
        return f"{self.quantile:.4g} quantile of the latency under {self.seconds:g} s"

    @property
    def about(self) -> str:
        return f"{self.quantile:.4g} quantile of the latency"


class MemoryAtMost(Criterion):
    """Peak memory of a fresh process; the limit includes its unit."""

    ceiling = True
    rule: Literal["memory_at_most"]
    limit: MemoryAmount

    @cached_property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return parse_bytes(self.limit)

    def describe(self) -> str:
        return f"peak memory at most {self.limit}"

    @property
    def about(self) -> str:
        return "peak memory"


CLASSES = (
    AtLeast,
    AtMost,
    BetterThanBaseline,
    NotWorseThanBaseline,
    LatencyAtMost,
    LatencyQuantileAtMost,
    MemoryAtMost,
)
RULES: dict[str, type[Criterion]] = {get_args(kind.model_fields["rule"].annotation)[0]: kind for kind in CLASSES}
if TYPE_CHECKING:
    AnyCriterion = Criterion
else:
    AnyCriterion = Annotated[Union[CLASSES], Field(discriminator="rule")]  # noqa: UP007
