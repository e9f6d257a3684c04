"""Compare two runs on the same test set (B - A): answers by metric and group, cost, and params.

Reads and writes no files; tables.py formats the result.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from finetune.commands.experiments.differences import Difference, compare_answers
from finetune.commands.experiments.listing import Place
from finetune.commands.experiments.loading import ComparedRun
from finetune.config.scorers import AnyScorer, Metric, metrics_of
from finetune.errors import DataError
from finetune.files.nested import dig, flatten
from finetune.score.metrics import UnmeasuredError, counted

COST: dict[str, Place] = {
    "latency, s/answer": ("cost", "latency", "candidate", "mean_seconds"),
    "baseline latency, same session": ("cost", "latency", "baseline", "mean_seconds"),
    "tokens/answer": ("cost", "latency", "candidate", "mean_tokens"),
    "peak memory, bytes": ("cost", "memory", "largest_bytes"),
    "training, seconds": ("train_cost", "wall_seconds"),
    "training, steps": ("train", "steps"),
    "processor": ("cost", "machine", "processor"),
    "gpu": ("cost", "machine", "gpu"),
}


@dataclass(frozen=True)
class Compared:
    """A metric of a group, with the difference or the reason why there is none."""

    group: str
    metric: Metric
    difference: Difference | None
    why_not: str = ""


@dataclass(frozen=True)
class Comparison:
    """The complete comparison of two runs; `looks` is the entry of their test set in data/looks.json."""

    a: ComparedRun
    b: ComparedRun
    found: list[Compared]
    confidence: float
    looks: dict[str, Any]
    warnings: list[str]

    @property
    def measured(self) -> list[tuple[Compared, Difference]]:
        """The comparisons that have a difference."""
        return [(item, item.difference) for item in self.found if item.difference]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-compatible values; differences are B - A."""
        return {
            "a": describe(self.a),
            "b": describe(self.b),
            "test_sha256": self.a.evaluation["test_sha256"],
            "confidence": self.confidence,
            "differences": [
                {"group": item.group, **item.difference.to_json()}
                if item.difference
                else {"group": item.group, "metric": item.metric.name, "unmeasured": item.why_not}
                for item in self.found
            ],
            "cost": {title: {"a": old, "b": new} for title, old, new in cost_of(self.a, self.b)},
            "params": {key: {"a": old, "b": new} for key, old, new in differing(self.a.params, self.b.params)},
            "looks": self.looks,
            "warnings": self.warnings,
        }


def compare_sides(a: ComparedRun, b: ComparedRun, confidence: float, seed: int, looks: dict[str, Any]) -> Comparison:
    """Compare all shared metrics of all shared groups. Raise DataError if the runs are not comparable."""
    warnings = check_comparable(a, b)
    metrics, left_out = shared_metrics(a, b)
    found, seen = [], set()
    for group in (name for name in a.evaluation["groups"] if name in b.evaluation["groups"]):
        for metric in metrics.values():
            old, new = (counted(metric, side.predictions, group) for side in (a, b))
            members = (metric.name, tuple(item.id for item in old))
            if not old or members in seen:  # an agent that has all examples repeats the group of all
                continue
            seen.add(members)
            try:
                difference = compare_answers(metric, (old, "candidate"), (new, "candidate"), confidence, seed)
                found.append(Compared(group, metric, difference))
            except UnmeasuredError as error:
                found.append(Compared(group, metric, None, str(error)))
    return Comparison(a, b, found, confidence, looks, [*warnings, *left_out])


def check_comparable(a: ComparedRun, b: ComparedRun) -> list[str]:
    """Return what weakens the comparison. Raise DataError if the runs used different test sets."""
    sets = [side.evaluation["test_sha256"] for side in (a, b)]
    if sets[0] != sets[1]:
        raise DataError(
            "compare",
            f"{a.name} was measured on test set {sets[0][:12]}, {b.name} on {sets[1][:12]}",
            "answers to different questions can't be paired. A change of seed, data files or data section "
            "draws different splits: run both on the same split",
        )
    if [item.id for item in a.predictions] != [item.id for item in b.predictions]:
        raise DataError(
            "compare",
            f"{a.name} and {b.name} name the same test set, but their predictions cover different examples",
            "evaluate again",
        )
    warnings = []
    notes = [f"{key}: {old} in A, {new} in B" for key, old, new in differing(how_generated(a), how_generated(b))]
    if notes:
        what = f"generated with different settings, so a difference may not come from the adapters ({'; '.join(notes)})"
        warnings.append(f"answers were {what}")
    if a.evaluation["adapter_sha256"] == b.evaluation["adapter_sha256"]:
        warnings.append("both runs have the same adapter")
    if a.evaluation.get("base") != b.evaluation.get("base"):
        warnings.append("the runs have different base models")
    return warnings


def how_generated(side: ComparedRun) -> dict[str, Any]:
    """Return what determines an answer besides the model: the candidate's form and its decoding settings."""
    candidate, generation = (side.evaluation.get(key) or {} for key in ("candidate", "generation"))
    form = {key: candidate.get(key) for key in ("form", "quantization")}
    return {"candidate": form, "generation": {key: value for key, value in generation.items() if key != "pad_token_id"}}


def shared_metrics(a: ComparedRun, b: ComparedRun) -> tuple[dict[str, Metric], list[str]]:
    """Return the metrics that both runs scored alike, and a note on each metric that they did not."""
    scorers = [scorers_of(side) for side in (a, b)]
    names = list(dict.fromkeys([*scorers[0], *scorers[1]]))
    alike = {name: scorers[0][name] for name in names if scorers[0].get(name) == scorers[1].get(name)}
    notes = []
    for name in names:
        if name not in alike:
            what = (
                "is configured differently in B"
                if all(name in known for known in scorers)
                else "is used in one run only"
            )
            notes.append(f"not compared: the scorer {name} {what}")
    return metrics_of(alike), notes


def scorers_of(side: ComparedRun) -> dict[str, Any]:
    """Return the scorers of a run's scores. Raise DataError if this version cannot read them."""
    content = side.evaluation.get("scorers") or dig(side.params, ("evaluate", "scorers"))
    try:
        return TypeAdapter(dict[str, AnyScorer]).validate_json(json.dumps(content))
    except ValidationError:
        raise DataError(
            side.name,
            "evaluate.scorers in its params.yaml is in the format of another version",
            "evaluate it again with this version",
        ) from None


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the dotted keys that differ, with both values."""
    old, new = dict(flatten(a)), dict(flatten(b))
    return [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def cost_of(a: ComparedRun, b: ComparedRun) -> list[tuple[str, Any, Any]]:
    """Return the costs of both runs, side by side."""
    rows = [(title, dig(a.reports, place), dig(b.reports, place)) for title, place in COST.items()]
    return [row for row in rows if row[1:] != (None, None)]


def describe(side: ComparedRun) -> dict[str, Any]:
    """Return the identity of a run."""
    verdict = dig(side.reports, ("decision", "verdict"))
    return {"name": side.name, "adapter_sha256": side.evaluation["adapter_sha256"], "verdict": verdict}
