"""`reports/report.html`, one file that opens offline, and the model card: filled from the other reports."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.decide.criteria import Outcome
from finetune.decide.plots import Curves, draw
from finetune.decide.verdict import Verdict
from finetune.records import Prediction

TEMPLATES = Path(__file__).parent
SHOWN_EXAMPLES = 12
PANELS = (
    (("loss", "validation_loss"), "Loss (nats a token)"),
    (("learning_rate",), "Learning rate"),
    (("gradient_norm",), "Gradient norm"),
)


def render(template: str, **content: Any) -> str:
    """A template of this folder, filled; everything put into HTML is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        finalize=printable if template.endswith(".html.j2") else plain_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": amount, "percent": lambda value: f"{100 * value:.1f}%"}
    return environment.get_template(template).render(**content)


def printable(value: Any) -> Any:
    """Text without control characters, which would act on a terminal or break the page; other values as they are."""
    if isinstance(value, str) and not value.isprintable():
        kept = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in value)
        return type(value)(kept)  # text marked as safe HTML stays marked
    return value


def plain_markdown(value: Any) -> Any:
    """Text that can't leave its table cell or bring HTML along."""
    if isinstance(value, str):
        return str(printable(value)).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
    return value


def amount(value: float | None, unit: str = "") -> str:
    """A figure for people: bytes as GB, seconds as s, shares with three digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.3f}{' ' + unit if unit else ''}"


def bar(item: Outcome) -> dict[str, float] | None:
    """Where interval, estimate and target stand on a line, in percent of its width; None where nothing was measured."""
    if item.estimate is None or item.lower is None or item.upper is None:
        return None
    known = [value for value in (item.estimate, item.lower, item.upper, item.target) if math.isfinite(value)]
    if item.unit:
        low, high = 0.0, 1.15 * max(known)
    else:
        low, high = (min(0.0, *known), 1.0)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / span, 2)

    left, right = at(item.lower), at(item.upper)
    return {"left": left, "width": max(right - left, 0.4), "estimate": at(item.estimate), "target": at(item.target)}


def worst_examples(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """Answers that were lost first (the base had them right), then the wrong ones it found least probable."""
    wrong = [item for item in predictions if not item.candidate.exact_match]
    return sorted(
        wrong,
        key=lambda item: (
            not item.baseline.exact_match,
            -item.candidate.reference_nats / item.reference_tokens,
            item.id,
        ),
    )[:count]


def render_report(
    verdict: Verdict,
    outcomes: Sequence[Outcome],
    predictions: Sequence[Prediction],
    reports: dict[str, Any],
    curves: Curves,
) -> str:
    """The page: verdict first, then criteria, curves, groups, the worst examples, ledger and provenance."""
    return render(
        "report.html.j2",
        verdict=verdict,
        outcomes=[(item, bar(item)) for item in outcomes],
        panels=[draw(curves, names, title) for names, title in PANELS],
        worst=worst_examples(predictions, SHOWN_EXAMPLES),
        wrong=sum(not item.candidate.exact_match for item in predictions),
        **reports,
    )
