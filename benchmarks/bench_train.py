"""train against plain TRL: the same rows, base, epochs, batch, schedule, seed and adapter, run in different ways.

    python benchmarks/bench_train.py                   # an hour on two idle cores: three workloads and the overhead
    python benchmarks/bench_train.py --device cuda     # real architectures with random weights, on one GPU; never run

Every training is a process of its own, and a round has each setting once, in an order that is drawn. Each side
evaluates and saves at the same steps. All adapters are evaluated by one function on the same rows.
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
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from measure import what_ran
from train_workloads import CPU, ROOT, SEED, Workload, build_workspace

from finetune.artifacts import read_json, read_manifest, write_json
from finetune.config import Config, parse_config, read_yaml
from finetune.machine import calm_threads, describe_machine, versions


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    name: str
    side: str  # ours or plain
    changes: dict[str, Any] = field(default_factory=dict)  # in params.yaml, for ours
    rounds: int = 100  # at most


BASELINE = "TRL, defaults"
FIRST_SEED = 42  # of the first round; every round has its own, so that the spread of the losses is seen
OURS = Setting("ours", "ours")
SETTINGS = [
    Setting(BASELINE, "plain"),
    Setting("TRL, no checkpointing", "plain"),
    Setting("TRL, grouped", "plain"),
    Setting("TRL, packed", "plain", rounds=1),
    OURS,
]


# ---------------------------------------------------------------------------------------------------------- one run


def run_once(setting: Setting, folder: Path, seed: int) -> dict[str, Any]:
    """Train in a fresh process, then evaluate its adapter here; RuntimeError with what it said where it fails."""
    for name in ("out", "work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    params = {**read_yaml(folder / "params.yaml"), "seed": seed}
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    how = setting.name.split(", ")[1] if setting.side == "plain" else "-"
    script = str(ROOT / "benchmarks/measured_train.py")
    command = [sys.executable, script, setting.side, how, json.dumps(setting.changes), "report.json"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-3000:])
    found = {"process_seconds": wall, **read_json(folder / "report.json")}
    return {**found, "validation_loss": validation_loss(folder)}


def validation_loss(folder: Path) -> float:
    """Nats a supervised token of the adapter in out/adapter over all validation rows, one row at a time."""
    import torch
    from datasets import Dataset
    from peft import PeftModel

    from finetune.config import load_config
    from finetune.model.base import load_base

    os.chdir(folder)
    config = load_config(Path("params.yaml"))
    base = load_base(config.model, "cuda" if config.environment == "cuda" else "cpu")
    model = PeftModel.from_pretrained(base, "out/adapter").eval()
    total, count = 0.0, 0
    for row in Dataset.from_file("data/validated/validation.arrow"):
        ids, labels = (torch.tensor([row[name]], device=base.device) for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        total, count = total + float(losses), count + int((labels[0, 1:] != -100).sum())
    return total / count


def compare(workload: Workload, rounds: int, more: int, place: Path) -> dict[str, Any]:
    """All settings in rounds, then `more` rounds of the baseline and ours alone."""
    folder = place / workload.name
    config = build_workspace(workload, folder, "cpu")
    tokens = read_manifest(folder / "data/validated")["tokens"]["train"]
    runs: dict[str, list[dict[str, Any]]] = {setting.name: [] for setting in SETTINGS}
    pair = [setting for setting in SETTINGS if setting.name in (BASELINE, OURS.name)]
    draw = random.Random(SEED)  # noqa: S311
    for number in range(rounds + more):
        chosen = [setting for setting in SETTINGS if number < setting.rounds] if number < rounds else pair
        for setting in draw.sample(chosen, len(chosen)):
            found = {"round": number, **run_once(setting, folder, FIRST_SEED + number)}
            runs[setting.name].append(found)
            show_run(workload.name, setting.name, found)
            (place / "so-far.json").write_text(json.dumps(runs), encoding="utf-8")  # of a measurement that is stopped
    expected = tokens["supervised_tokens"] * int(config.train.num_train_epochs)
    wrong = [name for name, found in runs.items() if any(run["supervised_tokens"] != expected for run in found)]
    if wrong:
        raise RuntimeError(f"{', '.join(wrong)}: not the {expected} supervised tokens that validate counted")
    return {"rows": tokens["rows"], "tokens": tokens, "changes": workload.changes, "runs": runs}


def show_run(workload: str, setting: str, found: dict[str, Any]) -> None:
    """One line while it goes on."""
    seconds = f"train {found['train_seconds']:.1f} s, {found['train_cpu_seconds']:.1f} s of the processor"
    told = f"{seconds}, process {found['process_seconds']:.1f} s, validation {found['validation_loss']:.4f}"
    print(f"{workload:6} {setting:28} round {found['round']}: {told}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ results


SPEEDS = ("train_seconds", "train_cpu_seconds", "step_seconds", "step_cpu_seconds")
MEDIANS = (*SPEEDS, "process_seconds", "peak_memory_bytes", "train_loss", "validation_loss")


def summarize(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a setting: medians over the rounds, and the ratio to the baseline round by round."""
    baseline = {run["round"]: run for run in found["runs"][BASELINE]}
    return [summarize_setting(name, runs, baseline, examples(found)) for name, runs in found["runs"].items() if runs]


