"""train on one GPU: real architectures with random weights, 16 bit and NF4, kernels, packing, plain TRL. Not run yet.

python benchmarks/bench_train_cuda.py    # an hour; the results include the plan's prediction
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_train import BASELINE, FIRST_SEED, validation_loss
from measure import changed, results_file, what_ran
from measured_stage import run_measured_stage
from train_workloads import Workload, build_workspace

from finetune.config.loading import read_yaml
from finetune.config.params import Config, parse_config
from finetune.files.atomic import write_json
from finetune.hardware.devices import describe_machine
from finetune.hardware.versions import versions


@dataclass(frozen=True)
class Setting:
    """One way of training."""

    name: str
    side: str  # ours or plain
    changes: dict[str, Any] = field(default_factory=dict)  # in params.yaml, for ours


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
    """Compare speed, share of the device's peak, and peak memory with the plan, in 16 bit and NF4. Not measured yet."""
    result = []
    for quantization in ("none", "nf4"):
        for packing in (False, True):
            changes = {**GPU, "model.quantization": quantization, "train.packing": packing}
            changes |= {"train.num_train_epochs": 1}
            workload = Workload(f"{quantization}-{packing}", 512, "random", changes, base, layers)
            folder = place / workload.name
            config = build_workspace(workload, folder, "cuda")
            for setting in [PACKED] if packing else GPU_SETTINGS:
                run = run_setting(setting, folder)
                reached = against_plan(run, config, setting.changes, folder, machine)
                result.append({"quantization": quantization, "setting": setting.name, **reached, "run": run})
    return result


def run_setting(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train in a fresh process, then evaluate its adapter here."""
    params = {**read_yaml(folder / "params.yaml"), "seed": FIRST_SEED}
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    how = setting.name.split(", ")[1] if setting.side == "plain" else "-"
    result = run_measured_stage(setting.side, how, setting.changes, folder)
    return {**result, "validation_loss": validation_loss(folder)}


def against_plan(
    run: dict[str, Any], config: Config, changes: dict[str, Any], folder: Path, machine: str
) -> dict[str, Any]:
    """Return tokens per second, the share of the data sheet's peak that was reached, and the predicted peak memory."""
    from finetune.model.architecture import measure_architecture
    from finetune.model.base_config import find_base_config
    from finetune.plan.machines import MACHINES
    from finetune.plan.memory import plan_memory
    from finetune.plan.time import run_flops

    used = parse_config(changed(config.model_dump(mode="json"), changes), "params.yaml")
    architecture = measure_architecture(find_base_config(used.model, folder))
    length, batch = used.train.max_length, used.train.per_device_train_batch_size
    share, usual = run["supervised_tokens"] / run["tokens"], run["tokens"] / (run["steps"] * batch)
    flops = run_flops(architecture, used.train, positions=run["tokens"], length=usual, supervised_share=share) / int(
        used.train.num_train_epochs
    )  # the counts are over all epochs
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


def main() -> None:
    """Run the requested measurements and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--base", default="meta-llama/Llama-3.2-3B-Instruct", help="an architecture in models/architectures"
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--machine", default="h100", help="machine whose data sheet to compare with")
    parser.add_argument("--out", type=Path, default=results_file("train-cuda"))
    options = parser.parse_args()
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as name:
        result = compare_on_gpu(options.base, options.layers, options.machine, Path(name))
    write_json(
        out, {"runs": result, **what_ran(), "versions": versions(), "machine": describe_machine("cuda").model_dump()}
    )


if __name__ == "__main__":
    main()
