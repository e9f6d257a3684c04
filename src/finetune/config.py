"""The run's parameters, typed, frozen and strict.

Reads `params.yaml` (YAML 1.2) and gives a `Config`, or one `ConfigError` that lists every mistake with its full key,
what was found, what is allowed and, for an unknown key, the nearest known one. No value that changes a result has a
default here: a key that is missing is an error.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune.config_data import DataConfig
from finetune.config_decide import RULES, AtLeast, AtMost, DecideConfig, NotWorseThanBaseline, QualityCriterion
from finetune.config_errors import Tagged, describe_errors
from finetune.config_evaluate import BASELINES, CANDIDATES, EvaluateConfig
from finetune.config_model import AdapterConfig, Environment, ModelConfig
from finetune.config_scorers import SCORERS
from finetune.config_types import Count, NonNegative, OpenShare, PositiveFloat, PositiveInt, Section, Seed, Share, Text
from finetune.errors import ConfigError

Runtime = Literal["native", "docker", "podman"]
Machine = Literal["this", "h200", "h100", "a100-80gb", "gpu-24gb", "mac-32gb", "mac-16gb", "cpu-48-64gb"]
MOST_VALUES = 100_000  # in one file: a dozen lines of aliases can stand for billions
TAGGED = (
    Tagged(("decide", "criteria", None), "rule", RULES),
    Tagged(("evaluate", "scorers", None), "scorer", SCORERS),
    Tagged(("evaluate", "baseline"), "form", BASELINES),
    Tagged(("evaluate", "candidate"), "form", CANDIDATES),
)
DETERMINES_ADAPTER = {"environment", "seed", "model", "adapter", "train"}  # the sections that training reads


# --------------------------------------------------------------------------------------------------------- train


class BudgetConfig(Section):
    """Shares that truncation and padding may cost; validate makes an error of more."""

    truncated_examples: Share
    lost_end_tokens: Share  # of the examples
    lost_supervised_tokens: Share
    padding: Share  # of the positions that the device computes


class DistributedConfig(Section):
    """On how many devices a run is spread, and how; offload keys in DeepSpeed's spelling."""

    nodes: PositiveInt  # machines that share the devices evenly
    devices: PositiveInt  # of all nodes together; on a CPU, processes
    strategy: Literal["none", "ddp", "fsdp", "zero2", "zero3"]
    offload_optimizer: Literal["none", "cpu"]
    offload_param: Literal["none", "cpu"]

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if self.devices > 1 and self.strategy == "none":
            raise ValueError(f"{self.devices} devices need a strategy: ddp, fsdp, zero2 or zero3")
        if self.devices % self.nodes:
            raise ValueError(f"{self.devices} devices can't be shared evenly by {self.nodes} nodes")
        return self


class TrainConfig(Section):
    """The optimization; keys in the spelling of TRL and transformers."""

    max_length: Annotated[int, Field(ge=8)]
    budget: BudgetConfig
    packing: bool
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"]
    num_train_epochs: PositiveFloat
    per_device_train_batch_size: PositiveInt
    per_device_eval_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    effective_batch_size: PositiveInt  # what the three numbers above must make
    distributed: DistributedConfig
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: NonNegative
    weight_decay: NonNegative
    adam_beta1: OpenShare
    adam_beta2: OpenShare
    adam_epsilon: PositiveFloat
    max_grad_norm: NonNegative
    bf16: bool
    fp16: bool
    tf32: bool
    activation_checkpointing: bool
    use_liger_kernel: bool
    torch_compile: bool
    logging_steps: PositiveInt
    eval_steps: PositiveInt
    save_steps: PositiveInt
    save_total_limit: Annotated[int, Field(ge=2)]
    load_best_model_at_end: bool
    early_stopping_patience: PositiveInt | None
    early_stopping_threshold: NonNegative
    dataloader_num_workers: Count
    deterministic: bool
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...]

    @field_validator("warmup_steps")
    @classmethod
    def _whole_or_share(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"{value:g} is neither a share of the run (below 1) nor a whole number of steps")
        return value

    @model_validator(mode="after")
    def _one_mixed_precision(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both true; choose one")
        return self


# ------------------------------------------------------------------------------------------------------ the whole


class FindingsConfig(Section):
    """Which of validate's findings are known and accepted, by code, each with its reason."""

    accept: dict[Text, Annotated[str, Field(pattern=r"\S")]]


class Config(Section):
    """The whole of params.yaml."""

    recipe: Text
    machine: Machine  # what the plan reckons with
    environment: Environment
    runtime: Runtime  # where the stages run
    seed: Seed
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    findings: FindingsConfig
    evaluate: EvaluateConfig
    decide: DecideConfig

    @model_validator(mode="after")
    def _metal_is_native(self) -> Self:
        if self.environment == "apple" and self.runtime != "native":
            raise ValueError(f"runtime: {self.runtime}: a container on a Mac can't reach its GPU; use native")
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
        """ValueError unless the scorers give the metric, and the rule suits it."""
        metric = self.evaluate.metrics.get(criterion.metric)
        if metric is None:
            known = ", ".join(self.evaluate.metrics)
            raise ValueError(
                f"{key}.metric: no scorer gives {criterion.metric!r}; use one of {known}, or add to evaluate.scorers"
            )
        if isinstance(criterion, AtLeast | AtMost):
            if isinstance(criterion, AtLeast) != metric.higher_is_better:
                better, rule = ("more", "at_least") if metric.higher_is_better else ("less", "at_most")
                raise ValueError(f"{key}.rule: of {metric.name}, {better} is better; write {rule}")
            if not metric.lowest < criterion.threshold < metric.highest:
                raise ValueError(
                    f"{key}.threshold: must lie between {metric.lowest:g} and {metric.highest:g}; "
                    f"found {criterion.threshold:g}"
                )
        elif isinstance(criterion, NotWorseThanBaseline) and criterion.margin >= metric.highest - metric.lowest:
            raise ValueError(f"{key}.margin: {criterion.margin:g} is the whole range of {metric.name}")


def read_yaml(path: Path) -> Any:
    """The file's content as plain Python objects, by the rules of YAML 1.2; ConfigError where it can't be read."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        if _size(content, {}) > MOST_VALUES:
            raise ConfigError(f"{path}: its aliases stand for more than {MOST_VALUES} values; write out what is needed")
        return content
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the top of the repository") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{path}: {where}not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # ruamel lets these out, of escapes, numbers, dates and tags that stand for nothing
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ConfigError(f"{path}: not valid YAML: {why}") from None


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are, an alias counted as all that it stands for; RecursionError where it holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum([_size(item, known) for item in inside])
    return known[id(value)]


def load_config(path: Path) -> Config:
    """`params.yaml` as a Config; one ConfigError that names every mistake in it."""
    return parse_config(read_yaml(path), str(path))


def parse_config(content: Any, where: str) -> Config:
    """A Config from plain objects; `where` names their file in errors."""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: is empty or no mapping; it must hold the sections {', '.join(Config.model_fields)}"
        )
    try:
        return Config.model_validate(_lists_to_tuples(content))
    except ValidationError as error:
        lines = describe_errors(error, Config, TAGGED)
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _lists_to_tuples(value: Any) -> Any:
    """Strict pydantic takes no list for a tuple, and only tuples stay frozen."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_lists_to_tuples(item) for item in value)
    return value
