"""The parameters of validate and plan: all except where the stages run."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.data import DataConfig
from finetune.config.decide import DecideConfig
from finetune.config.evaluate import EvaluateConfig
from finetune.config.model import AdapterConfig, Environment, ModelConfig
from finetune.config.train import TrainConfig
from finetune.config.types import Section, Seed, Text

Machine = Literal["this", "h200", "h100", "a100-80gb", "gpu-24gb", "mac-32gb", "mac-16gb", "cpu-48-64gb"]


class FindingsConfig(Section):
    """The findings of validate that are accepted, by code, each with its reason."""

    accept: dict[Text, Annotated[str, Field(pattern=r"\S")]]


class ValidateParams(Section):
    """The sections that validate checks against each other, the data and the machine."""

    recipe: Text
    machine: Machine  # the machine that the plan assumes
    environment: Environment
    seed: Seed
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    findings: FindingsConfig
    evaluate: EvaluateConfig
    decide: DecideConfig
