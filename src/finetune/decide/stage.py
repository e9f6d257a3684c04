"""The decide stage: the reports -> `reports/decision.json`, `report.html`, `summary.md`, `out/model_card.md`."""

from collections.abc import Sequence
from dataclasses import replace

from finetune.config.decide import DecideParams
from finetune.config.scorers import metrics_of
from finetune.console import say, table
from finetune.decide.advice import suggest, what_would_change
from finetune.decide.criteria import Evidence, judge, judge_seeds
from finetune.decide.evidence import check_evidence
from finetune.decide.outcomes import Outcome
from finetune.decide.report.formatting import amount
from finetune.decide.report.render import render_card, render_report, render_summary
from finetune.decide.run_reports import Decided, RunReports, read_curves
from finetune.decide.verdict import Verdict, reach_verdict
from finetune.files.atomic import write_json, write_lines
from finetune.files.hashing import sha256_json
from finetune.files.manifests import read_manifest
from finetune.history.seed_results import adapter_inputs_hash, read_seeds, seeds_key
from finetune.history.test_set_uses import count_look
from finetune.paths import Paths
from finetune.records.examples import Prediction, Timing
from finetune.records.io import read_predictions, read_timings
from finetune.reports.decision import DecisionReport, SuggestionReport
from finetune.statistics.decision import Gate


def run(params: DecideParams, paths: Paths) -> None:
    """Check the evidence, judge every criterion, reach the verdict, and write it for readers and programs."""
    (paths.reports / "decision.json").unlink(missing_ok=True)  # a failure below must not leave an old verdict in place
    reports = RunReports.read(paths.reports)
    predictions, timings = read_predictions(paths.predictions), read_timings(paths.latency)
    check_evidence(params, paths, reports, predictions)
    curves = read_curves(paths.reports)
    evidence = evidence_of(params, predictions, timings, reports)
    gate = Gate(params.decide.policy, params.decide.confidence_of_a_look, params.seed)
    look = count_look(paths.looks, reports.evaluation.test_sha256, reports.evaluation.look_key)
    seeds = read_seeds(paths.seeds, seeds_key(params.model_dump(mode="json", by_alias=True)))

    outcomes = [outcome for criterion in params.decide.criteria for outcome in judge(criterion, evidence, gate)]
    if params.decide.seeds > 1:
        same = {"test_sha256": reports.evaluation.test_sha256, **gate.strictness()}
        same["makings_sha256"] = adapter_inputs_hash(read_manifest(paths.adapter))
        outcomes.append(judge_seeds(params.decide.seeds, params.seed, seeds, same, outcomes))
    verdict = reach_verdict(params.decide, outcomes, evidence, gate, look)
    if verdict.name == "iterate":
        found = suggest(params.decide, outcomes, evidence, gate, look, reports, curves)
        verdict = replace(verdict, suggestions=found)
    changes = what_would_change(params.decide, outcomes, evidence, gate)
    run = Decided(
        reports, params.decide, params.recipe, params.seed, look, gate.confidence, changes, seeds or None, timings
    )
    write_lines(paths.reports / "report.html", [render_report(verdict, outcomes, predictions, run, curves)])
    write_lines(paths.reports / "summary.md", [render_summary(verdict, outcomes, run)])
    write_lines(paths.model_card, [render_card(verdict, outcomes, run)])
    write_json(paths.reports / "decision.json", report_of(verdict, outcomes, gate, run).to_json())
    show(verdict, outcomes, run.changes)


def evidence_of(
    params: DecideParams, predictions: list[Prediction], timings: list[Timing], reports: RunReports
) -> Evidence:
    """Collect the evidence from the outputs of evaluate."""
    baseline, cost = reports.evaluation.baseline, reports.cost
    return Evidence(
        predictions,
        timings,
        cost.memory.bytes,
        metrics_of(params.evaluate.scorers),
        recorded=baseline.name if baseline.recorded else None,
        unanswered=cost.latency.unanswered["candidate"],
    )


def report_of(verdict: Verdict, outcomes: list[Outcome], gate: Gate, run: Decided) -> DecisionReport:
    """Build the machine-readable decision."""
    return DecisionReport(
        verdict=verdict.name,
        sentence=verdict.sentence,
        passed=sum(item.status == "pass" for item in outcomes),
        criteria=[item.report() for item in outcomes],
        reasons=list(verdict.reasons),
        suggestions=[SuggestionReport(code=item.code, text=item.text) for item in verdict.suggestions],
        changes=list(run.changes),
        gate_sha256=sha256_json(run.decide.model_dump(mode="json")),
        policy=gate.policy,
        confidence=gate.confidence,
        look=run.look,
        baseline=run.reports.evaluation.baseline.name,
        candidate=run.reports.evaluation.candidate.name,
        adapter_sha256=run.reports.evaluation.adapter_sha256,
        test_sha256=run.reports.evaluation.test_sha256,
    )


def show(verdict: Verdict, outcomes: list[Outcome], changes: Sequence[str]) -> None:
    """Print the verdict as a table."""
    rows = []
    for item in outcomes:
        estimate, lower, upper = (amount(value, item.unit) for value in (item.estimate, item.lower, item.upper))
        rows.append([item.status, item.criterion, estimate, f"{lower} … {upper}", item.reason])
    table("decide: criteria", ["status", "criterion", "estimate", "bounds", "evidence"], rows)
    table("verdict", ["", ""], [[verdict.name, verdict.sentence]])
    for text in changes:
        say(f"  {text}")
    for suggestion in verdict.suggestions:
        say(f"  next: {suggestion.text}")
    say("open reports/report.html; for scripts: reports/decision.json or ./finetune gate")
