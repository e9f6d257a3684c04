"""The run's parameters, typed, immutable and strict.

Reads `params.yaml` (YAML 1.2) and returns a `Config`, or raises one `ConfigError` that lists every mistake with its
full key, the value found, the allowed values and, for an unknown key, the most similar known one. No value that changes
a result has a default here: a missing key is an error.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from finetune.config.criteria import RULES, QualityCriterion
from finetune.config.data import PrepareParams
from finetune.config.decide import DecideParams
from finetune.config.errors import Tagged
from finetune.config.evaluate import BASELINES, CANDIDATES, EvaluateParams
from finetune.config.loading import parse_section, read_yaml
from finetune.config.scorers import SCORERS
from finetune.config.train import TrainParams
from finetune.config.types import Section
from finetune.config.validate import ValidateParams

Runtime = Literal["native", "docker", "podman"]

STAGE_PARAMS: dict[str, type[Section]] = {
    "prepare": PrepareParams,
    "validate": ValidateParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "decide": DecideParams,
}
TAGGED = (
    Tagged(("decide", "criteria", None), "rule", RULES),
    Tagged(("evaluate", "scorers", None), "scorer", SCORERS),
    Tagged(("evaluate", "baseline"), "form", BASELINES),
    Tagged(("evaluate", "candidate"), "form", CANDIDATES),
)


class Config(ValidateParams):
    """The complete params.yaml."""

    runtime: Runtime  # where the stages run

    @model_validator(mode="after")
    def _metal_is_native(self) -> Self:
        if self.environment == "apple" and self.runtime != "native":
            raise ValueError(f"runtime: {self.runtime}: containers on a Mac can't use its GPU; use native")
        return self

    @model_validator(mode="after")
    def _criteria_can_be_judged(self) -> Self:
        told: dict[str, int] = {}
        for at, criterion in enumerate(self.decide.criteria):
            key = f"decide.criteria.{at}"
            if criterion.about in told:
                first = told[criterion.about]
                raise ValueError(f"{key}: contradicts or repeats decide.criteria.{first} ({criterion.about}); keep one")
            told[criterion.about] = at
            if isinstance(criterion, QualityCriterion):
                self._check_metric(key, criterion)
        return self

    def _check_metric(self, key: str, criterion: QualityCriterion) -> None:
        """Raise ValueError unless the scorers produce the metric and the rule suits it."""
        metric = self.evaluate.metrics.get(criterion.metric)
        if metric is None:
            known = ", ".join(self.evaluate.metrics)
            raise ValueError(
                f"{key}.metric: no scorer provides {criterion.metric!r}; use one of {known}, or add a scorer "
                "to evaluate.scorers"
            )
        if problem := criterion.misfit(metric):
            raise ValueError(f"{key}.{problem}")


def load_config(path: Path) -> Config:
    """Load `params.yaml` as a Config. Raise one ConfigError that lists every mistake in it."""
    return parse_config(read_yaml(path), str(path))


def parse_config(content: Any, where: str) -> Config:
    """Build a Config from plain objects; `where` names their file in errors."""
    return parse_section(content, Config, where, TAGGED)


def params_of(stage: str, config: Config) -> Section:
    """Return the parameters of a stage: exactly the keys that dvc.yaml declares for it."""
    return STAGE_PARAMS[stage].select_from(config)
