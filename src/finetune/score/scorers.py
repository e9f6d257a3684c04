"""The scorers of params.yaml made ready for a run's test examples, before any model is loaded.

    words: {scorer: function, of: null, function: scorers.example.share_of_words, lowest: 0.0, highest: 1.0}

Each becomes a `BuiltScorer`; all that is wrong with any of them is told together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from finetune.config import scorers as kinds
from finetune.errors import ConfigError, Problem
from finetune.records.examples import Example
from finetune.score import structured, texts
from finetune.score.classes import classes_of
from finetune.score.functions import FOLDER, call_function, load_function
from finetune.score.matching import (
    UnscorableError,
    compile_pattern,
    contains,
    exact_match,
    normalized_match,
    numeric,
)
from finetune.score.schemas import compile_schema
from finetune.score.scoring import BuiltScorer, Score, Scorers
from finetune.score.server import ChatServer


def build_scorers(
    scorers: Mapping[str, kinds.Scorer], labels: Mapping[str, Sequence[str]], examples: Sequence[Example], root: Path
) -> Scorers:
    """All scorers of a run, ready for its test examples; ConfigError tells all that is wrong with them at once.

    `labels` are the known classes by agent, `root` is the working tree, which holds `scorers/`.
    """
    built: dict[str, BuiltScorer] = {}
    wrong: list[Problem] = []
    for name, asked in scorers.items():
        counted = [
            example for example in examples if asked.of is None or {example.agent, example.source} & set(asked.of)
        ]
        try:
            built[name] = _build(name, asked, labels, counted, root)
        except ConfigError as error:
            wrong += error.problems
    if wrong:
        raise ConfigError.of(wrong)
    return Scorers(built)


def _build(
    name: str, asked: kinds.Scorer, labels: Mapping[str, Sequence[str]], examples: Sequence[Example], root: Path
) -> BuiltScorer:
    """One scorer; ConfigError where it can't be used."""
    metric = asked.metrics(name)[0]
    assert metric.scored_as is not None
    ready = BuiltScorer(name, asked, metric.scored_as, metric.lowest, metric.highest)
    key = f"evaluate.scorers.{name}"
    place = f"params.yaml: {key}"
    if isinstance(asked, kinds.Judge):
        server = ChatServer(asked.url, asked.model, asked.api_key_variable, asked.timeout_seconds, key)
        return replace(ready, server=server)
    if isinstance(asked, kinds.Classification):
        return replace(ready, classes=tuple(classes_of(asked, examples, labels, place)))
    score = _score_of(asked, place, root)
    if isinstance(asked, kinds.RegularExpression | kinds.Numeric):
        _check_references(score, place, examples)
    return replace(ready, score=score)


def _check_references(score: Score, place: str, examples: Sequence[Example]) -> None:
    """ConfigError where no reference at all can be compared with: the pattern or the agents must be wrong."""
    reason = None
    for example in examples:
        try:
            score(example.completion, example)
            return
        except UnscorableError as error:
            reason = str(error)
    if reason is not None:
        message = f"{reason}, in any of {len(examples):,} test examples"
        raise ConfigError(place, message, "correct it, or name others in `of`")


def _score_of(asked: kinds.Scorer, place: str, root: Path) -> Score:
    """How one answer is scored; ConfigError names the key that is wrong."""
    if (compare := _comparison_of(asked, place)) is not None:
        return lambda answer, example: float(compare(answer, example.completion))
    match asked:
        case kinds.JsonValid():
            is_valid = _schema(asked.schema_file, f"{place}.schema_file", root)
            return lambda answer, _: float(is_valid(answer))
        case kinds.PythonParses():
            return lambda answer, _: float(structured.python_parses(answer))
        case kinds.ToolCalls():
            return lambda answer, example: float(structured.same_calls(answer, example.messages[-1]))
        case kinds.Function():
            function = load_function(asked.function, f"{place}.function", root)
            return partial(call_function, function, asked.lowest, asked.highest)
    raise AssertionError(asked)


def _comparison_of(asked: kinds.Scorer, place: str) -> Callable[[str, str], float] | None:
    """How the answer's text is compared with the reference's, or None where more than the two is needed."""
    match asked:
        case kinds.ExactMatch():
            return exact_match
        case kinds.NormalizedMatch():
            return partial(normalized_match, ignore=asked.ignore)
        case kinds.Contains():
            return partial(contains, ignore_case=asked.ignore_case)
        case kinds.RegularExpression():
            try:
                return compile_pattern(asked.pattern)
            except ValueError as error:
                raise ConfigError(f"{place}.pattern", str(error)) from None
        case kinds.Numeric():
            absolute, relative = asked.absolute_tolerance, asked.relative_tolerance
            return partial(numeric, absolute_tolerance=absolute, relative_tolerance=relative)
        case kinds.Chrf():
            return texts.chrf
        case kinds.Bleu():
            return texts.bleu
        case kinds.RougeL():
            return texts.rouge_l
    return None


def _schema(name: str | None, place: str, root: Path) -> Callable[[str], bool]:
    if name is None:
        return compile_schema(None)
    folder = (root / FOLDER).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(place, f"{name} is not in {FOLDER}/", "name a file there")
    try:
        return compile_schema(path)
    except ValueError as error:
        raise ConfigError(place, f"{FOLDER}/{name} {error}") from None
