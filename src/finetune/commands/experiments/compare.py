"""`finetune compare … …`: compare two runs on the same test set (B - A), example by example and with intervals.

Reads the params, reports and answers of both runs (loading.py), and `data/looks.json`; writes nothing.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.commands.experiments.comparison import compare_sides
from finetune.commands.experiments.listing import WORKSPACE
from finetune.commands.experiments.loading import ComparedRun, read_run
from finetune.commands.experiments.tables import print_comparison
from finetune.config.loading import read_yaml
from finetune.files.nested import dig
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.pipeline.dvc import read_lock, read_yaml_text

CONFIDENCE = 0.95  # if params.yaml does not set it


def run(root: Path, first: str, second: str, *, as_json: bool, as_markdown: bool) -> None:
    """Compare two runs and print the result. Raise ConfigError or DataError if a run is missing or not comparable."""
    a, b = read_run(first, root), read_run(second, root)
    confidence, seed, declared = read_settings(root)
    comparison = compare_sides(a, b, confidence, seed, read_looks(root, a, b, declared))
    if WORKSPACE in (first, second) and (changed := changed_since(root)):
        change = f"params.yaml has changed since its run ({', '.join(changed)})"
        warning = f"{WORKSPACE}: {change}; make repro brings it up to date"
        comparison = replace(comparison, warnings=[*comparison.warnings, warning])
    if as_json:
        print(json.dumps(comparison.to_json(), indent=2, allow_nan=False))
    else:
        print_comparison(comparison, as_markdown=as_markdown)


def changed_since(root: Path) -> list[str]:
    """Return the parameters of the stages behind the answers that differ between params.yaml and dvc.lock."""
    lock = read_lock(root)
    if lock is None:
        return []
    stages, params = dig(read_yaml_text(lock), ("stages",)) or {}, read_yaml(root / "params.yaml")
    seen = {
        key: value
        for name, stage in stages.items()
        if name != "decide"
        for key, value in (dig(stage, ("params", "params.yaml")) or {}).items()
    }
    return [key for key, value in seen.items() if dig(params, key.split(".")) != value]


def read_settings(root: Path) -> tuple[float, int, int | None]:
    """Return confidence, seed and declared looks of the working tree's params.yaml, whatever its version."""
    params = read_yaml(root / "params.yaml")
    confidence, seed, looks = dig(params, ("decide", "confidence")), dig(params, ("seed",)), ("decide", "looks")
    valid = isinstance(confidence, float) and 0.5 < confidence < 1
    return confidence if valid else CONFIDENCE, seed if isinstance(seed, int) else 0, dig(params, looks)


def read_looks(root: Path, a: ComparedRun, b: ComparedRun, declared: int | None) -> dict[str, Any]:
    """Return the number of looks at this test set, and which look each of the two runs was."""
    path = Paths(root).looks
    seen = (read_json(path) if path.exists() else {}).get(a.evaluation["test_sha256"], [])
    adapters = [side.evaluation["adapter_sha256"] for side in (a, b)]
    numbers = [seen.index(adapter) + 1 if adapter in seen else None for adapter in adapters]
    return {"taken": len(seen), "declared": declared, "a": numbers[0], "b": numbers[1]}
