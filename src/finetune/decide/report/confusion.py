"""The report's section on classification: metrics per class, and the confusion matrix as a heat map."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.decide.report.formatting import counted, name, percent
from finetune.reports.evaluation import ClassesReport, ClassFigures

MOST_CLASSES = 20  # a larger matrix is unreadable, so only the worst classes are shown
LEVELS = 10  # colour levels


def show_classes(classes: Mapping[str, ClassesReport]) -> list[dict[str, Any]]:
    """Return for each classification scorer its classes with the metrics and the matrix of both sides."""
    return [_show(scorer, report) for scorer, report in classes.items() if report.labels]


def _show(scorer: str, report: ClassesReport) -> dict[str, Any]:
    labels = list(report.labels)
    baseline, candidate = report.baseline.per_class, report.candidate.per_class
    shown = worst_classes(labels, candidate)
    rows = [
        {
            "label": name(label),
            "examples": candidate[label].examples,
            "baseline": _figures(baseline[label]),
            "candidate": _figures(candidate[label]),
        }
        for label in shown
    ]
    return {
        "scorer": name(scorer),
        "classes": len(labels),
        "shown": len(shown),
        "rows": rows,
        "matrices": [
            {"side": "candidate", **heat(labels, shown, report.candidate.confusion)},
            {"side": "baseline", **heat(labels, shown, report.baseline.confusion)},
        ],
        "confused": most_confused(labels, report.candidate.confusion),
    }


def _figures(measured: ClassFigures) -> dict[str, str]:
    return {key: percent(getattr(measured, key)) for key in ("precision", "recall", "f1")}


def worst_classes(labels: Sequence[str], per_class: Mapping[str, ClassFigures]) -> list[str]:
    """Return all labels in their order or, if there are too many, those with examples and the lowest F1."""
    if len(labels) <= MOST_CLASSES:
        return list(labels)

    def rank(label: str) -> tuple[bool, float, int]:
        measured = per_class[label]
        return not measured.examples, measured.f1, -measured.examples

    return sorted(labels, key=rank)[:MOST_CLASSES]


def heat(labels: Sequence[str], shown: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Build the matrix with references as rows and answers as columns; cells are counts, coloured by share of the row.

    Answers in classes that are not shown are counted in an extra column.
    """
    place = {label: at for at, label in enumerate(labels)}
    kept = [place[label] for label in shown]
    hidden = [at for at in range(len(labels)) if at not in set(kept)]
    columns = [*(name(label, 40) for label in shown), *(["(other classes)"] if hidden else []), "(none)"]
    rows = []
    for label in shown:
        counts = confusion[place[label]]
        other = [sum(counts[at] for at in hidden)] if hidden else []
        cells = [*(counts[at] for at in kept), *other, *counts[len(labels) :]]
        total = sum(cells)
        row = [
            {
                "count": count,
                "level": round(LEVELS * count / total) if total else 0,
                "right": at < len(kept) and kept[at] == place[label],
            }
            for at, count in enumerate(cells)
        ]
        rows.append({"label": name(label, 40), "total": total, "cells": row})
    return {"columns": columns, "rows": rows}


def most_confused(labels: Sequence[str], confusion: Sequence[Sequence[int]], most: int = 5) -> list[str]:
    """Describe the most frequent confusions in words."""
    answers = [*labels, None]
    pairs = [
        (count, labels[row], answers[column])
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2] or ""))
    return [
        f"{name(due, 40)} predicted as {name(given or 'none of the classes', 40)}: {counted(count, 'time')}"
        for count, due, given in pairs[:most]
    ]
