"""Compute the scores of both sides' answers.

    exact_match: {scorer: exact_match, of: null}      answer "ValueError" -> scores {"exact_match": 1.0}
    exceptions: {scorer: classification, of: [a], …}  answer of agent a   -> scores {"exceptions.accuracy": 1.0},
                                                                             labels {"exceptions": "ValueError"}

An answer that cannot be scored has the score None and a reported problem; no answer of a model stops a run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.answers.matching import UnscorableError
from finetune.config import scorers as kinds
from finetune.errors import ConfigError
from finetune.records.examples import Answer, Example
from finetune.reports.evaluation import Role
from finetune.score.judge import judge_answers
from finetune.score.metrics import SIDES
from finetune.score.server import ChatServer

MOST_CLASSES = 1_000  # the likelihood of each is computed; data with more classes are not a classification
Labels = Sequence[str | None]


@dataclass(frozen=True)
class BuiltScorer:
    """A scorer ready for use: `score` rates an answer, `classes` belong to a classification, `server` to a judge."""

    name: str
    asked: kinds.Scorer
    key: str  # of an answer's scores
    lowest: float
    highest: float
    score: kinds.Score | None = None
    classes: tuple[str, ...] = ()
    server: ChatServer | None = None

    def counts(self, example: Example) -> bool:
        """Return whether it scores this example: all, or those of the agents or sources in `of`."""
        return self.asked.of is None or example.agent in self.asked.of or example.source in self.asked.of


@dataclass(frozen=True)
class Problem:
    """Answers of one side that a scorer could not score: their number, and the reason of the first."""

    scorer: str
    side: Role
    count: int
    example: str  # the first one's id
    reason: str


@dataclass(frozen=True)
class Scored:
    """Both sides' answers with scores and labels, in the order of the examples, and the data for the report."""

    baseline: list[Answer]
    candidate: list[Answer]
    problems: list[Problem]
    judges: dict[str, dict[str, Any]]  # by scorer: judge, consistency between orders, failures


@dataclass(frozen=True)
class Scorers:
    """All scorers of a run, ready for use."""

    built: Mapping[str, BuiltScorer]

    @property
    def by_likelihood(self) -> dict[str, BuiltScorer]:
        """The scorers that need the model's most likely label among their `classes`."""
        return {
            name: one
            for name, one in self.built.items()
            if isinstance(one.asked, kinds.Classification) and one.asked.by == "likelihood"
        }

    def score(
        self,
        examples: Sequence[Example],
        baseline: Sequence[Answer],
        candidate: Sequence[Answer],
        likeliest: Mapping[str, Mapping[str, Labels]],
    ) -> Scored:
        """Return both sides' answers with scores and labels.

        `likeliest` holds each example's most likely label, by side and scorer of `by_likelihood`; None or a missing
        scorer means that the side cannot compute it.
        """
        given = {"baseline": baseline, "candidate": candidate}
        problems: list[Problem] = []
        answers: dict[Role, list[Answer]] = {}
        for side in SIDES:
            answers[side], found = score_answers(self.built, examples, given[side], side, likeliest.get(side, {}))
            problems += found
        judges: dict[str, dict[str, Any]] = {}
        for name, scorer in self.built.items():
            if scorer.server is not None and isinstance(scorer.asked, kinds.Judge):
                counted = [at for at, example in enumerate(examples) if scorer.counts(example)]
                judges[name] = judge_answers(scorer.server, scorer.asked, scorer.key, counted, examples, answers)
        return Scored(answers["baseline"], answers["candidate"], problems, judges)


def score_answers(
    built: Mapping[str, BuiltScorer],
    examples: Sequence[Example],
    answers: Sequence[Answer],
    side: Role,
    likeliest: Mapping[str, Labels],
) -> tuple[list[Answer], list[Problem]]:
    """Score one side's answers with all scorers except judges; also return what could not be scored.

    A failed answer of the candidate has the lowest score, one of the baseline none: the baseline's failures are not
    evidence for the candidate.
    """
    scored = list(answers)
    problems = []
    for name, scorer in built.items():
        if scorer.server is not None:
            continue
        unscored: list[tuple[str, str]] = []
        for at, example in enumerate(examples):
            if scorer.counts(example):
                given = likeliest.get(name)
                label = given[at] if given is not None else None
                scored[at], reason = _with_score(scorer, example, scored[at], side, label, asked=given is not None)
                if reason is not None:
                    unscored.append((example.id, reason))
        if unscored:
            problems.append(Problem(name, side, len(unscored), *unscored[0]))
    return scored, problems


def _with_score(
    scorer: BuiltScorer, example: Example, answer: Answer, side: Role, likeliest: str | None, *, asked: bool
) -> tuple[Answer, str | None]:
    """Return the answer with this scorer's score, and the reason if it has none."""
    labels = answer.labels
    reason = None
    try:
        if answer.failed is not None:
            score = scorer.lowest if side == "candidate" else None
            reason = None if side == "candidate" else f"no answer: {answer.failed}"
            labels = labels | {scorer.name: None} if scorer.classes else labels
        elif isinstance(scorer.asked, kinds.Classification):
            if scorer.asked.by == "generation":
                likeliest = class_in(answer.text, scorer.classes)
            elif not asked:
                raise UnscorableError("this side has no class likelihoods")
            labels = labels | {scorer.name: likeliest}
            score = float(likeliest == example.completion.strip())
        else:
            assert scorer.score is not None
            score = scorer.score(answer.text, example)
            if not math.isfinite(score):
                raise UnscorableError(f"the score is {score}")
    except Exception as error:  # an error of one scorer on one answer is reported, but does not end a run of hours
        score = None
        reason = str(error) if isinstance(error, UnscorableError) else f"{type(error).__name__}: {error!s:.200}"
    return replace(answer, scores=answer.scores | {scorer.key: score}, labels=labels), reason


def classes_of(
    asked: kinds.Classification, examples: Sequence[Example], labels: Mapping[str, Sequence[str]], place: str
) -> list[str]:
    """Return the scorer's classes, sorted. Raise ConfigError, at the key `place`, if they do not fit the references.

    Without its own `labels`: those of its agents (by agent, as counted by prepare) and of the test examples.
    """
    references = {example.completion.strip() for example in examples}
    if asked.labels is not None:
        classes = {label.strip() for label in asked.labels}
        if missing := sorted(references - classes):
            what = f"lacks {missing[0]!r:.80}, the reference of a test example ({len(missing)} such labels)"
            raise ConfigError(f"{place}.labels", what, "add it, or list in `of` the agents that use these labels")
    else:
        agents = {example.agent for example in examples}
        classes = references.union(*({label.strip() for label in labels.get(agent, ())} for agent in agents))
    if not 2 <= len(classes) <= MOST_CLASSES:
        what = f"has {len(classes):,} classes; a classification needs 2 to {MOST_CLASSES:,}"
        raise ConfigError(place, what, "list the labels, or list in `of` the agents that classify")
    return sorted(classes)


def class_in(answer: str, classes: Sequence[str] | frozenset[str]) -> str | None:
    """Return the class that the answer names, ignoring surrounding white space; None if it is none of them."""
    text = answer.strip()
    return text if text in classes else None
