"""The scorers of params.yaml (`evaluate.scorers`): one class each, with its keys, its metrics and its scoring rule.

    {scorer: exact_match, of: null}     answer " ValueError", reference "ValueError" -> 1.0

A score belongs to one example, a metric to many. `metrics_of` lists the metrics that a run's scorers produce, which the
gate's criteria may use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args

from pydantic import Field, model_validator

from finetune.answers import matching, overlap, structured
from finetune.answers.functions import call_function, load_function
from finetune.answers.schemas import compile_schema, schema_file
from finetune.config.types import NonNegative, PositiveFloat, Section, Text, Url
from finetune.errors import ConfigError
from finetune.records.examples import Example

Score = Callable[[str, Example], float]  # of an answer to an example
MetricKind = Literal["binary", "mean", "macro_f1", "weighted_f1", "bleu", "loss", "perplexity"]


@dataclass(frozen=True)
class Metric:
    """A summary of a set of answers; its kind determines how its interval is computed.

    `binary` is the mean of scores of 0 or 1, `mean` that of scores between the bounds; the others are computed from all
    answers together and are not means. `scored_as` is the key of an answer's score; answers without it are not counted.
    """

    name: str
    kind: MetricKind
    scored_as: str | None = None  # None: every answer counts
    lowest: float = 0.0
    highest: float = 1.0
    higher_is_better: bool = True


class Scorer(Section):
    """What all scorers have in common: the agents or sources whose answers are scored; null is all."""

    of: tuple[Text, ...] | None
    reads_references: ClassVar[bool] = False  # some references may be unusable, so that their examples cannot be scored

    def metrics(self, name: str) -> list[Metric]:
        """Return the metrics of this scorer under its name in params.yaml."""
        return [Metric(name, "binary", name)]

    def score(self, answer: str, reference: str) -> float:
        """Score an answer against the reference; accepts any text, in linear time."""
        raise NotImplementedError

    def build(self, place: str, root: Path) -> Score:  # noqa: ARG002
        """Return the scoring function after loading what it needs. Raise ConfigError at the key `place` if that fails.

        `root` is the working tree, which contains `scorers/`.
        """
        return lambda answer, example: float(self.score(answer, example.completion))


class ExactMatch(Scorer):
    """The answer equals the reference, ignoring leading and trailing white space."""

    scorer: Literal["exact_match"]

    def score(self, answer: str, reference: str) -> float:
        return matching.exact_match(answer, reference)


class NormalizedMatch(Scorer):
    """The answer equals the reference, ignoring runs of white space and what `ignore` lists."""

    scorer: Literal["normalized_match"]
    ignore: tuple[Literal["case", "punctuation", "articles", "accents"], ...]

    def score(self, answer: str, reference: str) -> float:
        return matching.normalized_match(answer, reference, self.ignore)


class Contains(Scorer):
    """The answer contains the reference."""

    scorer: Literal["contains"]
    ignore_case: bool

    def score(self, answer: str, reference: str) -> float:
        return matching.contains(answer, reference, ignore_case=self.ignore_case)


class RegularExpression(Scorer):
    """The answer matches the pattern (RE2); a group in it must have the same text as in the reference."""

    scorer: Literal["regular_expression"]
    reads_references: ClassVar[bool] = True
    pattern: Text

    def build(self, place: str, root: Path) -> Score:  # noqa: ARG002
        try:
            matches = matching.compile_pattern(self.pattern)
        except ValueError as error:
            raise ConfigError(f"{place}.pattern", str(error)) from None
        return lambda answer, example: float(matches(answer, example.completion))


class Numeric(Scorer):
    """The last number of the answer equals the reference's, within the larger tolerance; 50% is 0.5 and 50."""

    scorer: Literal["numeric"]
    reads_references: ClassVar[bool] = True
    absolute_tolerance: NonNegative
    relative_tolerance: NonNegative

    def score(self, answer: str, reference: str) -> float:
        return matching.numeric(
            answer,
            reference,
            absolute_tolerance=self.absolute_tolerance,
            relative_tolerance=self.relative_tolerance,
        )


class JsonValid(Scorer):
    """The answer is JSON, and valid against a JSON schema if one is given."""

    scorer: Literal["json_valid"]
    schema_file: Text | None  # a file of scorers/, by its path there

    def build(self, place: str, root: Path) -> Score:
        is_valid = compile_schema(None) if self.schema_file is None else schema_file(self.schema_file, place, root)
        return lambda answer, _: float(is_valid(answer))


class PythonParses(Scorer):
    """The answer (or its first fenced code block) is syntactically valid Python; it is never run."""

    scorer: Literal["python_parses"]

    def score(self, answer: str, reference: str) -> float:  # noqa: ARG002
        return structured.python_parses(answer)


