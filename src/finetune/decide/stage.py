"""The decide stage: the reports -> `reports/decision.json`, `reports/report.html`, `out/model_card.md`."""

from typing import Any

from finetune.artifacts import read_json, read_manifest, sha256_file, write_json, write_lines
from finetune.config import Config
from finetune.console import say, table
from finetune.decide.criteria import Evidence, Gate, Outcome, judge
from finetune.decide.plots import read_curves
from finetune.decide.report import amount, render, render_report
from finetune.decide.verdict import Verdict, reach_verdict
from finetune.errors import DataError
from finetune.looks import count_look
from finetune.paths import Paths
from finetune.records import Prediction, leaked, read_examples, read_predictions, read_timings

REPORTS = ("prepare", "validation", "train", "train_cost", "evaluation", "cost")


def run(config: Config, paths: Paths) -> None:
    """Refuse unsound evidence, judge every criterion, reach the verdict, and write it for people and machines."""
    reports = {name: read_json(paths.reports / f"{name}.json") for name in REPORTS}
    predictions, timings = read_predictions(paths.predictions), read_timings(paths.latency)
    check_evidence(paths, reports, predictions)
    curves = read_curves(paths.reports)
    evidence = Evidence(predictions, timings, reports["cost"]["memory"]["bytes"])
    gate = Gate(config.decide.policy, config.decide.confidence_of_a_look, config.seed)
    look = count_look(paths.looks, reports["evaluation"]["test_sha256"], reports["evaluation"]["adapter_sha256"])

    outcomes = [outcome for criterion in config.decide.criteria for outcome in judge(criterion, evidence, gate)]
    verdict = reach_verdict(config.decide, outcomes, evidence, gate, look, reports["train"])
    content = {**reports, "recipe": config.recipe, "look": look, "confidence": gate.confidence, "decide": config.decide}
    write_lines(paths.reports / "report.html", [render_report(verdict, outcomes, predictions, content, curves)])
    card = render("model_card.md.j2", verdict=verdict, outcomes=outcomes, **content)
    write_lines(paths.model_card, [card])
    write_json(paths.reports / "decision.json", to_json(verdict, outcomes, gate, look, reports["evaluation"]))
    show(verdict, outcomes)


def check_evidence(paths: Paths, reports: dict[str, Any], predictions: list[Prediction]) -> None:
    """DataError unless adapter, test set, predictions and reports all speak of the same run, and nothing leaks."""
    evaluation, ledger = reports["evaluation"], reports["prepare"]
    manifest = read_manifest(paths.adapter)
    test = read_examples(paths.prepared / "test.jsonl")
    test_sha256 = sha256_file(paths.prepared / "test.jsonl")
    if not evaluation["test_sha256"] == ledger["prepared_sha256"]["test"] == test_sha256:
        raise DataError(f"{paths.prepared / 'test.jsonl'}: is not the test set that was evaluated; run evaluate again")
    if not evaluation["adapter_sha256"] == manifest["adapter_sha256"] == reports["train"]["adapter_sha256"]:
        raise DataError(f"{paths.adapter}: is not the adapter that was evaluated; run evaluate again")
    if manifest["prepared_sha256"] != ledger["prepared_sha256"]:
        raise DataError(f"{paths.adapter}: was trained on other splits than these; run train again (dvc repro)")
    if evaluation["predictions_sha256"] != sha256_file(paths.predictions):
        raise DataError(f"{paths.predictions}: is not the file that evaluate wrote; run evaluate again")
    cost = reports["cost"]
    if cost["adapter_sha256"] != evaluation["adapter_sha256"] or cost["latency_sha256"] != sha256_file(paths.latency):
        raise DataError(f"{paths.latency}: was not measured on the adapter that was evaluated; run evaluate again")
    if [item.id for item in predictions] != [example.id for example in test]:
        raise DataError(f"{paths.predictions}: holds the answers to another test set; run evaluate again")
    found = leaked(read_examples(paths.prepared / "train.jsonl"), test)
    if found:
        raise DataError(f"data/prepared: {len(found)} test prompts stand in train too ({found[0]}…); run prepare again")
    if reports["validation"]["errors"]:
        raise DataError("reports/validation.json: holds errors, among them budgets for lost tokens; run validate again")


def to_json(
    verdict: Verdict, outcomes: list[Outcome], gate: Gate, look: int, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """The decision for machines."""
    return {
        "verdict": verdict.name,
        "sentence": verdict.sentence,
        "passed": sum(item.status == "pass" for item in outcomes),
        "criteria": [item.to_json() for item in outcomes],
        "reasons": list(verdict.reasons),
        "suggestions": [{"code": item.code, "text": item.text} for item in verdict.suggestions],
        "policy": gate.policy,
        "confidence": gate.confidence,
        "look": look,
        "adapter_sha256": evaluation["adapter_sha256"],
        "test_sha256": evaluation["test_sha256"],
    }


def show(verdict: Verdict, outcomes: list[Outcome]) -> None:
    """The verdict as a table, for the person who watches."""
    rows = [
        [
            item.status,
            item.criterion,
            amount(item.estimate, item.unit),
            f"{amount(item.lower, item.unit)} … {amount(item.upper, item.unit)}",
            item.reason,
        ]
        for item in outcomes
    ]
    table("decide: the gate", ["status", "criterion", "estimate", "bounds", "evidence"], rows)
    table("verdict", ["", ""], [[verdict.name, verdict.sentence]])
    for item in verdict.suggestions:
        say(f"  next: {item.text}")
    say("open reports/report.html; machines read reports/decision.json (make gate)")
