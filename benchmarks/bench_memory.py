"""Compare the memory that plan_memory predicts with the memory of real training runs.

    python benchmarks/bench_memory.py                  # an hour on two cores: the CPU grid
    python benchmarks/bench_memory.py --device cuda    # four real architectures with random weights, on one GPU

Every configuration runs the complete train stage in a separate process, on a random base model and artificial rows: two
optimizer steps, with an evaluation and a checkpoint after each. Its peak is measured by the system (VmHWM), on CUDA by
torch. The prediction uses params.yaml, the base's config.json, the longest row and the number of supervised tokens.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import changed, results_file, what_ran
from memory_grid import BASES, Case, cpu_grid, cuda_grid

from finetune.config.loading import read_yaml
from finetune.config.params import Config, params_of, parse_config
from finetune.files.atomic import write_json
from finetune.files.manifests import write_manifest
from finetune.hardware.devices import describe_machine, peak_memory_bytes
from finetune.hardware.host import calm_threads
from finetune.hardware.versions import versions
from finetune.model.architecture import measure_architecture
from finetune.paths import Paths
from finetune.plan.memory import plan_memory

ROOT = Path(__file__).parents[1]
SEED = 20_261_121
STEPS = 2
GIB = 2**30


# ------------------------------------------------------------------------------------------------- a run's workspace


def parameters(case: Case, device: str) -> dict[str, Any]:
    """Return the repository's params.yaml with the case's changes."""
    content: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    changes = {
        "environment": device,
        "model.base": "base",
        "train.max_length": case.length,
        "train.num_train_epochs": 1,
        "train.train_sampling_strategy": "random",
        "train.per_device_train_batch_size": case.batch,
        "train.per_device_eval_batch_size": case.batch,
        "train.gradient_accumulation_steps": 1,
        "train.warmup_steps": 0,
        "train.logging_steps": 1,
        "train.eval_steps": 1,
        "train.save_steps": 1,
        "train.deterministic": device == "cpu",
        **case.changes,
    }
    changes["train.effective_batch_size"] = case.batch * changes["train.gradient_accumulation_steps"]
    return changed(content, changes)


def architecture_facts(base: str) -> dict[str, Any]:
    """Return the config.json of a base model of the grid."""
    if base in BASES:
        common = {"max_position_embeddings": 4096, "tie_word_embeddings": False, "pad_token_id": 0, "head_dim": 64}
        window = {"sliding_window": None} if BASES[base]["model_type"] == "mistral" else {}
        return {**common, **window, **BASES[base]}
    return dict(json.loads((ROOT / "models/architectures" / base / "config.json").read_text(encoding="utf-8")))


def build_base(case: Case, folder: Path) -> None:
    """Write a base model with random weights, in files like those on the Hub, and the embedded tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    facts = architecture_facts(case.base)
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.stored)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "models/tiny-base").save_pretrained(folder)


def write_rows(case: Case, config: Config, paths: Paths) -> None:
    """Write rows of random tokens in validate's format; every second one has the full length."""
    from finetune.model.base import identify_base

    train = config.train
    counts = {
        "train": train.per_device_train_batch_size * train.gradient_accumulation_steps * STEPS,
        "validation": train.per_device_eval_batch_size,
    }
    paths.validated.mkdir(parents=True)
    for name, count in counts.items():
        write_split(case, paths.validated / f"{name}.arrow", count)
    tokens = {
        name: {"examples": count, "rows": count, "supervised_tokens": count * case.supervised}
        for name, count in counts.items()
    }
    manifest = {"base": identify_base(config.model), "max_length": case.length, "tokens": tokens}
    write_manifest(paths.validated, {**manifest, "packing": False, "prepared_sha256": {}})


def write_split(case: Case, path: Path, count: int) -> None:
    """Write one Arrow stream with train's columns; the last tokens of each row are supervised."""
    import pyarrow

    from finetune.model.tokens import IGNORED

    draw, vocabulary = random.Random(SEED), architecture_facts(case.base)["vocab_size"]  # noqa: S311
    rows = [[draw.randrange(3, vocabulary) for _ in range(case.length - number % 2)] for number in range(count)]
    labels = [[IGNORED] * (len(row) - case.supervised) + row[-case.supervised :] for row in rows]
    table = pyarrow.table(
        {
            "id": pyarrow.array([str(number) for number in range(count)], pyarrow.string()),
            "input_ids": pyarrow.array(rows, pyarrow.list_(pyarrow.int32())),
            "labels": pyarrow.array(labels, pyarrow.list_(pyarrow.int32())),
            "length": pyarrow.array([len(row) for row in rows], pyarrow.int32()),
        }
    )
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


# -------------------------------------------------------------------------------------------------------- measuring


