"""Compare train with its peers: the same rows, base, epochs, batch, schedule, seed and adapter for each.

    python benchmarks/bench_train.py --peers FOLDER    # made by benchmarks/peers.sh; without it: this package and TRL

Every training is a separate process, and a round runs each side once, in random order. Unequal work is an error:
supervised tokens, steps and learning rates (except with packed rows), and validation losses that differ too much.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from measure import TRAINING, results_file, what_ran
from train_sides import ADAPTER, BASELINE, PACKED, SIDES, Side, write_inputs
from train_workloads import CPU, ROOT, SEED, Workload, build_workspace

from finetune.config.loading import read_yaml
from finetune.config.params import load_config
from finetune.files.atomic import write_json
from finetune.files.manifests import read_manifest
from finetune.files.strict_json import read_json
from finetune.hardware.host import calm_threads

FIRST_SEED = 42  # of the first round; every round has another one, to show the spread of the losses
ALIKE = 0.1  # nats per supervised token between two sides of one round; their orders of rows differ, as with seeds


def interpreter(side: Side, peers: Path | None) -> str | None:
    """Return the side's Python, or None if its environment does not exist."""
    if not side.environment:
        return sys.executable
    found = peers / side.environment / "bin/python" if peers else None
    return str(found) if found and found.exists() else None


def run_once(side: Side, python: str, folder: Path, seed: int) -> dict[str, Any]:
    """Train in a fresh process, then evaluate its adapter here. Raise RuntimeError with its output if it fails."""
    for name in ("out", "work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    params = {**read_yaml(folder / "params.yaml"), "seed": seed}
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    os.chdir(folder)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "" if side.environment else str(ROOT / "src")}
    command = [python, str(ROOT / "benchmarks/watched_training.py"), "report.json", *side.ask(params)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{side.name}:\n{done.stdout[-1500:]}{done.stderr[-3000:]}")
    found = read_json(folder / "report.json")
    return {"process_seconds": wall, **found, "validation_loss": validation_loss(folder)}


def validation_loss(folder: Path) -> float:
    """Return the adapter's nats per supervised token over all validation rows, one row at a time."""
    import torch
    from datasets import Dataset
    from peft import PeftModel

    from finetune.model.base import load_base

    config = load_config(folder / "params.yaml")
    base = load_base(config.model, "cuda" if config.environment == "cuda" else "cpu")
    model = PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    total, count = 0.0, 0
    for row in Dataset.from_file(str(folder / "data/validated/validation.arrow")):
        ids, labels = (torch.tensor([row[name]], device=base.device) for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        total, count = total + float(losses), count + int((labels[0, 1:] != -100).sum())
    return total / count


def compare(workload: Workload, rounds: int, peers: Path | None, place: Path) -> dict[str, Any]:
    """Run all available sides in rounds. Raise RuntimeError if one did different work."""
    folder = place / workload.name
    config = build_workspace(workload, folder, "cpu")
    write_inputs(folder)
    tokens = read_manifest(folder / "data/validated")["tokens"]
    there = {side: python for side in SIDES if (python := interpreter(side, peers))}
    if peers and (missing := [side.name for side in SIDES if side not in there]):
        raise SystemExit(f"error: {peers}: no environment of {', '.join(missing)}; run benchmarks/peers.sh {peers}")
    runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in there}
    draw = random.Random(SEED)  # noqa: S311
    for number in range(rounds):
        for side in draw.sample(list(there), len(there)):
            found = {"round": number, **run_once(side, there[side], folder, FIRST_SEED + number)}
            runs[side.name].append(found)
            show_run(workload.name, side.name, found)
    expected = tokens["train"]["supervised_tokens"] * int(config.train.num_train_epochs)
    if unequal := list(unequal_work(runs, expected)):
        raise RuntimeError("not the same work: " + "; ".join(unequal))
    return {"tokens": tokens, "changes": workload.changes, "runs": runs, "table": summarize(runs)}


def unequal_work(runs: dict[str, list[dict[str, Any]]], supervised_tokens: int) -> Iterator[str]:
    """Yield differences between a side's work and the baseline's in the same round; packs differ in rows by nature."""
    for name, found in runs.items():
        for run, baseline in zip(found, runs[BASELINE], strict=True):
            if run["supervised_tokens"] != supervised_tokens:
                yield f"{name}: {run['supervised_tokens']} supervised tokens, not validate's {supervised_tokens}"
            same = ("steps", "learning_rates") if name != PACKED else ()
            yield from (f"{name}: other {what} than the baseline's" for what in same if run[what] != baseline[what])
            if abs(run["validation_loss"] - baseline["validation_loss"]) > ALIKE:
                losses = f"{run['validation_loss']:.3f}, the baseline's {baseline['validation_loss']:.3f}"
                yield f"{name}: validation loss {losses}"


def show_run(workload: str, side: str, found: dict[str, Any]) -> None:
    """Print one line of progress."""
    seconds = f"steps {found['step_seconds']:.1f} s, {found['step_cpu_seconds']:.1f} s of the processor"
    told = f"{seconds}, process {found['process_seconds']:.1f} s, validation {found['validation_loss']:.4f}"
    print(f"{workload:7} {side:24} round {found['round']}: {told}", file=sys.stderr, flush=True)


MEDIANS = ("step_seconds", "step_cpu_seconds", "process_seconds", "peak_memory_bytes", "train_loss", "validation_loss")


def summarize(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row per side: medians over the rounds, ranges of the speed, and ratios to the baseline by round."""
    baseline = {run["round"]: run for run in runs[BASELINE]}
    return [summarize_side(name, found, baseline) for name, found in runs.items()]


def summarize_side(name: str, runs: list[dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the table; `faster` compares processor seconds, which other load does not change."""
    speeds = sorted(run["supervised_tokens"] / run["step_cpu_seconds"] for run in runs)
    ratios = sorted(baseline[run["round"]]["step_cpu_seconds"] / run["step_cpu_seconds"] for run in runs)
    return {
        "side": name,
        "rounds": len(runs),
        **{key: median(run[key] for run in runs) for key in MEDIANS},
        **{key: runs[0][key] for key in ("steps", "positions", "supervised_tokens", "versions")},
        "tokens_per_second": [speeds[0], median(speeds), speeds[-1]],
        "faster": [ratios[0], median(ratios), ratios[-1]],
        "validation_losses": sorted(run["validation_loss"] for run in runs),
    }


def main() -> None:
    """Run the requested measurements and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=[*CPU], default=["short"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--peers", type=Path, help="folder with the environments of the other tools")
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads on every side")
    parser.add_argument("--out", type=Path, default=results_file("train"))
    options = parser.parse_args()
    out, peers = options.out.resolve(), options.peers.resolve() if options.peers else None
    calm_threads()  # for every side: beside other processes, spinning threads would distort the measurement
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for only in options.only:
            found[only] = compare(replace(CPU[only], rows=options.rows), options.rounds, peers, Path(name))
            about = {"seed": SEED, "rows": options.rows, "threads": options.threads}
            write_json(out, {**about, "workloads": found, **what_ran(TRAINING)})
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
