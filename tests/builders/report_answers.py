"""Answers of a run created in memory, and evaluate's report of them: with hostile texts and mixed outcomes."""

import math
import random
from dataclasses import dataclass
from typing import Any

from finetune.decide.outcomes import Outcome
from finetune.decide.report.render import render_card, render_report, render_summary
from finetune.decide.run_reports import Decided
from finetune.decide.verdict import Verdict
from finetune.records.examples import Answer, Prediction
from tests.builders.whole_reports import run_reports

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
HOSTILE += "\x1b[31m\u202e txt.exe\u2028"
HOSTILE += "| a [link](http://evil.example) `code` @someone #1 $x$\x00"
PROBLEM = {"scorer": "closeness", "side": "baseline", "count": 2, "example": "0007", "reason": "no text to compare"}
OBJECTS = ("decide", "timings")
LABELS = ["AttributeError", "KeyError", "OSError", "RuntimeError", "TypeError", "ValueError"]
AGENT, OTHER = "exception-namer", "function-namer"
SHA = {name: name[0] * 64 for name in ("adapter", "base", "test", "day", "fingerprint", "cost")}
SCORERS: dict[str, dict[str, Any]] = {
    "exact_match": {"scorer": "exact_match", "of": None},
    "exceptions": {"scorer": "classification", "of": [AGENT], "by": "generation", "labels": None},
    "closeness": {"scorer": "chrf", "of": None},
}
CRITERIA: list[dict[str, Any]] = [
    {"rule": "at_least", "metric": "exact_match", "group": AGENT, "threshold": 0.55},
    {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"},
    {"rule": "at_least", "metric": "exceptions.macro_f1", "group": AGENT, "threshold": 0.2},
    {"rule": "latency_at_most", "seconds": 1.0, "improvement": 0.2},
    {"rule": "memory_at_most", "limit": "2 GB"},
]


@dataclass
class MadeUp:
    """Everything that decide passes to the templates."""

    verdict: Verdict
    outcomes: list[Outcome]
    predictions: list[Prediction]
    reports: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]]

    @property
    def run(self) -> Decided:
        """Return the run in the form that decide passes on."""
        own = {name: self.reports[name] for name in ("decide", "recipe", "seed", "look", "confidence")}
        rest = {name: self.reports.get(name) for name in ("seeds",)}
        lists = {name: self.reports.get(name) or () for name in ("changes", "timings")}
        return Decided(run_reports(self.reports), **own, **rest, **lists)

    def html(self) -> str:
        """Return the page."""
        return render_report(self.verdict, self.outcomes, self.predictions, self.run, self.curves)

    def summary(self) -> str:
        """Return the summary."""
        return render_summary(self.verdict, self.outcomes, self.run)

    def card(self) -> str:
        """Return the model card."""
        return render_card(self.verdict, self.outcomes, self.run)


def answer(text: str, reference: str, *, tokens: int = 3, cut: bool = False, failed: str | None = None) -> Answer:
    """Return an answer with its scores, as evaluate writes it."""
    right = None if failed else float(text == reference)
    scores = {"exact_match": right, "closeness": None if failed else 0.4 + 0.6 * float(text == reference)}
    labels: dict[str, str | None] = {}
    if reference in LABELS:
        scores["exceptions.accuracy"] = right
        labels["exceptions"] = text if text in LABELS else None
    return Answer(text, tokens, not cut, 1.5 if right else 4.0, failed, scores, labels)


def make_predictions(count: int = 445) -> list[Prediction]:
    """Return answers of two agents, about 65% and 40% right; a few are lost, cut off or failed."""
    dice = random.Random(7)
    found = []
    for at in range(count):
        first = at % 9 < 5
        reference = (
            dice.choice([*LABELS, "ValueError", "ValueError"]) if first else dice.choice(["close", "get", "read"])
        )
        right = dice.random() < (0.65 if first else 0.4)
        new = reference if right else dice.choice(LABELS if first else ["open", "write"])
        old = reference if dice.random() < 0.06 else "message: {cmd}: {cmd}: it is not possible to say"
        failed = "the server answered 503" if at % 97 == 50 else None
        cut = at % 61 == 7
        prompt = (
            f"function: check_{at}\nmessage: unsupported command: {{cmd!r}} of {dice.choice(['path', 'stream', 'row'])}"
        )
        found.append(
            Prediction(
                f"{at:016x}",
                AGENT if first else OTHER,
                "cpython",
                f"cluster {at // 2 if at < 40 else at}",
                prompt,
                reference,
                3,
                answer(old, reference, tokens=14, cut=at % 3 > 0),
                answer("" if failed else new, reference, tokens=3 + at % 5, cut=cut, failed=failed),
            )
        )
    return found


def make_groups(predictions: list[Prediction]) -> dict[str, Any]:
    """Return the groups of the evaluation report."""
    groups: dict[str, Any] = {}
    for group in ("all", AGENT, OTHER):
        members = [item for item in predictions if item.in_group(group)]
        references = [item.reference for item in members]
        sides = {}
        for side in ("baseline", "candidate"):
            answers = [getattr(item, side) for item in members]
            right = [item.scores["exact_match"] or 0.0 for item in answers]
            classed = [
                item.scores["exceptions.accuracy"] or 0.0 for item in answers if "exceptions.accuracy" in item.scores
            ]
            share = sum(right) / len(right)
            sides[side] = {
                "exact_match": share,
                "exceptions.accuracy": sum(classed) / len(classed) if classed else None,
                "exceptions.macro_f1": 0.61 * sum(classed) / len(classed) if classed else None,
                "exceptions.weighted_f1": 0.72 * sum(classed) / len(classed) if classed else None,
                "closeness": 0.4 + 0.6 * share,
                "loss": 5.1 - 4.4 * share,
                "perplexity": math.exp(5.1 - 4.4 * share),
                "mean_tokens": sum(item.tokens or 0 for item in answers) / len(answers),
                "cut_off": sum(item.finished is False for item in answers) / len(answers),
                "failed": sum(item.failed is not None for item in answers),
            }
        groups[group] = {
            "examples": len(members),
            "clusters": len({item.cluster for item in members}),
            "majority_share": max(map(references.count, references)) / len(references),
            **sides,
        }
    return groups


def make_classes(predictions: list[Prediction]) -> dict[str, Any]:
    """Return the classification block of the evaluation report."""
    found: dict[str, Any] = {"labels": LABELS}
    members = [item for item in predictions if item.agent == AGENT]
    for side in ("baseline", "candidate"):
        confusion = [[0] * (len(LABELS) + 1) for _ in LABELS]
        for item in members:
            given = getattr(item, side).labels["exceptions"]
            column = len(LABELS) if given is None else LABELS.index(given)
            confusion[LABELS.index(item.reference)][column] += 1
        per_class = {}
        for at, label in enumerate(LABELS):
            due, named, hit = sum(confusion[at]), sum(row[at] for row in confusion), confusion[at][at]
            precision, recall = (hit / named if named else 0.0), (hit / due if due else 0.0)
            f1 = 2 * hit / (due + named) if due + named else 0.0
            per_class[label] = {"precision": precision, "recall": recall, "f1": f1, "examples": due}
        found[side] = {"per_class": per_class, "confusion": confusion}
    return {"exceptions": found}
