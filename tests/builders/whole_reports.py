"""Complete reports with all fields of their models; a test sets only the relevant ones."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from finetune.decide.run_reports import RunReports
from finetune.reports.base import Report, parse_report
from finetune.reports.cost import CostReport, LatencyReport
from finetune.reports.decision import DecisionReport
from finetune.reports.evaluation import EvaluationReport
from finetune.reports.prepare import PrepareReport
from finetune.reports.train import TrainCostReport, TrainReport
from finetune.reports.validation import PlanReport, Schedule, TokenCounts, ValidationReport

KINDS: dict[str, type[Report]] = {
    "prepare": PrepareReport,
    "validation": ValidationReport,
    "train": TrainReport,
    "train_cost": TrainCostReport,
    "evaluation": EvaluationReport,
    "cost": CostReport,
    "decision": DecisionReport,
}
MACHINE: dict[str, Any] = {"system": "Linux x86_64", "processor": "a processor", "cores": 2, "memory_bytes": 25 * 10**9}
MACHINE |= {"device": "cpu", "arithmetic": {"instructions": "AVX2", "threads": 2}, "image": None}
SOURCE: dict[str, Any] = {"read": 0, "kept": 0, "groups": 0, "dropped": {}, "risks": {}, "labels": {}}
SOURCE |= {"place": "data/raw/rows.jsonl", "format": "chat", "detected": True, "sha256": None, "revision": None}
SOURCE |= {"bytes": 1000, "unused_columns": [], "bad_rows": [], "splits": {"train": 0, "validation": 0, "test": 0}}
SPLIT = {"examples": 0, "groups": 0, "by_agent": {}, "by_source": {}, "by_label": {}}
TOKENS = dict.fromkeys(TokenCounts.model_fields, 0)
SPLITS = {name: f"{at}" * 64 for at, name in enumerate(("train", "validation", "test"), start=1)}
SCHEDULE = dict.fromkeys(Schedule.model_fields, 1) | {"examples": 0, "warmup_steps": 0}
PLAN = dict.fromkeys(PlanReport.model_fields) | {"machine": "this", "peak_bytes_by_ranks": {}, "workload_counted": True}
ANSWERED = {"do_sample": False, "max_new_tokens": 16}
LATENCY = dict.fromkeys(LatencyReport.model_fields) | {"prompts": 0, "left_out": 0}
LOSSES = {"first_validation_loss": 2.0, "validation_loss": 1.0, "last_validation_loss": 1.0, "train_loss": 1.0}
WHOLE: dict[str, dict[str, Any]] = {
    "prepare": {
        "settings": {"sources": []},
        "sources": {},
        "splits": dict.fromkeys(SPLITS, SPLIT),
        "labels": {},
        "prepared_sha256": SPLITS,
    },
    "validation": {"base": None, "max_length": 64, "prepared_sha256": SPLITS, "test_examples": 0, "errors": 0}
    | {"schedule": SCHEDULE | {"effective_batch_size": 16}, "plan": PLAN, "tokens": {}, "findings": []},
    "train": {"adapter_sha256": "a" * 64, "fingerprint": "f" * 64, "tier": "bitwise", "attention": "sdpa"}
    | {"micro_batch": 16, "accumulation": 1, "steps": 100, "planned_steps": 100, "kept_step": 50, **LOSSES}
    | {"parameters": {"trainable": 10, "total": 100}, "warnings": []},
    "train_cost": {"wall_seconds": 12.5, "steps_per_second": 8.0, "peak_memory_bytes": 10**9, "resumed_from_step": 0}
    | {"machine": MACHINE},
    "evaluation": {"adapter_sha256": "a" * 64, "test_sha256": SPLITS["test"], "look_key": "a" * 64}
    | {"predictions_sha256": "b" * 64, "base": {"name": "models/tiny-base", "revision": "sha256:abc"}}
    | {"baseline": {"form": "base", "name": "tiny-base"}}
    | {"candidate": {"form": "adapter", "name": "tiny-base + adapter aaaaaaaa"}}
    | {"generation": ANSWERED, "baseline_generation": ANSWERED, "problems": [], "forgetting": None}
    | {"scorers": {}, "groups": {}, "classes": {}, "judges": {}},
    "cost": {"latency": LATENCY | {"unanswered": {"baseline": 0, "candidate": 0}}, "settings": {}, "versions": {}}
    | {"memory": {"processes": 0, "largest_bytes": None, "bytes": []}, "machine": MACHINE}
    | {"adapter_sha256": "a" * 64, "latency_sha256": "c" * 64},
    "decision": {"verdict": "deploy", "sentence": "All of it passes.", "passed": 0, "gate_sha256": "d" * 64}
    | {"criteria": [], "reasons": [], "suggestions": [], "changes": []}
    | {"policy": "interval", "confidence": 0.95, "look": 1, "baseline": "tiny-base", "candidate": "tiny"}
    | {"adapter_sha256": "a" * 64, "test_sha256": SPLITS["test"]},
}


def whole(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of this name with these values, and artificial ones for all other fields."""
    found = _merged(WHOLE[name], content)
    if name == "prepare":
        found["sources"] = {source: _merged(SOURCE, account) for source, account in found["sources"].items()}
        found["splits"] = {split: _merged(SPLIT, counts) for split, counts in found["splits"].items()}
    if name == "validation":
        found["tokens"] = {split: _merged(TOKENS, counts) for split, counts in found["tokens"].items()}
    return found


def _merged(default: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    found = deepcopy(dict(default))
    for key, value in content.items():
        mine = found.get(key)
        found[key] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, Mapping) else deepcopy(value)
    return found


def run_reports(contents: Mapping[str, Mapping[str, Any]]) -> RunReports:
    """Return the reports that decide reads, from plain contents; missing ones are artificial."""
    names = [name for name in KINDS if name != "decision"]
    return RunReports(**{name: parse_report(whole(name, contents.get(name, {})), KINDS[name], name) for name in names})
