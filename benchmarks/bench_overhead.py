"""Measure the time of the train stage outside of its training steps, by part, on the unmodified embedded recipe.

python benchmarks/bench_overhead.py    # four minutes on two idle cores
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import TRAINING, results_file, what_ran
from measured_stage import BARE, run_measured_stage
from train_workloads import ROOT, run_stage

from finetune.config.loading import read_yaml
from finetune.files.atomic import write_json
from finetune.hardware.host import calm_threads


def measure_overhead(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Measure the embedded recipe: the time outside of the training steps and the scheduled evaluations."""
    (folder / "data").mkdir(parents=True)
    for name in ("models", "data/raw"):
        (folder / name).symlink_to(ROOT / name)
    content = {**read_yaml(ROOT / "params.yaml"), **read_yaml(ROOT / "recipes/tiny.yaml")}
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    for stage in ("prepare", "validate"):
        run_stage(stage, folder)
    return parts_of(run_measured_stage("ours", "-", changes, folder))


def parts_of(run: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of every part of the stage, without imports and loading of the model."""
    own = {name: times["own"] for name, times in run["spans"].items() if name != "loading the model"}
    whole, bare = sum(own.values()), sum(own.get(name, 0.0) for name in (*BARE, "validation"))
    return {
        "stage_seconds": whole,
        "overhead_seconds": whole - bare,
        "overhead_share": (whole - bare) / whole,
        "parts": dict(sorted(own.items(), key=lambda part: -part[1])),
        "run": run,
    }


def show_overhead(result: dict[str, Any]) -> None:
    """Print all parts, the largest first."""
    print(f"\nstage {result['stage_seconds']:.1f} s, overhead {result['overhead_share']:.2%}")
    for name, seconds in result["parts"].items():
        print(f"| {name} | {seconds:.3f} s | {seconds / result['stage_seconds']:.2%} |")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--epochs", type=int, help="number of epochs (default: the recipe's)")
    parser.add_argument("--out", type=Path, default=results_file("overhead"))
    options = parser.parse_args()
    out = options.out.resolve()
    calm_threads()
    changes = {"train.num_train_epochs": options.epochs} if options.epochs else {}
    with tempfile.TemporaryDirectory() as name:
        result = measure_overhead(Path(name) / "embedded", changes)
    show_overhead(result)
    write_json(out, {**result, **what_ran(TRAINING)})


if __name__ == "__main__":
    main()
