"""Reports of each stage for a run created in memory."""

from typing import Any

from finetune.records.examples import Prediction
from tests.builders.report_answers import PROBLEM, SCORERS, SHA, make_classes, make_groups
from tests.builders.whole_reports import MACHINE


def make_prepare() -> dict[str, Any]:
    """Return prepare.json of one source."""
    return {
        "settings": {"sources": [{"name": "cpython", "path": "/home/me/data.jsonl"}]},
        "sources": {
            "cpython": {
                "place": "/home/me/data.jsonl",
                "read": 3756,
                "dropped": {"exact_duplicate": 132, "near_duplicate": 11, "not_successful": 199},
                "kept": 3414,
                "splits": {"train": 2731, "validation": 238, "test": 445},
                "risks": {
                    "e-mail address": {"rows": 12, "first_lines": [3, 8]},
                    "secret": {"rows": 1, "first_lines": [5]},
                },
            }
        },
        "splits": {name: {"examples": size} for name, size in (("train", 2731), ("validation", 238), ("test", 445))},
        "prepared_sha256": {"train": "1" * 64, "validation": "2" * 64, "test": SHA["test"]},
    }


def make_validation() -> dict[str, Any]:
    """Return validation.json with a note and an accepted warning."""
    finding = {"code": "last-batch-partial", "severity": "note", "cost": "nothing", "place": "params.yaml: train"}
    finding |= {"message": "the last step takes 11 of 16 examples", "remedy": "nothing to do", "accepted": None}
    tokens = {"tokens": 149271, "supervised_tokens": 9362}
    known = {"code": "class-imbalance", "severity": "warning", "cost": "quality", "place": "data/prepared"}
    known |= {"message": "one class has 52%", "remedy": "add others", "accepted": "so is the world"}
    return {
        "schedule": {"steps": 342},
        "plan": {"memory_bytes": {"peak": 1202381824}, "flops": 2.06e12, "evaluation_flops": 3.8e11},
        "tokens": {"train": tokens, "validation": tokens},
        "findings": [finding, known],
    }


def make_train() -> dict[str, Any]:
    """Return train.json of a complete run."""
    losses = {"first_validation_loss": 5.0868, "validation_loss": 0.7669, "last_validation_loss": 0.7669}
    parameters = {"trainable": 217088, "total": 2186176}
    kept = {"steps": 342, "kept_step": 342, "parameters": parameters}
    return {"fingerprint": SHA["fingerprint"], "adapter_sha256": SHA["adapter"], **kept, **losses}


def make_evaluation(predictions: list[Prediction]) -> dict[str, Any]:
    """Return evaluation.json of these answers."""
    hellaswag = {"examples": 200, "metric": "acc", "baseline": 0.271, "candidate": 0.262, "lower": -0.04, "upper": 0.02}
    generation = {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, "eos_token_id": [2]}
    return {
        "adapter_sha256": SHA["adapter"],
        "test_sha256": SHA["test"],
        "predictions_sha256": SHA["day"],
        "base": {"name": "models/tiny-base", "revision": f"sha256:{SHA['base']}"},
        "candidate": {"form": "adapter", "name": "tiny", "recorded": False},
        "baseline": {"form": "base", "name": "models/tiny-base", "recorded": False},
        "generation": generation,
        "baseline_generation": dict(generation),
        "scorers": SCORERS,
        "problems": [PROBLEM],
        "groups": make_groups(predictions),
        "classes": make_classes(predictions),
        "judges": {},
        "forgetting": {"tasks": {"hellaswag": hellaswag}},
    }


def make_cost() -> dict[str, Any]:
    """Return cost.json of 60 prompts."""
    side = {"p50_seconds": 0.09, "p95_seconds": 0.19, "mean_first_seconds": 0.011}
    return {
        "adapter_sha256": SHA["adapter"],
        "latency_sha256": SHA["cost"],
        "latency": {
            "prompts": 60,
            "baseline": {"mean_seconds": 0.107, "mean_tokens": 14.3, "tokens_per_second": 133.7, **side},
            "candidate": {"mean_seconds": 0.047, "mean_tokens": 3.15, "tokens_per_second": 66.8, **side},
            "same_length": {"tokens": 16, "baseline_seconds": 0.11, "candidate_seconds": 0.118},
            "identical_answers": 0.983,
            "left_out": 0,
        },
        "memory": {"processes": 3, "largest_bytes": 564797440, "bytes": [554045440, 564797440, 560443392]},
        "settings": {},
        "machine": MACHINE,
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"},
    }


def make_seeds() -> dict[str, dict[str, Any]]:
    """Return the outcomes of three seeds, as in data/seeds.json."""
    return {
        f"{seed}": {
            "adapter_sha256": f"{seed}" * 32,
            "verdict": "deploy",
            "criteria": {"exact_match of exception-namer at least 0.55": {"status": "pass", "estimate": value}},
        }
        for seed, value in ((42, 0.669), (43, 0.652), (44, 0.681))
    }
