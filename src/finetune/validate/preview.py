"""What is known of a run from its config: the plan, and every finding that needs neither its rows nor its base."""

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

ELSEWHERE = frozenset({"device-missing", "this-machine-short"})  # a plan is made where the run is not


@dataclass(frozen=True)
class Preview:
    """A recipe's config, its outlook and its findings; `source` says where the workload was taken from."""

    config: ValidateParams
    outlook: RunPlan
    findings: list[Finding]
    source: str


def look_ahead(params: ValidateParams, root: Path, examples: int | None = None, length: int | None = None) -> Preview:
    """Everything that can be known of a run from its config: with the prepared rows where they are at hand."""
    from finetune.validate.checks.base_model import examine_base
    from finetune.validate.checks.config import check_config
    from finetune.validate.checks.machine import check_machine

    base = examine_base(params, root, fetch=False)
    workload, source = find_workload(params, root, examples, length)
    outlook = make_plan(params, base.architecture, workload)
    findings = check_config(params, root, base, outlook)
    if params.machine not in MACHINES:
        findings += check_machine(params)
    hidden = ELSEWHERE | ({"base-missing"} if base.architecture is not None else set())  # its facts are enough here
    told = accept([finding for finding in findings if finding.code not in hidden], params.findings.accept)
    # what was not found here may be a finding about the rows, which validate alone looks for
    return Preview(params, outlook, [finding for finding in told if finding.code != "accepted-unused"], source)


def find_workload(
    params: ValidateParams, root: Path, examples: int | None, length: int | None = None
) -> tuple[Workload, str]:
    """The rows of the run, and where that is known from; DataError where nothing tells how many there are."""
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
    """What `data/prepared` was made of that is another now, settings or a file of rows; None where nothing is."""
    report = read_report(Paths(root).reports / "prepare.json", PrepareReport)
    if report.settings != params.data.model_dump(mode="json", exclude_unset=True):
        return "with different settings in the section data"
    for account in report.sources.values():
        place = root / account.place
        if not account.sha256 or not place.exists():  # a dataset of the Hub; or prepare will tell
            continue
        if account.sha256 != (sha256_folder(place) if place.is_dir() else sha256_file(place)):
            return f"from a different version of {account.place}"
    return None


def count_workload(params: ValidateParams, root: Path) -> tuple[Workload, str]:
    """The prepared training rows in tokens: the base's own where its tokenizer is at hand, else the embedded one's."""
    from finetune.model.shrink import rehearsal_tokenizer
    from finetune.records.io import read_examples
    from finetune.validate.tokenized import tokenize_split, workload_of

    examples = read_examples(Paths(root).prepared / "train.jsonl")
    try:
        tokenizer, own = rehearsal_tokenizer(params.model, root)
    except BaseModelError:  # the findings tell
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