class ToolCalls(Scorer):
    """The answer calls the reference's tools with the same arguments, in the same order."""

    scorer: Literal["tool_calls"]

    def build(self, place: str, root: Path) -> Score:  # noqa: ARG002
        return lambda answer, example: float(structured.same_calls(answer, example.messages[-1]))


class Classification(Scorer):
    """The answer names the reference's class: as generated text, or as the model's most likely label."""

    scorer: Literal["classification"]
    by: Literal["generation", "likelihood"]
    labels: Annotated[tuple[Text, ...], Field(min_length=2)] | None  # null: those of the training and test splits

    def metrics(self, name: str) -> list[Metric]:
        """Return accuracy, and F1 as an unweighted and as a weighted mean over the classes."""
        return [
            Metric(f"{name}.accuracy", "binary", f"{name}.accuracy"),
            Metric(f"{name}.macro_f1", "macro_f1", f"{name}.accuracy"),
            Metric(f"{name}.weighted_f1", "weighted_f1", f"{name}.accuracy"),
        ]


class Bleu(Scorer):
    """BLEU of all answers together, 0 to 1 (sacrebleu)."""

    scorer: Literal["bleu"]

    def metrics(self, name: str) -> list[Metric]:
        """Return one metric of all answers together."""
        return [Metric(name, "bleu", name)]

    def score(self, answer: str, reference: str) -> float:
        return overlap.bleu(answer, reference)


class Chrf(Scorer):
    """chrF of each answer, 0 to 1 (sacrebleu)."""

    scorer: Literal["chrf"]

    def metrics(self, name: str) -> list[Metric]:
        """Return the mean of the examples' scores."""
        return [Metric(name, "mean", name)]

    def score(self, answer: str, reference: str) -> float:
        return overlap.chrf(answer, reference)


class RougeL(Scorer):
    """ROUGE-L of each answer, 0 to 1, as in rouge-score, but with words of any alphabet."""

    scorer: Literal["rouge_l"]

    def metrics(self, name: str) -> list[Metric]:
        """Return the mean of the examples' scores."""
        return [Metric(name, "mean", name)]

    def score(self, answer: str, reference: str) -> float:
        return overlap.rouge_l(answer, reference)


class Function(Scorer):
    """A user-defined function in `scorers/`: `function(answer, reference, example)` returns a number in the bounds."""

    scorer: Literal["function"]
    function: Annotated[str, Field(pattern=r"^scorers(\.[A-Za-z_]\w*)+\.[A-Za-z_]\w*$")]
    lowest: Annotated[float, Field(allow_inf_nan=False)]
    highest: Annotated[float, Field(allow_inf_nan=False)]

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} must be below highest {self.highest:g}")
        return self

    def metrics(self, name: str) -> list[Metric]:
        """Return the mean of the examples' scores."""
        return [Metric(name, "mean", name, self.lowest, self.highest)]

    def build(self, place: str, root: Path) -> Score:
        function = load_function(self.function, f"{place}.function", root)
        return lambda answer, example: call_function(function, self.lowest, self.highest, answer, example)


class Judge(Scorer):
    """A model behind an OpenAI-compatible server that chooses the better of two answers, in both orders.

    A side's score is 1 if both orders prefer it, 0.5 if they disagree, 0 if they prefer the other.
    """

    scorer: Literal["judge"]
    url: Url
    model: Text
    api_key_variable: Text | None
    timeout_seconds: PositiveFloat
    instructions: Text  # criteria for the better answer

    def metrics(self, name: str) -> list[Metric]:
        """Return the mean of the examples' scores: 0.5 is a draw."""
        return [Metric(name, "mean", name)]


CLASSES = (
    *(ExactMatch, NormalizedMatch, Contains, RegularExpression, Numeric, JsonValid, PythonParses, ToolCalls),
    *(Classification, Bleu, Chrf, RougeL, Function, Judge),
)
SCORERS: dict[str, type[Scorer]] = {get_args(kind.model_fields["scorer"].annotation)[0]: kind for kind in CLASSES}
if TYPE_CHECKING:
    AnyScorer = Scorer
else:
    AnyScorer = Annotated[Union[CLASSES], Field(discriminator="scorer")]  # noqa: UP007

# Of the reference, by the model itself: nats per token, and their exponential.
LOSS = Metric("loss", "loss", highest=float("inf"), higher_is_better=False)
PERPLEXITY = Metric("perplexity", "perplexity", lowest=1.0, highest=float("inf"), higher_is_better=False)


def metrics_of(scorers: Mapping[str, Any]) -> dict[str, Metric]:
    """Return all metrics of a run by name: those of its scorers, and loss and perplexity of the reference."""
    found = [metric for name, scorer in scorers.items() for metric in scorer.metrics(name)]
    return {metric.name: metric for metric in [*found, LOSS, PERPLEXITY]}