def train_here() -> None:
    """Run the train stage in this folder and print its peak memory on the last line."""
    calm_threads()
    from finetune.config.params import load_config
    from finetune.train import stage

    config = load_config(Path("params.yaml"))
    stage.run(params_of("train", config), Paths())
    result: dict[str, Any] = {"peak": peak_memory_bytes(config.environment)}
    if config.environment == "cuda":
        import torch

        result["reserved"] = torch.cuda.max_memory_reserved()
    print(json.dumps(result))


def run_case(case: Case, device: str, bases: Path) -> dict[str, Any]:
    """Return prediction and measurement of one configuration."""
    base = bases / f"{case.base.replace('/', '-')}-{case.stored}"
    if not base.exists():
        build_base(case, base)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").symlink_to(base)
        (folder / "params.yaml").write_text(json.dumps(parameters(case, device)), encoding="utf-8")
        config = parse_config(read_yaml(folder / "params.yaml"), "params.yaml")
        os.chdir(folder)
        write_rows(case, config, Paths())
        return compare(case, predict(case, config), measure_run(folder))


def predict(case: Case, config: Config) -> dict[str, Any]:
    """Return plan_memory's prediction by part, from the base's config.json as build_base writes it."""
    from transformers import AutoConfig

    facts = {**architecture_facts(case.base), "dtype": case.stored}
    plan = plan_memory(
        measure_architecture(AutoConfig.for_model(facts.pop("model_type"), **facts)),
        config.model,
        config.adapter,
        config.train,
        config.environment,
        length=case.length,
        supervised=case.supervised * case.batch,
    )
    return {"phase": plan.phase, **plan.to_json()}


def predict_again(result: dict[str, Any], device: str) -> dict[str, Any]:
    """Return a result with its measurement and a new prediction by the current code."""
    names = ("base", "stored", "batch", "length")
    case = Case(
        result["case"],
        **{name: result[name] for name in names},
        supervised=result["supervised_a_row"],
        changes=result["changes"],
    )
    config = parse_config(parameters(case, device), "params.yaml")
    return compare(case, predict(case, config), result["measured"])


def compare(case: Case, predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the results."""
    # torch's counter on CUDA excludes the context and the libraries, which `runtime` represents
    foreseen = predicted["peak"] - (predicted["runtime"] if "reserved" in measured else 0)
    return {
        "case": case.name,
        "base": case.base,
        "stored": case.stored,
        "batch": case.batch,
        "length": case.length,
        "supervised_a_row": case.supervised,
        "changes": case.changes,
        "predicted": predicted,
        "measured": measured,
        "error_percent": round((foreseen - measured["peak"]) / measured["peak"] * 100, 2),
    }


def measure_run(folder: Path) -> dict[str, Any]:
    """Run the train stage in a fresh process. Raise RuntimeError with its output if it fails."""
    settings = {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings}
    command = [sys.executable, str(ROOT / "benchmarks/bench_memory.py"), "--train-here"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ------------------------------------------------------------------------------------------------- all configurations


def show(result: dict[str, Any]) -> None:
    """Print one row of the table."""
    predicted, measured = result["predicted"]["peak"] / GIB, result["measured"]["peak"] / GIB
    print(f"{result['case']:42} {predicted:8.3f} {measured:8.3f} {result['error_percent']:+7.1f}%", flush=True)


def main() -> None:
    """Measure every configuration and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="", help="only configurations whose name contains this text")
    parser.add_argument("--out", type=Path, default=results_file("memory"))
    parser.add_argument("--again", type=Path, help="reuse the measurements in this file, and predict again")
    parser.add_argument("--train-here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_here:
        return train_here()
    print(f"{'configuration':42} {'predicted':>9} {'measured':>9} {'error':>8}   (GiB)")
    if options.again:
        old = json.loads(options.again.read_text(encoding="utf-8"))
        return report([predict_again(result, options.device) for result in old["configurations"]], options, old)
    grid = [case for case in (cpu_grid() if options.device == "cpu" else cuda_grid()) if options.only in case.name]
    results = []
    with tempfile.TemporaryDirectory() as bases:
        for case in grid:
            results.append(run_case(case, options.device, Path(bases)))
            show(results[-1])
    ran = {**what_ran(), "versions": versions(), "machine": describe_machine(options.device).model_dump()}
    return report(results, options, ran)


def report(results: list[dict[str, Any]], options: argparse.Namespace, ran: dict[str, Any]) -> None:
    """Write all results, including misses, with date, machine and versions of the measurement."""
    if options.again:
        for result in results:
            show(result)
    misses = [result["case"] for result in results if abs(result["error_percent"]) > 10]
    print(f"{len(results) - len(misses)} of {len(results)} within 10%; misses: {', '.join(misses) or 'none'}")
    settings = {name: ran[name] for name in ("date", "machine", "versions")}
    write_json(options.out, {"seed": SEED, "steps": STEPS, "configurations": results, "misses": misses, **settings})


if __name__ == "__main__":
    main()
