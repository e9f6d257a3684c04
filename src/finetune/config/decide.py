"""The section `decide` of params.yaml: the criteria of the gate, and the required confidence."""

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
    seeds: PositiveInt  # runs of this recipe that must all pass; 1 means only this one
    license: Text | None  # of the adapter, for its card, in the Hub's spelling; null: not stated
    criteria: Annotated[tuple[AnyCriterion, ...], Field(min_length=1)]

    @property
    def confidence_of_a_look(self) -> float:
        """The confidence of one look if `looks` of them share the error probability (Bonferroni)."""
        return 1 - (1 - self.confidence) / self.looks


class DecideParams(Section):
    """The parameters of decide: the gate, and everything that distinguishes recipes, as opposed to seeds."""

    recipe: Text
    environment: Environment
    seed: Seed
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    decide: DecideConfig