def summarize_setting(
    name: str, runs: list[dict[str, Any]], baseline: dict[int, dict[str, Any]], rows: int
) -> dict[str, Any]:
    """One row of the table."""
    middle = {key: median(run[key] for run in runs) for key in MEDIANS}
    row = {
        "setting": name,
        "rounds": len(runs),
        **middle,
        **{key: runs[0][key] for key in ("steps", "positions", "supervised_tokens")},
        "examples_per_second": rows / middle["train_cpu_seconds"],
        "tokens_per_second": runs[0]["tokens"] / middle["train_cpu_seconds"],
        "waiting_share": median(share_of_waiting(run) for run in runs),
    }
    for key in SPEEDS:
        ratios = [baseline[run["round"]][key] / run[key] for run in runs]
        row[f"faster_by_{key}"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    return row


def examples(found: dict[str, Any]) -> int:
    """Rows that were trained on, over all epochs."""
    return int(found["rows"] * found["changes"]["train.num_train_epochs"])


def share_of_waiting(run: dict[str, Any]) -> float:
    """The share of the loop that waits for the next micro-batch."""
    return float(run["spans"]["waiting for data"]["own"] / run["step_seconds"])


def show_table(workload: str, table: list[dict[str, Any]]) -> None:
    """The table of docs/benchmarks.md."""
    heads = (
        "train()",
        "of the processor",
        "rows/s",
        "tokens/s",
        "memory",
        "loss",
        "validation",
        "faster",
        "steps alone",
    )
    print(f"\n{workload}\n| | {' | '.join(heads)} |")
    for row in table:
        whole, steps = row["faster_by_train_cpu_seconds"], row["faster_by_step_cpu_seconds"]
        print(
            f"| {row['setting']} | {row['train_seconds']:.1f} s | {row['train_cpu_seconds']:.1f} s "
            f"| {row['examples_per_second']:.0f} | {row['tokens_per_second']:,.0f} "
            f"| {row['peak_memory_bytes'] / 1e9:.2f} GB | {row['train_loss']:.3f} | {row['validation_loss']:.3f} "
            f"| {whole['median']:.2f} ({whole['least']:.2f} to {whole['most']:.2f}) "
            f"| {steps['median']:.2f} ({steps['least']:.2f} to {steps['most']:.2f}) |"
        )


# ----------------------------------------------------------------------------------------------------------- overhead


def measure_overhead(place: Path) -> dict[str, Any]:
    """The embedded recipe as it is: what the stage takes beside the training steps and the scheduled evaluations."""
    from train_workloads import run_stage

    folder = place / "embedded"
    (folder / "data").mkdir(parents=True)
    for name in ("models", "data/raw"):
        (folder / name).symlink_to(ROOT / name)
    content = {**read_yaml(ROOT / "params.yaml"), **read_yaml(ROOT / "recipes/tiny.yaml")}
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    for stage in ("prepare", "validate"):
        run_stage(stage, folder)
    return parts_of(run_once(OURS, folder, FIRST_SEED))


def parts_of(run: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every part of the stage, imports and loading of the model left out."""
    from measured_train import BARE

    own = {name: times["own"] for name, times in run["spans"].items() if name != "loading the model"}
    whole, bare = sum(own.values()), sum(own.get(name, 0.0) for name in (*BARE, "validation"))
    return {
        "stage_seconds": whole,
        "overhead_seconds": whole - bare,
        "overhead_share": (whole - bare) / whole,
        "parts": dict(sorted(own.items(), key=lambda part: -part[1])),
        "run": run,
    }


def show_overhead(found: dict[str, Any]) -> None:
    """Every part, the largest first."""
    print(f"\nstage {found['stage_seconds']:.1f} s, overhead {found['overhead_share']:.2%}")
    for name, seconds in found["parts"].items():
        print(f"| {name} | {seconds:.3f} s | {seconds / found['stage_seconds']:.2%} |")


# --------------------------------------------------------------------------------------------------------------- CUDA

GPU = {"model.dtype": "bfloat16", "train.bf16": True, "train.deterministic": False, "train.max_length": 2048}
GPU_SETTINGS = [
    Setting("sdpa", "ours"),
    Setting("flash attention", "ours", {"model.attention": "flash_attention_2"}),
    Setting("flash attention, liger", "ours", {"model.attention": "flash_attention_2", "train.use_liger_kernel": True}),
    Setting("sdpa, compiled", "ours", {"train.torch_compile": True}),
    Setting(BASELINE, "plain"),
    Setting("TRL, grouped", "plain"),
]
PACKED = Setting("flash attention, packed", "ours", {"model.attention": "flash_attention_2"})


def compare_on_gpu(base: str, layers: int, machine: str, place: Path) -> list[dict[str, Any]]:
    """Not measured yet. Speed, share of the device's peak, and peak memory beside the plan's, in 16 bit and NF4."""
    found = []
    for quantization in ("none", "nf4"):
        for packing in (False, True):
            changes = {**GPU, "model.quantization": quantization, "train.packing": packing}
            changes |= {"train.num_train_epochs": 1}
            workload = Workload(f"{quantization}-{packing}", 512, "random", changes, base, layers)
            folder = place / workload.name
            config = build_workspace(workload, folder, "cuda")
            for setting in [PACKED] if packing else GPU_SETTINGS:
                run = run_once(setting, folder, FIRST_SEED)
                reached = against_plan(run, config, setting.changes, folder, machine)
                found.append({"quantization": quantization, "setting": setting.name, **reached, "run": run})
    return found


def against_plan(
    run: dict[str, Any], config: Config, changes: dict[str, Any], folder: Path, machine: str
) -> dict[str, Any]:
    """Tokens a second, the share of the data sheet's peak that the run reached, and the predicted peak of memory."""
    from train_workloads import changed

    from finetune.model.architecture import find_architecture, measure_architecture
    from finetune.plan.machines import MACHINES
    from finetune.plan.memory import plan_memory
    from finetune.plan.time import run_flops

    used = parse_config(changed(config.model_dump(mode="json"), changes), "params.yaml")
    architecture = measure_architecture(find_architecture(used.model, folder))
    length, batch = used.train.max_length, used.train.per_device_train_batch_size
    share, usual = run["supervised_tokens"] / run["tokens"], run["tokens"] / (run["steps"] * batch)
    flops = run_flops(architecture, used.train, positions=run["tokens"], length=usual, supervised_share=share) / int(
        used.train.num_train_epochs
    )  # what was counted is of all epochs
    plan = plan_memory(
        architecture,
        used.model,
        used.adapter,
        used.train,
        used.environment,
        length=length,
        supervised=round(length * batch * share),
    )
    peak = next(facts.peak_flops for name, facts in MACHINES.items() if name == machine)
    return {
        "tokens_per_second": run["tokens"] / run["step_seconds"],
        "share_of_peak": flops / run["step_seconds"] / peak if peak else None,
        "peak_memory_bytes": run["peak_memory_bytes"],
        "predicted_memory": plan.to_json(),
    }


# ---------------------------------------------------------------------------------------------------------- the whole


def main() -> None:
    """Measure what was asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=[*CPU, "overhead"], default=[*CPU, "overhead"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--more", type=int, default=2, help="rounds of the baseline and ours alone, on short rows")
    parser.add_argument("--base", default="meta-llama/Llama-3.2-3B-Instruct", help="with cuda")
    parser.add_argument("--layers", type=int, default=8, help="with cuda")
    parser.add_argument("--machine", default="h100", help="with cuda: whose data sheet")
    parser.add_argument("--rows", type=int, help="of every workload, where another number than its own is wanted")
    parser.add_argument("--threads", type=int, help="of torch, on every side; its own default where it is left out")
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/results/train-{date.today()}.json")
    options = parser.parse_args()
    calm_threads()  # for every side: beside another process, threads that spin would be measured and not the training
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        found = run_all(options, Path(name))
    old = read_json(options.out) if options.out.exists() else {}
    ran = {**what_ran(), "versions": versions(), "machine": describe_machine(options.device)}
    write_json(options.out, {"seed": SEED, "threads": options.threads, **old, **found, **ran})


def run_all(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Every part that was asked for, shown and given by its name."""
    if options.device == "cuda":
        return {"cuda": compare_on_gpu(options.base, options.layers, options.machine, place)}
    results: dict[str, Any] = {}
    for name in options.only:
        if name == "overhead":
            results[name] = measure_overhead(place)
            show_overhead(results[name])
        else:
            workload = replace(CPU[name], rows=options.rows or CPU[name].rows)
            found = compare(workload, options.rounds, options.more if name == "short" else 0, place)
            results[name] = {**found, "table": summarize(found)}
            show_table(name, results[name]["table"])
    return results


if __name__ == "__main__":
    main()
