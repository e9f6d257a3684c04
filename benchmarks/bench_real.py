"""Fine-tune a real base model on two cores: SmolLM2-135M-Instruct on ten intents of banking77, from rows to a verdict.

Reads data/banking77 and the recipe laptop; builds the base (real_base.py), and runs in work/bench-real.
The fine-tuned model is compared with the base model twice: with the same prompt, and with all labels listed in the
base model's prompt. Every stage runs in its own process, as users run it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import real_base
from measure import TRAINING, changed, results_file, what_ran

from finetune.config.loading import read_yaml
from finetune.config.params import load_config, params_of
from finetune.console import quiet_libraries, say
from finetune.files.atomic import write_json, write_lines
from finetune.files.hashing import sha256_file
from finetune.files.strict_json import read_json
from finetune.hardware.host import calm_threads
from finetune.paths import Paths
from finetune.records.io import read_examples, read_jsonl
from finetune.statistics.proportions import clopper_pearson

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "data/banking77"
FOLDER = ROOT / "work/bench-real"
TEMPLATE = "models/templates/chatml.jinja"
SIDES = ("base", "base, labels in its prompt", "fine-tuned")
SCORERS = ("exact_match", "contains")
SMALL = {"train.logging_steps": 1, "train.eval_steps": 2, "train.save_steps": 2}  # if there are only a few steps
CHANGES: dict[str, Any] = {
    **real_base.TASK,
    "data.split": {"method": "exact", "train": 0.93, "validation": 0.07, "test": 0.0, "stratify_by": "label"},
    "model.base": "base",
    "model.revision": None,
    "train.max_length": 128,
    "train.per_device_train_batch_size": 8,
    "train.per_device_eval_batch_size": 8,
    "train.gradient_accumulation_steps": 2,
    "train.learning_rate": 1e-3,
    "train.activation_checkpointing": False,  # short rows: memory suffices without it
    "train.eval_steps": 25,
    "train.save_steps": 25,
    "evaluate.max_new_tokens": 24,  # the longest label has 17
    "evaluate.batch_size": 32,
    "evaluate.scorers": {
        "exact_match": {"scorer": "exact_match", "of": None},
        "contains": {"scorer": "contains", "of": None, "ignore_case": True},
    },
    "evaluate.memory": {"processes": 3, "batch_size": 8},
    "decide.criteria": [
        {"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.75},
        {"rule": "better_than_baseline", "metric": "contains", "group": "all"},
        {"rule": "memory_at_most", "limit": "4 GB"},
    ],
}


def main() -> None:
    """Run everything, print the results, and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, help="number of training rows of each intent (default: all)")
    parser.add_argument("--test-rows", type=int, help="number of test rows of each intent (default: all)")
    parser.add_argument("--out", type=Path, default=results_file("real"))
    options = parser.parse_args()
    quiet_libraries()
    calm_threads()
    counts = {"train": options.rows, "test": options.test_rows}
    changes = CHANGES | (SMALL if options.rows else {})
    shutil.rmtree(FOLDER, ignore_errors=True)
    folder, prompted = (prepare_folder(FOLDER / name, counts) for name in ("run", "labels"))
    write_params(folder, changes)
    seconds = run_stages(folder, "prepare", "validate")
    predicted = predict_seconds(folder)
    seconds |= run_stages(folder, "train", "evaluate", "decide")
    training = {**describe_training(folder), "predicted_seconds": predicted}
    result = {"training": training, "same_prompt": describe_comparison(folder)}
    write_params(prompted, changes | {"data.labels_in_prompt": True})
    run_stages(prompted, "prepare")
    record_answers(prompted, folder / "answers.jsonl")
    recorded = {"form": "recorded", "name": SIDES[1], "path": "answers.jsonl"}
    baseline = {**recorded, "sha256": sha256_file(folder / "answers.jsonl")}
    write_params(folder, changes | {"evaluate.baseline": baseline})
    run_stages(folder, "evaluate", "decide")
    result["labels_in_prompt"] = describe_comparison(folder)
    write_json(options.out, {**result, "stage_seconds": seconds, **what_ran(TRAINING)})
    say(json.dumps(result, indent=2))


def prepare_folder(folder: Path, counts: dict[str, int | None]) -> Path:
    """Create a folder with the rows, the template, params.yaml and a link to the base."""
    (folder / "data/raw").mkdir(parents=True)
    for name, count in counts.items():
        real_base.copy_rows(ROWS / f"{name}.csv", folder / f"data/raw/{name}.csv", count)
    (folder / TEMPLATE).parent.mkdir(parents=True)
    shutil.copy(ROOT / TEMPLATE, folder / TEMPLATE)
    (folder / "base").symlink_to(real_base.build())
    return folder


