"""Metrics: summaries of a set of answers. A score belongs to one example, a metric to many.

Every metric is a function of weights, the number of times that each example counts: weights of one give the metric
itself, and a bootstrap draws other weights.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config.scorers import Metric
from finetune.records.examples import Answer, Prediction
from finetune.reports.evaluation import Role

SIDES: tuple[Role, Role] = ("baseline", "candidate")
Weights = NDArray[np.float64]
Statistic = Callable[[Weights], float]
LARGEST_EXPONENT = 700.0  # beyond it a float becomes infinite, which JSON does not allow


class UnmeasuredError(Exception):
    """A metric that has no value for these answers; the text gives the reason."""


def counted(metric: Metric, predictions: Sequence[Prediction], group: str) -> list[Prediction]:
    """Return the predictions of a group that the metric covers: those assigned to its scorer."""
    key = metric.scored_as
    return [item for item in predictions if item.in_group(group) and (key is None or key in item.candidate.scores)]


def answers_of(predictions: Sequence[Prediction], side: Role) -> list[Answer]:
    """Return one side's answers."""
    return [getattr(prediction, side) for prediction in predictions]


def scores_of(metric: Metric, predictions: Sequence[Prediction], side: Role) -> list[float]:
    """Return the scores whose mean is a metric of kind `right` or `mean`. Raise UnmeasuredError if one is missing."""
    assert metric.scored_as is not None, metric
    found = []
    for prediction, answer in zip(predictions, answers_of(predictions, side), strict=True):
        score = answer.scores.get(metric.scored_as)
        if score is None:
            why = f" ({answer.failed})" if answer.failed else ""
            raise UnmeasuredError(f"{metric.name} has no score for the {side}'s answer to {prediction.id}{why}")
        found.append(score)
    return found


def statistic_of(metric: Metric, predictions: Sequence[Prediction], side: Role) -> Statistic:
    """Return the metric of one side as a function of weights (examples,). Raise UnmeasuredError if it is unknown."""
    if metric.kind in ("loss", "perplexity"):
        return _loss(metric, predictions, side)
    scores = np.array(scores_of(metric, predictions, side))
    if metric.kind == "bleu":
        return _bleu(predictions, side)
    if metric.kind in ("macro_f1", "weighted_f1"):
        assert metric.scored_as is not None
        name = metric.scored_as.rsplit(".", 1)[0]
        given = [answer.labels.get(name) for answer in answers_of(predictions, side)]
        references = [prediction.reference.strip() for prediction in predictions]
        return f1_of_weights(references, given, weighted=metric.kind == "weighted_f1")
    return lambda weights: float(weights @ scores / weights.sum())


def value_of(metric: Metric, predictions: Sequence[Prediction], side: Role) -> float:
    """Return the metric of one side's answers; none may be missing."""
    return statistic_of(metric, predictions, side)(np.ones(len(predictions)))


def f1_of_weights(references: Sequence[str], answers: Sequence[str | None], *, weighted: bool) -> Statistic:
    """Return F1 over the classes in the references, as their unweighted mean or weighted by their examples.

    A class that is never answered has F1 0; an answer outside the classes (None) is an error of the reference's class.
    Equal to scikit-learn's `f1_score(average=..., zero_division=0)` over these classes, but a hundred times faster,
    because a bootstrap computes it thousands of times.
    """
    classes = {name: code for code, name in enumerate(sorted(set(references)))}
    true = np.array([classes[name] for name in references])
    given = np.array([len(classes) if name is None else classes.get(name, len(classes)) for name in answers])
    hit = true == given

    def value(weights: Weights) -> float:
        size = len(classes) + 1
        truly = np.bincount(true, weights, size)[:-1]
        named = np.bincount(given, weights, size)[:-1]
        right = np.bincount(true[hit], weights[hit], size)[:-1]
        left = truly > 0
        each = 2 * right[left] / (truly + named)[left]
        return float(each @ truly[left] / truly[left].sum() if weighted else each.mean())

    return value


def _loss(metric: Metric, predictions: Sequence[Prediction], side: Role) -> Statistic:
    """Return nats per token over all tokens of the references, or their exponential."""
    known = [answer.reference_nll for answer in answers_of(predictions, side)]
    if None in known:
        raise UnmeasuredError(f"the {side} has no likelihoods of the references")
    nats = np.array(known, dtype=np.float64)
    tokens = np.array([prediction.reference_tokens for prediction in predictions], dtype=np.float64)

    def value(weights: Weights) -> float:
        loss = float(weights @ nats / (weights @ tokens))
        return loss if metric.kind == "loss" else math.exp(min(loss, LARGEST_EXPONENT))

    return value


def _bleu(predictions: Sequence[Prediction], side: Role) -> Statistic:
    """Return BLEU (sacrebleu's defaults) of all answers, 0 to 1, from each answer's counts of n-grams."""
    from sacrebleu.metrics.bleu import BLEU

    found = [
        BLEU(effective_order=True).sentence_score(getattr(prediction, side).text, [prediction.reference])
        for prediction in predictions
    ]
    counts = np.array([[*item.counts, *item.totals, item.sys_len, item.ref_len] for item in found], dtype=np.float64)

    def value(weights: Weights) -> float:
        sums: list[Any] = (weights @ counts).tolist()
        lengths = round(sums[8]), round(sums[9])  # sacrebleu prints them as integers
        score = BLEU.compute_bleu(sums[:4], sums[4:8], *lengths, smooth_method="exp")
        return float(score.score) / 100

    return value


def majority_share(references: Sequence[str]) -> float:
    """Return the accuracy of always giving the most frequent reference."""
    return Counter(references).most_common(1)[0][1] / len(references)
