"""The validate stage: prepared splits -> `data/validated`, `reports/validation.json` and `.md`; stops at errors."""

from pathlib import Path
from typing import Any

from finetune.config.types import SPLITS, Split
from finetune.config.validate import ValidateParams
from finetune.console import say
from finetune.errors import ConfigError, DataError
from finetune.files.atomic import publish_directory, write_json, write_lines
from finetune.files.hashing import sha256_file
from finetune.files.manifests import write_manifest
from finetune.model.start import FILE
from finetune.paths import Paths
from finetune.plan.outlook import RunPlan, Workload, make_plan
from finetune.records.examples import Example
from finetune.records.io import read_examples
from finetune.reports.base import BaseIdentity, read_report
from finetune.reports.prepare import PrepareReport
from finetune.reports.validation import ValidationReport
from finetune.validate.checks.base_model import Base, examine_base
from finetune.validate.checks.config import check_config
from finetune.validate.checks.data import check_data
from finetune.validate.checks.machine import check_disk, check_machine
from finetune.validate.checks.scorer import check_scorers
from finetune.validate.checks.start import check_start, keep
from finetune.validate.checks.token import check_padding, check_special_tokens, check_split, check_test_answers
from finetune.validate.codes import CODES
from finetune.validate.findings import Finding, accept, counted, show_findings, to_markdown
from finetune.validate.tokenized import TokenizedSplit, tokenize_split, workload_of, write_arrow

TRAINED_ON: tuple[Split, ...] = ("train", "validation")
Splits = dict[Split, list[Example]]
Tokens = dict[Split, TokenizedSplit]


def run(params: ValidateParams, paths: Paths) -> None:
    """Tokenize once, run every check, report all findings, and stop at errors that are not accepted."""
    ledger = check_prepared(paths)
    splits: Splits = {name: read_examples(paths.prepared / f"{name}.jsonl") for name in SPLITS}
    base = examine_base(params, paths.root)
    tokens = tokenize_splits(params, base, splits)
    outlook = plan_run(params, base, splits, tokens)
    found = find_all(params, paths.root, splits, base, tokens, outlook)
    of_start, start = check_start(params, base, paths)
    found += of_start + check_scorers(params, splits["test"], ledger.labels, paths.root)
    findings = accept(found, params.findings.accept)

    report = ValidationReport(
        base=BaseIdentity(**base.identity) if base.identity else None,
        max_length=params.train.max_length,
        prepared_sha256=ledger.prepared_sha256,
        schedule=outlook.schedule,
        plan=outlook.report(),
        tokens={name: split.counts for name, split in tokens.items()},
        test_examples=len(splits["test"]),
        findings=[finding.report() for finding in findings],
        errors=sum(finding.stops for finding in findings),
    )
    if not report.errors:
        publish(paths.validated, params, tokens, report, start)
    shares = {name: split.counts.shares(params.train.max_length) for name, split in tokens.items()}
    counts = {name: split.counts.to_json() | shares[name] for name, split in tokens.items()}
    tables = {"Plan": outlook.table(), "Schedule": outlook.schedule.to_json(), "Tokens": by_measure(counts)}
    write_lines(paths.reports / "validation.md", [to_markdown(findings, tables)])
    write_json(paths.reports / "validation.json", report.to_json())
    show(findings, outlook)
    stop_at_errors(findings)


def check_prepared(paths: Paths) -> PrepareReport:
    """Return prepare's ledger. Raise DataError unless it matches the prepared splits."""
    ledger = read_report(paths.reports / "prepare.json", PrepareReport)
    for name in SPLITS:
        path = paths.prepared / f"{name}.jsonl"
        if not path.exists() or sha256_file(path) != ledger.prepared_sha256[name]:
            raise DataError(path, "is not the file that prepare wrote", "run prepare again (dvc repro -f -s prepare)")
    return ledger


def tokenize_splits(params: ValidateParams, base: Base, splits: Splits) -> Tokens:
    """Tokenize the splits used in training; empty if tokenizer or template is unusable, which findings report."""
    if base.tokenizer is None or any(finding.code == "template-broken" for finding in base.findings):
        return {}
    return {name: tokenize_split(base.tokenizer, splits[name], params.train, params.seed) for name in TRAINED_ON}


def plan_run(params: ValidateParams, base: Base, splits: Splits, tokens: Tokens) -> RunPlan:
    """Plan schedule, parameters and memory from the counts, or from the maximum that max_length allows."""
    if "train" not in tokens or not tokens["train"].rows:
        workload = Workload.at_most(params.train, len(splits["train"]), len(splits["validation"]))
    else:
        workload = workload_of(tokens["train"].counts, tokens["validation"].counts)
    return make_plan(params, base.architecture, workload)


def find_all(
    params: ValidateParams, root: Path, splits: Splits, base: Base, tokens: Tokens, outlook: RunPlan
) -> list[Finding]:
    """Return the findings of all checks; none of them stops another."""
    findings = [*check_config(params, root, base, outlook), *check_machine(params)]
    findings += [*check_disk(root, outlook.disk_bytes), *check_data(params, splits)]
    for name, split in tokens.items():
        findings += check_split(params, base.tokenizer, name, split)
    if tokens:
        findings += check_padding(params.train, tokens["train"].counts)
        findings += check_special_tokens(base.tokenizer, splits)
        positions = base.architecture.max_positions if base.architecture else None
        findings += check_test_answers(params, base.tokenizer, splits["test"], positions)
    return findings


def publish(
    folder_: Path, params: ValidateParams, tokens: Tokens, report: ValidationReport, start: Path | None
) -> None:
    """Write the input of train, and the counts that it is checked against."""
    with publish_directory(folder_) as folder:
        for name, split in tokens.items():
            write_arrow(folder / f"{name}.arrow", split.rows, packed=params.train.packing)
        content, asked = report.to_json(), params.adapter.start
        lineage = keep(start, asked, folder / FILE) if start and asked else None
        manifest = {key: content[key] for key in ("base", "max_length", "prepared_sha256", "schedule", "tokens")}
        write_manifest(folder, manifest | {"packing": params.train.packing, "start": lineage})


def by_measure(tokens: dict[Split, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the counts with one row per measure and one column per split, to fit on a page."""
    measures = list(next(iter(tokens.values()), {}))
    return {measure: {name: counts[measure] for name, counts in tokens.items()} for measure in measures}


def stop_at_errors(findings: list[Finding]) -> None:
    """Raise one error for all findings that stop the run: a ConfigError if all of them are about params.yaml."""
    errors = [finding for finding in findings if finding.stops]
    if errors:
        raise (ConfigError if all(CODES[finding.code].in_params for finding in errors) else DataError).of(errors)


def show(findings: list[Finding], outlook: RunPlan) -> None:
    """Print what the user should know before the run."""
    if findings:
        show_findings(findings)
    for line in outlook.lines():
        say(line)
    stopping = sum(finding.stops for finding in findings)
    say(f"{counted(findings)}, {stopping} errors; details in reports/validation.md, codes in docs/findings.md")
