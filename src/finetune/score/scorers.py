"""Build the scorers of params.yaml for a run's test examples, before any model is loaded.

    words: {scorer: function, of: null, function: scorers.example.share_of_words, lowest: 0.0, highest: 1.0}

Each becomes a `BuiltScorer`; the problems of all scorers are reported together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.answers.matching import UnscorableError
from finetune.config import scorers as kinds
from finetune.errors import ConfigError, Problem
from finetune.records.examples import Example
from finetune.score.scoring import BuiltScorer, Scorers, classes_of
from finetune.score.server import ChatServer


def build_scorers(
    scorers: Mapping[str, kinds.Scorer], labels: Mapping[str, Sequence[str]], examples: Sequence[Example], root: Path
) -> Scorers:
    """Build all scorers of a run for its test examples. Raise one ConfigError with all problems.

    `labels` are the known classes by agent, `root` is the working tree, which contains `scorers/`.
    """
    built: dict[str, BuiltScorer] = {}
    wrong: list[Problem] = []
    for name, spec in scorers.items():
        of = spec.of
        counted = [example for example in examples if of is None or {example.agent, example.source} & set(of)]
        try:
            built[name] = _build(name, spec, labels, counted, root)
        except ConfigError as error:
            wrong += error.problems
    if wrong:
        raise ConfigError.of(wrong)
    return Scorers(built)


def _build(
    name: str, spec: kinds.Scorer, labels: Mapping[str, Sequence[str]], examples: Sequence[Example], root: Path
) -> BuiltScorer:
    """Build one scorer. Raise ConfigError if it cannot be used."""
    metric = spec.metrics(name)[0]
    assert metric.scored_as is not None
    ready = BuiltScorer(name, spec, metric.scored_as, metric.lowest, metric.highest)
    key = f"evaluate.scorers.{name}"
    place = f"params.yaml: {key}"
    if isinstance(spec, kinds.Judge):
        server = ChatServer(spec.url, spec.model, spec.api_key_variable, spec.timeout_seconds, key)
        return replace(ready, server=server)
    if isinstance(spec, kinds.Classification):
        return replace(ready, classes=tuple(classes_of(spec, examples, labels, place)))
    score = spec.build(place, root)
    if spec.reads_references:
        _check_references(score, place, examples)
    return replace(ready, score=score)


def _check_references(score: kinds.Score, place: str, examples: Sequence[Example]) -> None:
    """Raise ConfigError if no reference is comparable at all: the pattern or the agents must be wrong."""
    reason = None
    for example in examples:
        try:
            score(example.completion, example)
            return
        except UnscorableError as error:
            reason = str(error)
    if reason is not None:
        message = f"{reason}, in any of {len(examples):,} test examples"
        raise ConfigError(place, message, "fix it, or name other agents in `of`")