def write_params(folder: Path, changes: dict[str, Any]) -> None:
    """Write this repository's params with the recipe laptop and some changes."""
    content: dict[str, Any] = read_yaml(ROOT / "params.yaml") | read_yaml(ROOT / "recipes/laptop.yaml")
    write_json(folder / "params.yaml", changed(content, changes))  # JSON is valid YAML


def run_stages(folder: Path, *names: str) -> dict[str, float]:
    """Run stages and return the seconds of each, with its imports. Raise RuntimeError if one fails."""
    seconds = {}
    for name in names:
        started = time.perf_counter()
        run_command(folder, name)
        seconds[name] = time.perf_counter() - started
    return seconds


def run_command(folder: Path, *words: str, stdout: int | None = None) -> str:
    """Run a command of finetune and return its output if it is piped. Raise RuntimeError if it fails."""
    sources = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources)}
    command = [sys.executable, "-m", "finetune", *words]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=stdout, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode} in {folder}")
    return done.stdout or ""


def predict_seconds(folder: Path) -> dict[str, float]:
    """Return the range that the plan predicts for the training, with the speed of two layers measured here."""
    found: dict[str, float] = json.loads(run_command(folder, "plan", "--probe", "--json", stdout=subprocess.PIPE))[
        "seconds"
    ]
    return found


def record_answers(folder: Path, target: Path) -> None:
    """Let the base model answer the test prompts of a folder one at a time, and record answers and times."""
    os.chdir(folder)  # names in params are relative
    config = load_config(Path("params.yaml"))
    from finetune.evaluate.local import open_local
    from finetune.model.base import load_base
    from finetune.model.tokens import load_tokenizer

    model, tokenizer = load_base(config.model, "cpu").eval(), load_tokenizer(config.model)
    side = open_local({"name": SIDES[1]}, model, tokenizer, params_of("evaluate", config))
    rows = []
    for example in read_examples(Paths().prepared / "test.jsonl"):
        timed = side.time(example)
        row = {"prompt": example.prompt[-1].text, "text": timed.text, "tokens": timed.tokens}
        rows.append({**row, "seconds": timed.seconds, "first_seconds": timed.first})
    write_lines(target, (json.dumps(row) + "\n" for row in rows))
    os.chdir(ROOT)


def describe_training(folder: Path) -> dict[str, Any]:
    """Return the predicted and measured cost of the training, and its losses."""
    reports = {name: read_json(folder / f"reports/{name}.json") for name in ("validation", "train", "train_cost")}
    trained, cost = reports["train"], reports["train_cost"]
    losses = {key: trained[key] for key in ("first_validation_loss", "validation_loss", "kept_step", "steps")}
    return {
        **losses,
        "examples": reports["validation"]["tokens"]["train"]["examples"],
        "validation_examples": reports["validation"]["tokens"]["validation"]["examples"],
        "positions": reports["validation"]["tokens"]["train"]["positions"],
        "predicted_peak_bytes": reports["validation"]["plan"]["memory_bytes"]["peak"],
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "wall_seconds": cost["wall_seconds"],
        "threads": cost["machine"]["arithmetic"]["threads"],
        "parameters": trained["parameters"],
        "adapter_sha256": trained["adapter_sha256"],
    }


def describe_comparison(folder: Path) -> dict[str, Any]:
    """Return both sides' right answers with 95% intervals, their times and losses, and the verdict."""
    names = ("evaluation", "cost", "decision")
    evaluation, cost, decision = (read_json(folder / f"reports/{name}.json") for name in names)
    answered = list(read_jsonl(folder / "out/predictions.jsonl"))
    sides: dict[str, Any] = {}
    for side in ("baseline", "candidate"):
        right = {name: sum(row[side]["scores"][name] for row in answered) for name in SCORERS}
        sides[side] = {
            "name": evaluation[side]["name"],
            "right": {name: proportion(int(count), len(answered)) for name, count in right.items()},
            "loss": evaluation["groups"]["all"][side].get("loss"),
            "seconds_per_answer": cost["latency"][side]["mean_seconds"],
        }
    kept = {key: decision[key] for key in ("verdict", "sentence", "confidence", "criteria")}
    memory = cost["memory"]["largest_bytes"]
    return {"examples": len(answered), **sides, "answering_memory_bytes": memory, "decision": kept}


def proportion(right: int, count: int) -> dict[str, Any]:
    """Return a count with its exact 95% interval."""
    found = clopper_pearson(right, count, 0.95, "two-sided")
    return {"count": right, "share": found.estimate, "lower": found.lower, "upper": found.upper}


if __name__ == "__main__":
    main()
