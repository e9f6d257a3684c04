"""`make exps`: what `dvc exp show` knows, cut to what tells experiments apart.

Reads `dvc exp show --json`; shows verdict, quality, loss, cost and those params that differ between the rows.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune.console import table
from finetune.errors import DataError

FIGURES = {
    "verdict": ("reports/decision.json", "verdict"),
    "exact match": ("reports/evaluation.json", "groups.all.candidate.exact_match"),
    "macro-F1": ("reports/evaluation.json", "groups.all.candidate.macro_f1"),
    "validation loss": ("reports/train.json", "validation_loss"),
    "seconds an answer": ("reports/cost.json", "latency.candidate.mean_seconds"),
    "memory, GB": ("reports/cost.json", "memory.largest_bytes"),
    "training, s": ("reports/train_cost.json", "wall_seconds"),
}


@dataclass(frozen=True)
class Experiment:
    """One row: its name, its params by dotted key, its figures by title."""

    name: str
    params: dict[str, Any]
    figures: dict[str, Any]


def show() -> None:
    """The table of the working tree, the present commit and the experiments on it."""
    experiments = list(read_experiments(_ask_dvc()))
    changed = differing_params(experiments)
    titles = [title for title in FIGURES if any(title in item.figures for item in experiments)]
    rows = [
        [item.name, *(_cell(title, item.figures.get(title)) for title in titles)]
        + [str(item.params.get(key, "")) for key in changed]
        for item in experiments
    ]
    table("experiments (all columns: dvc exp show)", ["experiment", *titles, *changed], rows)


def _ask_dvc() -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"dvc exp show: {last}")
    return json.loads(done.stdout)


def read_experiments(shown: list[dict[str, Any]]) -> Iterator[Experiment]:
    """The rows of `dvc exp show --json`, each commit followed by its experiments; unfinished ones are named so."""
    for commit in shown:
        yield _experiment(commit, _name(commit))
        for found in commit.get("experiments") or []:
            state = (found.get("executor") or {}).get("state") or "success"
            for item in found["revs"]:
                name = _name(item)
                yield _experiment(item, name if state == "success" else f"{name} ({state.lower()})")


def _name(item: dict[str, Any]) -> str:
    rev = str(item["rev"])
    return str(item["name"] or (rev if rev == "workspace" else rev[:7]))


def _experiment(item: dict[str, Any], name: str) -> Experiment:
    data = item.get("data") or {}
    metrics = {file: found.get("data") or {} for file, found in (data.get("metrics") or {}).items()}
    params = (((data.get("params") or {}).get("params.yaml")) or {}).get("data") or {}
    figures = {title: _dig(metrics.get(file, {}), key) for title, (file, key) in FIGURES.items()}
    return Experiment(name, dict(_flatten(params)), {key: value for key, value in figures.items() if value is not None})


def _dig(content: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_params(experiments: list[Experiment]) -> list[str]:
    """The dotted keys whose value is not the same in all rows that have params."""
    known = [item.params for item in experiments if item.params]
    keys = list(dict.fromkeys(key for params in known for key in params))
    return [key for key in keys if len({json.dumps(params.get(key), sort_keys=True) for params in known}) > 1]


def _cell(title: str, value: Any) -> str:
    if value is None:
        return ""
    if title.startswith("memory"):
        return f"{value / 1e9:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
