"""The section `decide` of params.yaml: the criteria of the gate, and how sure it must be."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from finetune.config.data import DataConfig
from finetune.config.evaluate import EvaluateConfig
from finetune.config.model import AdapterConfig, Environment, ModelConfig
from finetune.config.train import TrainConfig
from finetune.config.types import (
    MemoryAmount,
    OpenShare,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Share,
    Text,
    parse_bytes,
)
from finetune.records.examples import ALL

Number = Annotated[float, Field(allow_inf_nan=False)]


class Criterion(Section):
    """What every line of the gate has: its rule in words."""

    def describe(self) -> str:
        """The rule in words, e.g. `exact_match of exception-namer at least 0.6`."""
        raise NotImplementedError

    @property
    def about(self) -> str:
        """What is judged, and in which direction: no two criteria may be about the same."""
        return self.describe()


class QualityCriterion(Criterion):
    """A criterion on the answers: of all test examples, or of one agent's or source's."""

    metric: Text
    group: Text

    @property
    def subject(self) -> str:
        """What is measured, in words."""
        return self.metric if self.group == ALL else f"{self.metric} of {self.group}"


class AtLeast(QualityCriterion):
    """The candidate's metric is at least `threshold`."""

    rule: Literal["at_least"]
    threshold: Number

    def describe(self) -> str:
        return f"{self.subject} at least {self.threshold:g}"

    @property
    def about(self) -> str:
        return f"{self.subject} at least"


class AtMost(QualityCriterion):
    """The candidate's metric is at most `threshold`: of loss and perplexity, where less is better."""

    rule: Literal["at_most"]
    threshold: Number

    def describe(self) -> str:
        return f"{self.subject} at most {self.threshold:g}"

    @property
    def about(self) -> str:
        return f"{self.subject} at most"


class BetterThanBaseline(QualityCriterion):
    """The candidate's metric is better than the baseline's, paired by example."""

    rule: Literal["better_than_baseline"]

    def describe(self) -> str:
        return f"{self.subject} better than the baseline"


class NotWorseThanBaseline(QualityCriterion):
    """The candidate's metric is worse than the baseline's by less than `margin`, paired by example."""

    rule: Literal["not_worse_than_baseline"]
    margin: PositiveFloat

    def describe(self) -> str:
        return f"{self.subject} not worse than the baseline by {self.margin:g}"

    @property
    def about(self) -> str:
        return f"{self.subject} not worse than the baseline"


class LatencyAtMost(Criterion):
    """Mean seconds an answer, and optionally the share that it must be shorter than the baseline's."""

    rule: Literal["latency_at_most"]
    seconds: PositiveFloat
    improvement: Share | None

    def describe(self) -> str:
        return f"mean latency under {self.seconds:g} s"

    def describe_improvement(self) -> str:
        """The second half, where one is asked for."""
        return f"mean latency {self.improvement or 0:.0%} under the baseline"

    @property
    def about(self) -> str:
        return "mean latency"


class LatencyQuantileAtMost(Criterion):
    """A quantile of the seconds an answer: nineteen of twenty answers come within so many."""

    rule: Literal["latency_quantile_at_most"]
    quantile: OpenShare
    seconds: PositiveFloat

    def describe(self) -> str:
        return f"{self.quantile:.4g} quantile of the latency under {self.seconds:g} s"

    @property
    def about(self) -> str:
        return f"{self.quantile:.4g} quantile of the latency"


class MemoryAtMost(Criterion):
    """Peak memory of a fresh process; the limit names its unit."""

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


RULES: dict[str, type[Criterion]] = {
    "at_least": AtLeast,
    "at_most": AtMost,
    "better_than_baseline": BetterThanBaseline,
    "not_worse_than_baseline": NotWorseThanBaseline,
    "latency_at_most": LatencyAtMost,
    "latency_quantile_at_most": LatencyQuantileAtMost,
    "memory_at_most": MemoryAtMost,
}
AnyCriterion = Annotated[
    AtLeast | AtMost | BetterThanBaseline | NotWorseThanBaseline | LatencyAtMost | LatencyQuantileAtMost | MemoryAtMost,
    Field(discriminator="rule"),
]


class DecideConfig(Section):
    """The gate: every criterion must pass for `deploy`."""

    policy: Literal["interval", "point"]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    looks: PositiveInt
    seeds: PositiveInt  # runs of this recipe that must all pass; 1 is this one alone
    license: Text | None  # of the adapter, for its card, as the Hub spells it; null: not stated
    criteria: Annotated[tuple[AnyCriterion, ...], Field(min_length=1)]

    @property
    def confidence_of_a_look(self) -> float:
        """The confidence of one look when `looks` of them share the error probability (Bonferroni)."""
        return 1 - (1 - self.confidence) / self.looks


class DecideParams(Section):
    """What decide is given of params.yaml: the gate, and all that makes another run another recipe's, not a seed's."""

    recipe: Text
    environment: Environment
    seed: Seed
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    decide: DecideConfig
