"""The section `decide` of params.yaml: the criteria of the gate, and how sure it must be."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.criteria import AnyCriterion
from finetune.config.data import DataConfig
from finetune.config.evaluate import EvaluateConfig
from finetune.config.model import AdapterConfig, Environment, ModelConfig
from finetune.config.train import TrainConfig
from finetune.config.types import PositiveInt, Section, Seed, Text


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
