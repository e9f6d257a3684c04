"""What a config alone determines: the plan, and every finding that needs neither rows nor base model."""

from dataclasses import dataclass
from pathlib import Path

from finetune.config.types import SPLITS
from finetune.config.validate import ValidateParams
from finetune.console import say
from finetune.errors import BaseModelError, DataError
from finetune.files.hashing import sha256_file, sha256_folder
from finetune.paths import Paths
from finetune.plan.machines import MACHINES
from finetune.plan.outlook import RunPlan, Workload, make_plan
from finetune.reports.base import read_report
from finetune.reports.prepare import PrepareReport
from finetune.validate.findings import Finding, accept

ELSEWHERE = frozenset({"device-missing", "this-machine-short"})  # a plan is often made elsewhere than the run


@dataclass(frozen=True)
class Preview:
    """A recipe's config, its plan and its findings; `source` names the origin of the workload."""

    config: ValidateParams
    outlook: RunPlan
    findings: list[Finding]
    source: str


def look_ahead(params: ValidateParams, root: Path, examples: int | None = None, length: int | None = None) -> Preview:
    """Predict a run from its config, using the prepared rows if available."""
    from finetune.validate.checks.base_model import examine_base
    from finetune.validate.checks.config import check_config
    from finetune.validate.checks.machine import check_machine

    base = examine_base(params, root, fetch=False)
    workload, source = find_workload(params, root, examples, length)
    outlook = make_plan(params, base.architecture, workload)
    findings = check_config(params, root, base, outlook)
    if params.machine not in MACHINES:
        findings += check_machine(params)
    hidden = ELSEWHERE | ({"base-missing"} if base.architecture is not None else set())  # its metadata suffice here
    reported = accept([finding for finding in findings if finding.code not in hidden], params.findings.accept)
    # an accepted code that was not found may be about the rows, which only validate checks
    return Preview(params, outlook, [finding for finding in reported if finding.code != "accepted-unused"], source)


def find_workload(
    params: ValidateParams, root: Path, examples: int | None, length: int | None = None
) -> tuple[Workload, str]:
    """Return the rows of the run and the origin of their number. Raise DataError if the number is unknown."""
    if examples is not None:
        validation = round(examples * params.data.split.validation / (params.data.split.train or 1))
        workload = Workload.at_most(params.train, examples, validation, length)
        return workload, f"{examples:,} training examples, assumed to be {workload.longest_row:,} tokens long"
    paths = Paths(root)
    report = paths.reports / "prepare.json"
    prepared = all((paths.prepared / f"{name}.jsonl").is_file() for name in SPLITS)
    if not (prepared and report.is_file()):
        remedy = "run dvc repro prepare, or give the number of rows: ./finetune plan --examples 15000"
        raise DataError(paths.prepared, "no prepared rows", remedy)
    if other := find_stale_rows(params, root):
        say(f"note: data/prepared was made {other}; dvc repro prepare updates it")
    return count_workload(params, root)


def find_stale_rows(params: ValidateParams, root: Path) -> str | None:
    """Return which input of `data/prepared`, a setting or a file of rows, has changed since; None if none has."""
    report = read_report(Paths(root).reports / "prepare.json", PrepareReport)
    if report.settings != params.data.model_dump(mode="json", exclude_unset=True):
        return "with different settings in the section data"
    for account in report.sources.values():
        place = root / account.place
        if not account.sha256 or not place.exists():  # a dataset of the Hub, or a missing file that prepare will report
            continue
        if account.sha256 != (sha256_folder(place) if place.is_dir() else sha256_file(place)):
            return f"from a different version of {account.place}"
    return None


def count_workload(params: ValidateParams, root: Path) -> tuple[Workload, str]:
    """Count the prepared training rows in tokens, with the base's tokenizer if available, else the embedded one."""
    from finetune.model.shrink import rehearsal_tokenizer
    from finetune.records.io import read_examples
    from finetune.validate.tokenized import tokenize_split, workload_of

    examples = read_examples(Paths(root).prepared / "train.jsonl")
    try:
        tokenizer, own = rehearsal_tokenizer(params.model, root)
    except BaseModelError:  # reported as a finding
        source = (
            f"{len(examples):,} prepared rows, assumed to be max_length tokens long because no tokenizer is available"
        )
        return Workload.at_most(params.train, len(examples)), source
    split = tokenize_split(tokenizer, examples, params.train, params.seed)
    held_out = read_examples(Paths(root).prepared / "validation.jsonl")
    if split.refused:
        return Workload.at_most(params.train, len(examples)), f"{len(examples):,} rows that the template rejects"
    workload = workload_of(split.counts, tokenize_split(tokenizer, held_out, params.train, params.seed).counts)
    source = f"{len(examples):,} prepared rows, in tokens of "
    return workload, source + (
        params.model.base if own else "the embedded tokenizer, because the tokenizer of the base is not available"
    )
