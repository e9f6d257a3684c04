"""Interpret an outcome of the gate for text and drawings: its rule, the kind of its values, its scale.

An Outcome holds plain numbers; whether 0.67 is a proportion, an F1 or seconds follows from its criterion and the
scorers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config.criteria import RULES
from finetune.config.scorers import LOSS, PERPLEXITY, SCORERS, Metric
from finetune.decide.outcomes import Outcome
from finetune.decide.report.formatting import Kind, format_short, format_value, name, plain_name
from finetune.records.examples import ALL
from finetune.reports.evaluation import EvaluationReport

ANSWER_FACTS = ("mean_tokens", "cut_off", "failed")  # properties of a group's answers other than their quality
ICONS = {"pass": "✓", "fail": "✕", "inconclusive": "?", "unmeasured": "\u2013"}

NO_INTERVAL = "no interval"


def known_metrics(scorers: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Return all metrics by name, from the scorers' settings in the evaluation report."""
    found = [LOSS, PERPLEXITY]
    for scorer, settings in scorers.items():
        if (of_kind := SCORERS.get(settings.get("scorer", ""))) is not None:
            found += of_kind.model_construct(**settings).metrics(scorer)
    return {metric.name: metric for metric in found}


def side_names(evaluation: EvaluationReport) -> dict[str, str]:
    """Return the names of the two sides for use in a sentence."""
    baseline, candidate = evaluation.baseline, evaluation.candidate
    old, new = (name(plain_name(side.name), 40) for side in (baseline, candidate))
    baselines = {
        "base": "the base model",
        "adapter": f"the earlier adapter {old}",
        "model": f"the model {old}",
        "recorded": f"the recorded baseline {old}",
        "server": f"the served model {old}",
    }
    candidates = {"adapter": "the fine-tuned model", "merged": "the fine-tuned, merged model"}
    candidates["server"] = f"the served model {new}"
    return {
        "baseline": baselines.get(baseline.form, old or "the baseline").strip(),
        "candidate": candidates.get(candidate.form, new or "the candidate").strip(),
    }


@dataclass(frozen=True)
class Reading:
    """One outcome with the data to present it; `base` and `candidate` are the metric's values of the sides, if any."""

    outcome: Outcome
    kind: Kind
    base: float | None
    candidate: float | None
    examples: int | None

    @property
    def limit(self) -> str:
        """The target, e.g. `55%`, or `more than 0 points` for a comparison."""
        if self.outcome.target is None or self.outcome.target != self.outcome.target:
            return "nothing"
        bound = format_short(self.outcome.target, self.kind)
        if self.kind == "points":
            bound = f"{bound} points"
        if self.is_comparison:
            return f"{'more' if self.outcome.higher_is_better else 'less'} than {bound}"
        return bound

    @property
    def asked(self) -> str:
        """The target in words, e.g. `at least 55%`."""
        if self.limit == "nothing" or self.is_comparison:
            return self.limit
        return f"{self.direction} {self.limit}"

    @property
    def direction(self) -> str:
        """`at least` if higher is better, else `at most`."""
        return "at least" if self.outcome.higher_is_better else "at most"

    @property
    def is_comparison(self) -> bool:
        """Whether the target is a difference from the baseline."""
        return self.outcome.rule in RULES and RULES[self.outcome.rule].compared

    @property
    def estimate(self) -> str:
        """The estimate as text."""
        return format_value(self.outcome.estimate, self.kind)

    @property
    def bounds(self) -> str:
        """Both bounds as text; if one is open, only the other."""
        lower, upper = (format_value(value, self.kind) for value in (self.outcome.lower, self.outcome.upper))
        if lower == upper == "n/a":
            return NO_INTERVAL
        return f"{lower} to {upper}".replace(" points to", " to").replace("n/a", "open")

    @property
    def where(self) -> str:
        """`242 held-out examples of exception-namer`."""
        count = "" if self.examples is None else f"{self.examples:,} "
        of = f" of {name(self.outcome.group)}" if self.outcome.group not in (None, ALL) else ""
        return f"{count}held-out examples{of}"


def read_outcomes(outcomes: Sequence[Outcome], evaluation: EvaluationReport) -> list[Reading]:
    """Return the outcomes in their order, each with the values of both sides."""
    metrics = known_metrics(evaluation.scorers)
    return [_read(item, metrics, evaluation) for item in outcomes]


def _read(item: Outcome, metrics: Mapping[str, Metric], evaluation: EvaluationReport) -> Reading:
    found, key = evaluation.groups.get(item.group or ""), item.metric or ""
    base, candidate = (found.baseline.get(key), found.candidate.get(key)) if found else (None, None)
    examples = examples_counted(item.metric, item.group, evaluation)
    return Reading(item, _kind(item, metrics.get(key)), base, candidate, examples)


def _kind(item: Outcome, metric: Metric | None) -> Kind:
    if item.unit in ("s", "bytes"):
        return "seconds" if item.unit == "s" else "bytes"
    if item.about in ("latency", "seeds"):
        return "gain" if item.about == "latency" else "count"
    compared = RULES[item.rule].compared
    if metric is not None and metric.kind == "binary":
        return "points" if compared else "share"
    return "difference" if compared else "number"


def examples_counted(metric: str | None, group: str | None, evaluation: EvaluationReport) -> int | None:
    """Return how many examples of a group a metric covers: those assigned to its scorer; None if unknown."""
    groups, scorers = evaluation.groups, evaluation.scorers
    if group not in groups or metric is None:
        return None
    settings: Mapping[str, Any] = scorers.get(metric) or scorers.get(metric.rsplit(".", 1)[0]) or {}
    of = settings.get("of")
    if of is None or group in of:
        return groups[group].examples
    known = [groups[part].examples for part in of if part in groups]
    return sum(known) if group == ALL and len(known) == len(of) else None
