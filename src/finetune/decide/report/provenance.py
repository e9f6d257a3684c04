"""The report's provenance: rows and tokens, risks in the data, findings, and hashes down to the base model."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from finetune.decide.report.formatting import amount, listed, name, plain_name, spaced
from finetune.decide.run_reports import Decided
from finetune.reports.base import BaseIdentity, MachineReport
from finetune.reports.evaluation import SideReport
from finetune.reports.prepare import PrepareReport
from finetune.reports.train import StartReport, TrainReport

SPLITS = ("train", "validation", "test")
# The only machine properties to include: the report is published and must not identify the machine's owner.
MACHINE = (
    "system",
    "processor",
    "cores",
    "memory_bytes",
    "device",
    "gpu",
    "gpu_memory_bytes",
    "cuda",
    "arithmetic",
    "image",
)


def show_ledger(run: Decided) -> dict[str, Any]:
    """Return rows by source and tokens by split."""
    sources = [
        {
            "name": name(source),
            "read": account.read,
            "dropped": [(name(spaced(reason)), count) for reason, count in sorted(account.dropped.items()) if count],
            "kept": account.kept,
            "splits": [account.splits.get(split, 0) for split in SPLITS],
        }
        for source, account in run.reports.prepare.sources.items()
    ]
    tokens = [{"split": split, **counts.to_json()} for split, counts in run.reports.validation.tokens.items()]
    splits = {split: found.examples for split, found in run.reports.prepare.splits.items()}
    return {"sources": sources, "tokens": tokens, "splits": splits}


def show_risks(prepare: PrepareReport) -> list[dict[str, Any]]:
    """Return how many rows contain each kind of risk: only counts, never the rows."""
    totals: Counter[str] = Counter()
    for account in prepare.sources.values():
        for kind, found in account.risks.items():
            totals[kind] += found.rows
    return [{"kind": name(spaced(kind)), "rows": rows} for kind, rows in totals.most_common()]


def show_provenance(run: Decided) -> list[tuple[str, str, str | None]]:
    """Return everything that the result was made from, as (what, text, hash or None)."""
    evaluation, train, cost = run.reports.evaluation, run.reports.train, run.reports.cost
    base, prepared = evaluation.base, run.reports.prepare.prepared_sha256
    rows: list[tuple[str, str, str | None]] = [
        ("Base model", plain_name(base.name, base.revision), base.revision),
        ("Adapter", f"repeatability tier: {train.tier}", evaluation.adapter_sha256),
        *(("Started from", plain_name(start.source), start.sha256) for start in lineage(train)),
        ("Candidate", _side(evaluation.candidate, base), None),
        ("Baseline", _side(evaluation.baseline, base), None),
        *((f"{split.capitalize()} split", "", prepared[split]) for split in SPLITS),
        ("Predictions", "", evaluation.predictions_sha256),
        ("Measured times", "", cost.latency_sha256),
        ("Run fingerprint", "hash of params, data, base, code and locks", train.fingerprint),
        ("Seed", str(run.seed), None),
        ("Generation", listed(evaluation.generation), None),
        *((f"Scorer {name(scorer)}", _settings(found), None) for scorer, found in evaluation.scorers.items()),
        *((f"Judge {name(scorer)}", _settings(kept), None) for scorer, kept in evaluation.judges.items()),
        (
            "Training",
            f"attention {train.attention}, {train.micro_batch} rows per pass x {train.accumulation} passes per step",
            None,
        ),
        ("Training machine", describe_machine(run.reports.train_cost.machine), None),
        ("Evaluation machine", describe_machine(cost.machine), None),
        ("Versions", ", ".join(f"{name(key)} {name(value)}" for key, value in cost.versions.items()), None),
    ]
    return rows


def lineage(train: TrainReport) -> list[StartReport]:
    """Return the adapters that the training continued from, the latest first."""
    found, start = [], train.start
    while start is not None:
        found.append(start)
        start = start.start
    return found


def _side(side: SideReport, base: BaseIdentity) -> str:
    suffix = " (recorded earlier)" if side.recorded else ""
    label = plain_name(side.name, base.revision if side.name == base.name else None)
    return f"{name(side.form)}{f', {label}' if label else ''}{suffix}"


def _settings(kept: Mapping[str, Any]) -> str:
    """Format the settings of a scorer or a judge, without its address and its failures."""
    shown = {key: value for key, value in kept.items() if key not in ("url", "first_failure")}
    models = {"model": plain_name(shown["model"])} if "model" in shown else {}
    served = {"served": [plain_name(model) for model in shown["served"]]} if "served" in shown else {}
    return listed(shown | models | served)


def describe_machine(machine: MachineReport) -> str:
    """Describe processor, cores, memory and device, without host name or paths."""
    found = []
    for key in MACHINE:
        value = getattr(machine, key)
        if value is None:
            continue
        if isinstance(value, Mapping):
            found.append(listed(value))
        elif key.endswith("memory_bytes"):
            found.append(f"{amount(value, 'bytes')} of {'GPU ' if key.startswith('gpu') else ''}memory")
        else:
            found.append(f"{value} cores" if key == "cores" else name(value))
    return ", ".join(found)
