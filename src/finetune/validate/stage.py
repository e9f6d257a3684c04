"""The validate stage: prepared splits -> `data/validated`, `reports/validation.json` and `.md`; stops at errors."""

from pathlib import Path
from typing import Any

from finetune.artifacts import publish_directory, read_json, sha256_file, write_json, write_lines, write_manifest
from finetune.config import Config
from finetune.config_types import SPLITS, Split
from finetune.console import say, table
from finetune.errors import ConfigError, DataError
from finetune.model.base import identify_base
from finetune.model.tokens import Tokenized, load_tokenizer
from finetune.paths import Paths
from finetune.plan.schedule import plan_schedule
from finetune.records import read_examples
from finetune.validate.data_checks import check_data
from finetune.validate.findings import Finding, by_severity, to_markdown
from finetune.validate.machine_checks import check_machine
from finetune.validate.run_checks import check_run
from finetune.validate.token_checks import check_answer_lengths, check_tokens, tokenize_split

TRAINED_ON: tuple[Split, ...] = ("train", "validation")


def run(config: Config, paths: Paths) -> None:
    """Tokenize once, run every check, report all findings, and stop if one of them is an error."""
    prepared_sha256 = check_prepared(paths)
    splits = {name: read_examples(paths.prepared / f"{name}.jsonl") for name in SPLITS}
    base = identify_base(config.model)
    tokenizer = load_tokenizer(config.model)

    rows, counts = {}, {}
    findings = check_machine(config, paths.root) + check_data(config, splits)
    for name in TRAINED_ON:
        rows[name], counts[name] = tokenize_split(tokenizer, splits[name], config.train.max_length)
        findings += check_tokens(config.train, name, counts[name])
    findings += check_answer_lengths(tokenizer, splits["test"], config.evaluate.max_new_tokens)
    schedule = plan_schedule(config.train, counts["train"].examples)
    findings = by_severity(findings + check_run(config.train, schedule))

    report: dict[str, Any] = {
        "base": base,
        "max_length": config.train.max_length,
        "prepared_sha256": prepared_sha256,
        "schedule": schedule.to_json(),
        "tokens": {name: counts[name].to_json() for name in TRAINED_ON},
        "test_examples": len(splits["test"]),
        "findings": [finding.to_json() for finding in findings],
        "errors": sum(finding.severity == "error" for finding in findings),
    }
    if not report["errors"]:
        with publish_directory(paths.validated) as folder:
            for name in TRAINED_ON:
                write_arrow(folder / f"{name}.arrow", rows[name])
            manifest = {key: report[key] for key in ("base", "max_length", "prepared_sha256", "schedule", "tokens")}
            write_manifest(folder, manifest)
    markdown = to_markdown(findings, report["tokens"], report["schedule"])
    write_lines(paths.reports / "validation.md", [markdown])
    write_json(paths.reports / "validation.json", report)
    show(findings, report)
    stop_at_errors(findings)


def check_prepared(paths: Paths) -> dict[str, str]:
    """The hashes of the splits; DataError unless the prepared splits are the files that prepare's ledger speaks of."""
    ledger = read_json(paths.reports / "prepare.json")
    for name in SPLITS:
        path = paths.prepared / f"{name}.jsonl"
        if not path.exists() or sha256_file(path) != ledger["prepared_sha256"][name]:
            raise DataError(f"{path}: is not the file that prepare wrote; run prepare again (dvc repro -f prepare)")
    return dict(ledger["prepared_sha256"])


def write_arrow(path: Path, rows: list[tuple[str, Tokenized]]) -> None:
    """One Arrow stream with the columns that train reads: id, input_ids, labels, length."""
    import pyarrow

    table_ = pyarrow.table(
        {
            "id": pyarrow.array([name for name, _ in rows], pyarrow.string()),
            "input_ids": pyarrow.array([row.input_ids for _, row in rows], pyarrow.list_(pyarrow.int32())),
            "labels": pyarrow.array([row.labels for _, row in rows], pyarrow.list_(pyarrow.int32())),
            "length": pyarrow.array([len(row.input_ids) for _, row in rows], pyarrow.int32()),
        }
    )
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, table_.schema) as stream:
        stream.write_table(table_, max_chunksize=1000)


def stop_at_errors(findings: list[Finding]) -> None:
    """One error that lists every finding of severity `error`: a ConfigError if all of them are about params.yaml."""
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        kind = ConfigError if all(error.startswith("params.yaml") for error in errors) else DataError
        raise kind("\n".join(errors))


def show(findings: list[Finding], report: dict[str, Any]) -> None:
    """A few lines for the person who watches."""
    if findings:
        rows = [[finding.severity, finding.code, str(finding)] for finding in findings]
        table("validate: findings", ["severity", "code", "where, what, what to do"], rows)
    schedule, tokens = report["schedule"], report["tokens"]["train"]
    say(
        f"{schedule['steps']} steps of {schedule['effective_batch_size']} examples, {schedule['warmup_steps']} of them "
        f"warmup; {tokens['tokens']:,} tokens an epoch, {tokens['supervised_tokens']:,} of them supervised"
    )
    say(f"{len(findings)} findings, {report['errors']} errors; details in reports/validation.md")
