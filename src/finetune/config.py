"""The run's parameters, typed, frozen and strict.

Reads `params.yaml` (YAML 1.2) and gives a `Config`, or one `ConfigError` that lists every mistake with its full key,
what was found, what is allowed and, for an unknown key, the nearest known one. No value that changes a result has a
default here: a key that is missing is an error.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune.config_data import DataConfig
from finetune.config_errors import describe_errors
from finetune.config_types import (
    ALL,
    Count,
    MemoryAmount,
    NonNegative,
    OpenShare,
    PositiveFloat,
    PositiveInt,
    Revision,
    Section,
    Share,
    Text,
    parse_bytes,
)
from finetune.errors import ConfigError

Environment = Literal["cpu", "cuda", "apple"]
Machine = Literal["this", "h200", "h100", "a100-80gb", "gpu-24gb", "mac-32gb", "mac-16gb", "cpu-48-64gb"]


# --------------------------------------------------------------------------------------------------------- model


class ModelConfig(Section):
    """The frozen base model and how it is held in memory."""

    base: Text
    revision: Revision | None
    chat_template: Text | None  # a file in the repository, in place of the base's own
    pad_token: Text | None  # a token of the base's vocabulary, in place of the base's own
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["none", "nf4"]
    attention: Literal[
        "auto", "sdpa", "eager", "flash_attention_2"
    ]  # auto: flash_attention_2 where it can run, else sdpa


class AdapterConfig(Section):
    """The LoRA weights; keys in PEFT's spelling."""

    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)]
    use_rslora: bool
    use_dora: bool
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"]


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


# ------------------------------------------------------------------------------------------- evaluate and decide


class LatencyConfig(Section):
    """The latency pass: so many prompts, after so many that are not counted. Below 20 no interval can be trusted."""

    prompts: Annotated[int, Field(ge=20)]
    warmup: Count


class MemoryConfig(Section):
    """The memory pass: peak memory of so many fresh processes, `batch_size` prompts each."""

    processes: Annotated[int, Field(ge=3)]
    batch_size: PositiveInt


class EvaluateConfig(Section):
    """Greedy generation on the test split, by the base and by the candidate."""

    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    latency: LatencyConfig
    memory: MemoryConfig


QualityMetric = Literal["exact_match", "macro_f1"]


class Criterion(Section):
    """What every line of the gate has: its rule in words."""

    def describe(self) -> str:
        """The rule in words, e.g. `exact_match of exception-namer at least 0.6`."""
        raise NotImplementedError


class QualityCriterion(Criterion):
    """A criterion on the answers: of all test examples, or of one agent's."""

    metric: QualityMetric
    group: Text

    @property
    def subject(self) -> str:
        """What is measured, in words."""
        return self.metric if self.group == ALL else f"{self.metric} of {self.group}"


class AtLeast(QualityCriterion):
    """The candidate's metric is at least `threshold`."""

    rule: Literal["at_least"]
    threshold: OpenShare

    def describe(self) -> str:
        return f"{self.subject} at least {self.threshold:g}"


class BetterThanBaseline(QualityCriterion):
    """The candidate's metric is above the baseline's, paired by example."""

    rule: Literal["better_than_baseline"]

    def describe(self) -> str:
        return f"{self.subject} better than the baseline"


class NotWorseThanBaseline(QualityCriterion):
    """The candidate's metric is below the baseline's by less than `margin`, paired by example."""

    rule: Literal["not_worse_than_baseline"]
    margin: OpenShare

    def describe(self) -> str:
        return f"{self.subject} not worse than the baseline by {self.margin:g}"


class LatencyAtMost(Criterion):
    """Mean seconds an answer, and optionally the share that it must be shorter than the baseline's."""

    rule: Literal["latency_at_most"]
    seconds: PositiveFloat
    improvement: Share | None

    def describe(self) -> str:
        asked = "" if self.improvement is None else f" and {self.improvement:.0%} under the baseline"
        return f"mean latency under {self.seconds:g} s{asked}"


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


RULES: dict[str, type[Criterion]] = {
    "at_least": AtLeast,
    "better_than_baseline": BetterThanBaseline,
    "not_worse_than_baseline": NotWorseThanBaseline,
    "latency_at_most": LatencyAtMost,
    "memory_at_most": MemoryAtMost,
}
AnyCriterion = Annotated[
    AtLeast | BetterThanBaseline | NotWorseThanBaseline | LatencyAtMost | MemoryAtMost, Field(discriminator="rule")
]


class DecideConfig(Section):
    """The gate: every criterion must pass for `deploy`."""

    policy: Literal["interval", "point"]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    looks: PositiveInt
    criteria: Annotated[tuple[AnyCriterion, ...], Field(min_length=1)]

    @property
    def confidence_of_a_look(self) -> float:
        """The confidence of one look when `looks` of them share the error probability (Bonferroni)."""
        return 1 - (1 - self.confidence) / self.looks


# ------------------------------------------------------------------------------------------------------ the whole


class FindingsConfig(Section):
    """Which of validate's findings are known and accepted, by code, each with its reason."""

    accept: dict[Text, Annotated[str, Field(pattern=r"\S")]]


class Config(Section):
    """The whole of params.yaml."""

    recipe: Text
    machine: Machine  # what the plan reckons with
    environment: Environment
    runtime: Literal["native"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    findings: FindingsConfig
    evaluate: EvaluateConfig
    decide: DecideConfig


def read_yaml(path: Path) -> Any:
    """The file's content as plain Python objects, by the rules of YAML 1.2; ConfigError where it can't be read."""
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
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
        lines = describe_errors(error, Config, RULES)
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _lists_to_tuples(value: Any) -> Any:
    """Strict pydantic takes no list for a tuple, and only tuples stay frozen."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_lists_to_tuples(item) for item in value)
    return value
