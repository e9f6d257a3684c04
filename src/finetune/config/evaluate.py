"""The section `evaluate` of params.yaml: the two sides, their settings, and the scorers of their answers."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from finetune.config.model import Environment, ModelConfig
from finetune.config.scorers import LOSS, PERPLEXITY, AnyScorer, Metric, Scorer, metrics_of
from finetune.config.types import Count, PositiveFloat, PositiveInt, Section, Seed, Sha256, Text, Url

# ------------------------------------------------------------------------------------------------- the two sides


class BaseSpec(Section):
    """The base model without an adapter."""

    form: Literal["base"]


class EarlierAdapterSpec(Section):
    """An earlier adapter on the same base: `out/adapter` of a git revision or of a DVC experiment."""

    form: Literal["adapter"]
    revision: Text


class ModelSpec(Section):
    """Another model, with its own tokenizer and chat template."""

    form: Literal["model"]
    model: ModelConfig


class RecordedSpec(Section):
    """Answers that were recorded elsewhere, with their latencies; the verdict mentions it."""

    form: Literal["recorded"]
    name: Text  # its name in the report
    path: Text  # JSON lines: id (or prompt), text, seconds, tokens
    sha256: Sha256


class ServerSpec(Section):
    """A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama."""

    form: Literal["server"]
    url: Url  # up to /v1
    model: Text
    api_key_variable: Text | None  # the environment variable that holds the key
    timeout_seconds: PositiveFloat


class AdapterSpec(Section):
    """The published adapter on its base model, as in training."""

    form: Literal["adapter"]


class MergedSpec(Section):
    """Base and adapter merged to one 16-bit model, optionally quantized again."""

    form: Literal["merged"]
    quantization: Literal["none", "nf4"]


BASELINES: dict[str, type[Section]] = {
    "base": BaseSpec,
    "adapter": EarlierAdapterSpec,
    "model": ModelSpec,
    "recorded": RecordedSpec,
    "server": ServerSpec,
}
CANDIDATES: dict[str, type[Section]] = {"adapter": AdapterSpec, "merged": MergedSpec, "server": ServerSpec}
Baseline = Annotated[BaseSpec | EarlierAdapterSpec | ModelSpec | RecordedSpec | ServerSpec, Field(discriminator="form")]
Candidate = Annotated[AdapterSpec | MergedSpec | ServerSpec, Field(discriminator="form")]


# ------------------------------------------------------------------------------------------------------- the section


class SamplingConfig(Section):
    """Sampled answers in place of greedy ones; the seed is the run's."""

    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]


class LatencyConfig(Section):
    """The latency pass: the number of prompts, after warmup ones. Below 20 prompts, intervals are unreliable."""

    prompts: Annotated[int, Field(ge=20)]
    warmup: Count


class MemoryConfig(Section):
    """The memory pass: peak memory of several fresh processes, with `batch_size` prompts each."""

    processes: Annotated[int, Field(ge=3)]
    batch_size: PositiveInt


class ForgettingConfig(Section):
    """Tasks of the lm-evaluation-harness for both sides, to measure what the adapter has forgotten."""

    tasks: Annotated[tuple[Text, ...], Field(min_length=1)]
    folder: Text | None  # of your own tasks, in scorers/
    limit: PositiveInt | None  # examples per task; null is all


class EvaluateConfig(Section):
    """The two sides whose answers to the test split are compared, and how they are produced and scored."""

    baseline: Baseline
    candidate: Candidate
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    sampling: SamplingConfig | None  # null: greedy
    scorers: dict[Text, AnyScorer]
    latency: LatencyConfig
    memory: MemoryConfig
    forgetting: ForgettingConfig | None

    @field_validator("scorers")
    @classmethod
    def _names(cls, scorers: dict[str, Scorer]) -> dict[str, Scorer]:
        if not scorers:
            raise ValueError("has no scorers; one example is exact_match: {scorer: exact_match, of: null}")
        for name in scorers:
            if "." in name or name in (LOSS.name, PERPLEXITY.name):
                raise ValueError(f"{name!r} can't be the name of a scorer: it is reserved, or contains a dot")
        return scorers

    @property
    def metrics(self) -> dict[str, Metric]:
        """All metrics of the run, by name."""
        return metrics_of(self.scorers)


class EvaluateParams(Section):
    """The parameters of evaluate."""

    environment: Environment
    seed: Seed
    model: ModelConfig
    evaluate: EvaluateConfig
