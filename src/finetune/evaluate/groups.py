"""Summarize the answers of each group (all examples, each agent, each source), with both sides' metrics.

{"examples": 155, "clusters": 150, "majority_share": 0.51,
 "baseline": {"exact_match": 0.0, "loss": 3.1, "mean_tokens": 15.9, "cut_off": 0.97, "failed": 0}, "candidate": {…}}
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.config.scorers import Metric
from finetune.records.examples import ALL, Prediction
from finetune.reports.evaluation import Role
from finetune.score.metrics import SIDES, UnmeasuredError, answers_of, counted, majority_share, value_of


def groups_of(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Return all predictions, those of each agent, and those of each source if there are several.

    A source with an agent's name is left out: `Prediction.in_group` would match both under this name.
    """
    agents = sorted({prediction.agent for prediction in predictions})
    sources = sorted({prediction.source for prediction in predictions})
    groups = {ALL: list(predictions)}
    groups |= {agent: [item for item in predictions if item.agent == agent] for agent in agents}
    if len(sources) > 1:
        for source in sources:
            if source not in groups:
                groups[source] = [item for item in predictions if item.source == source]
    return groups


def describe_group(predictions: Sequence[Prediction], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the numbers of examples and clusters, the most frequent reference's share, and both sides' metrics."""
    return {
        "examples": len(predictions),
        "clusters": len({prediction.cluster for prediction in predictions}),
        "majority_share": majority_share([prediction.reference for prediction in predictions]),
        **{side: describe_side(predictions, side, metrics) for side in SIDES},
    }


def describe_side(predictions: Sequence[Prediction], side: Role, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return one side's metrics, mean tokens and share of truncated answers; None where unknown."""
    answered = [answer for answer in answers_of(predictions, side) if answer.failed is None]
    tokens = [answer.tokens for answer in answered if answer.tokens is not None]
    finished = [answer.finished for answer in answered if answer.finished is not None]
    all_counted = bool(tokens) and len(tokens) == len(answered)
    return {
        **{name: measured(metric, predictions, side) for name, metric in metrics.items()},
        "mean_tokens": sum(tokens) / len(tokens) if all_counted else None,
        "cut_off": finished.count(False) / len(finished) if finished else None,
        "failed": len(predictions) - len(answered),
    }


def measured(metric: Metric, predictions: Sequence[Prediction], side: Role) -> float | None:
    """Return a metric of one side; None without scored examples, or if a score is missing."""
    members = counted(metric, predictions, ALL)
    try:
        return value_of(metric, members, side) if members else None
    except UnmeasuredError:
        return None


def describe_classes(predictions: Sequence[Prediction], scorer: str) -> dict[str, Any]:
    """Return a classification scorer's precision, recall and F1 by class of each side, and the confusion matrices.

    A row of `confusion` is the reference's class, a column the answer's; the last column holds answers in no class.
    """
    members = [prediction for prediction in predictions if scorer in prediction.candidate.labels]
    references = [prediction.reference.strip() for prediction in members]
    given = {side: [answer.labels.get(scorer) for answer in answers_of(members, side)] for side in SIDES}
    named = {label for labels in given.values() for label in labels if label is not None}
    labels = sorted(named.union(references))
    described: dict[str, Any] = {side: _describe_labels(references, given[side], labels) for side in SIDES}
    return {"labels": labels, **described}


def _describe_labels(references: Sequence[str], given: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
    pairs = Counter(zip(references, given, strict=True))
    due, answered = Counter(references), Counter(given)
    per_class = {}
    for label in labels:
        right = pairs[label, label]
        per_class[label] = {
            "precision": right / answered[label] if answered[label] else 0.0,
            "recall": right / due[label] if due[label] else 0.0,
            "f1": 2 * right / (due[label] + answered[label]) if right else 0.0,
            "examples": due[label],
        }
    columns: list[str | None] = [*labels, None]
    return {"per_class": per_class, "confusion": [[pairs[label, column] for column in columns] for label in labels]}
