"""Render `reports/report.html`, `reports/summary.md` and the model card from the reports.

The page is a single file that works offline. Its content policy allows only its own scripts and styles; everything
else, including text of the data that looks like a script, is treated as text.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finetune.decide.outcomes import Outcome
from finetune.decide.report import sections
from finetune.decide.report.confusion import show_classes
from finetune.decide.report.examples import show_examples
from finetune.decide.report.formatting import (
    amount,
    code_markdown,
    counted,
    duration,
    figure,
    format_count,
    format_value,
    listed,
    name,
    percent,
    plain_markdown,
    plain_name,
    printable,
)
from finetune.decide.report.headline import headline, leading, left_out, provisos
from finetune.decide.report.model_card import card_data, decoding, hub_names, loading_name
from finetune.decide.report.provenance import lineage, show_ledger, show_provenance, show_risks
from finetune.decide.report.readings import known_metrics, read_outcomes, side_names
from finetune.decide.run_reports import Curves, Decided
from finetune.decide.verdict import Verdict
from finetune.records.examples import Prediction

TEMPLATES = Path(__file__).parent / "templates"
CHANGES = {True: "How far the verdict is from changing", False: "What would change the verdict"}  # key: is it deploy
FILTERS: dict[str, Callable[..., Any]] = {"code": code_markdown, "count": format_count}
FILTERS |= {show.__name__: show for show in (amount, counted, duration, figure, listed, name, percent, format_value)}


def render(template: str, **content: Any) -> str:
    """Fill a template of this folder; all values put into HTML or Markdown are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        finalize=printable if template.endswith(".html.j2") else plain_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(**content)


def read_asset(file: str) -> tuple[Markup, str]:
    """Read a file of this folder to embed in the page, with its hash for the content policy."""
    text = (TEMPLATES / file).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"  # noqa: S704 - our own file, without text of the run


def content_policy(style: str, script: str) -> str:
    """Return a policy that loads nothing and allows only the page's own style and script, by their hashes."""
    sources = f"style-src {style}; script-src {script}"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def render_report(
    verdict: Verdict, outcomes: Sequence[Outcome], predictions: Sequence[Prediction], run: Decided, curves: Curves
) -> str:
    """Render the page: first the verdict in one sentence, then its evidence, down to the hashes."""
    evaluation = run.reports.evaluation
    readings, groups = read_outcomes(outcomes, evaluation), sections.show_groups(evaluation, predictions)
    (style, style_hash), (script, script_hash) = read_asset("report.css"), read_asset("report.js")
    return render(
        "report.html.j2",
        style=style,
        script=script,
        policy=content_policy(style_hash, script_hash),
        figures=sections.show_key_figures(readings, leading(readings, verdict), run),
        criteria=sections.show_criteria(readings),
        groups=groups,
        clustered=sections.clustered_note(groups),
        answers=sections.show_answers(evaluation.groups),
        classes=show_classes(evaluation.classes),
        charts=sections.show_curves(curves),
        examples=show_examples(predictions, known_metrics(evaluation.scorers)),
        latency=sections.show_latency(run.reports.cost.latency, run.timings),
        ledger=show_ledger(run),
        risks=show_risks(run.reports.prepare),
        plan=sections.show_plan(run),
        seeds=sections.show_seeds(run.seeds, readings),
        provenance=show_provenance(run),
        **shared(verdict, outcomes, run),
    )


def render_summary(verdict: Verdict, outcomes: Sequence[Outcome], run: Decided) -> str:
    """Render a one-screen summary in Markdown, for a pull request."""
    return render(
        "summary.md.j2",
        readings=read_outcomes(outcomes, run.reports.evaluation),
        groups=sections.show_groups(run.reports.evaluation, ()),
        **shared(verdict, outcomes, run),
    )


def render_card(verdict: Verdict, outcomes: Sequence[Outcome], run: Decided) -> str:
    """Render the model card: metadata for the Hub, then the adapter's purpose and the evidence for it."""
    evaluation = run.reports.evaluation
    base, candidate, groups = evaluation.base, evaluation.candidate, sections.show_groups(evaluation, ())
    return render(
        "model_card.md.j2",
        front_matter=Markup(card_data(run).to_yaml()),  # noqa: S704 - written by a YAML library, name by name
        loading=loading_name(base),
        local=base.revision.startswith("sha256:"),
        form=candidate.form,
        quantized=candidate.quantization == "nf4",
        lineage=lineage(run.reports.train),
        hub=hub_names(run.reports.prepare),
        readings=read_outcomes(outcomes, evaluation),
        groups=groups,
        clustered=sections.clustered_note(groups),
        decoding=decoding(evaluation),
        **shared(verdict, outcomes, run),
    )


def shared(verdict: Verdict, outcomes: Sequence[Outcome], run: Decided) -> dict[str, Any]:
    """Return what all three documents contain: sentence, caveats, what would change the verdict, and the reports."""
    lead, sentence = headline(verdict, outcomes, run)
    base = run.reports.evaluation.base
    return {
        **{key: getattr(run, key) for key in ("recipe", "seed", "look", "confidence", "decide", "changes")},
        **vars(run.reports),
        "verdict": verdict,
        "lead": lead,
        "headline": f"{lead}: {sentence}",
        "sentence": sentence[:1].upper() + sentence[1:],
        "provisos": provisos(run),
        "changes_title": CHANGES[verdict.name.startswith("deploy")],
        "left_out": left_out(run.reports.cost.latency),
        "sides": side_names(run.reports.evaluation),
        "base_name": plain_name(base.name, base.revision),
    }
