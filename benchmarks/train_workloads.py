"""The rows and folders of bench_train.py: embedded rows through prepare and validate, or random tokens."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import changed

from finetune.config.loading import read_yaml
from finetune.config.params import Config, parse_config
from finetune.files.manifests import write_manifest
from finetune.paths import Paths

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "data/raw/cpython/interactions.jsonl"
SEED = 20_261_122
HELD_OUT = 80  # rows of validation, and the same number of test
BASE = "base"  # a workspace's own: random weights, or the embedded base in float32


@dataclass(frozen=True)
class Workload:
    """One comparison: its rows, and its changes to params.yaml."""

    name: str
    rows: int
    # short: single questions, unchanged; uniform: the shortest of these, of nearly equal length; mixed: one to ten
    # questions, up to 256 tokens; random: random tokens (for a GPU)
    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    base: str = "models/tiny-base"  # or an architecture under models/architectures, with random weights
    layers: int = 0  # of such an architecture


CPU = {
    "short": Workload("short", 1440, "short", {"train.num_train_epochs": 2}),
    "uniform": Workload("uniform", 480, "uniform", {"train.num_train_epochs": 2}),
    "mixed": Workload("mixed", 480, "mixed", {"train.num_train_epochs": 1}),
    "nf4": Workload("nf4", 480, "short", {"train.num_train_epochs": 1, "model.quantization": "nf4"}),
}


def parameters(workload: Workload, environment: str) -> dict[str, Any]:
    """Return the repository's params.yaml with the recipe tiny and the workload's changes."""
    content: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    content |= read_yaml(ROOT / "recipes/tiny.yaml")
    total = workload.rows + 2 * HELD_OUT
    steps = workload.rows * workload.changes["train.num_train_epochs"] // content["train"]["effective_batch_size"]
    half = max(1, steps // 2)
    shares = {"train": workload.rows / total, "validation": HELD_OUT / total, "test": HELD_OUT / total}
    changes = {
        "environment": environment,
        "data.sources": [{"name": "rows", "path": "rows.jsonl"}],
        "data.system_prompts": {},
        "data.duplicates.near": "ignore",
        "data.split": {"method": "exact", **shares, "stratify_by": None},
        "evaluate.scorers": {"exact_match": {"scorer": "exact_match", "of": None}},
        "decide.criteria": [{"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.5}],
        "train.warmup_steps": min(10, half),
        "train.eval_steps": half,
        "train.save_steps": half,
        "train.load_best_model_at_end": False,
        **workload.changes,
    }
    return changed(content, changes)


def build_workspace(workload: Workload, folder: Path, environment: str) -> Config:
    """Create a folder with params.yaml and validated data; return its config."""
    folder.mkdir(parents=True)
    (folder / "models").symlink_to(ROOT / "models")
    content = parameters(workload, environment)
    content["model"]["base"] = BASE
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    config = parse_config(content, "params.yaml")
    if workload.kind == "random":
        build_random(workload, config, folder)
        return config
    write_base(folder / BASE)
    (folder / "data/raw").mkdir(parents=True)
    lines = [json.dumps({"messages": row}) + "\n" for row in embedded_rows(workload)]
    (folder / "data/raw/rows.jsonl").write_text("".join(lines), encoding="utf-8")
    for stage in ("prepare", "validate"):
        run_stage(stage, folder)
    return config


def write_base(folder: Path) -> None:
    """Write the embedded base in float32; some peers would use the committed bfloat16, which is slow on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(ROOT / "models/tiny-base", dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "models/tiny-base").save_pretrained(folder)


def run_stage(stage: str, folder: Path) -> None:
    """Run one stage as a user does. Raise RuntimeError with its output if it fails."""
    command = [sys.executable, "-m", "finetune", stage]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-3000:])


# ------------------------------------------------------------------------------------------------------ embedded rows


def embedded_rows(workload: Workload) -> list[list[dict[str, str]]]:
    """Return conversations of the embedded data for all three splits, the same for the same seed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny-base")
    answered: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line in EMBEDDED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["success"]:
            question = {"role": "user", "content": row["task"]}
            answered.setdefault(
                (row["agent"], row["task"]), [question, {"role": "assistant", "content": row["output"]}]
            )
    rounds, count = list(answered.values()), workload.rows + 2 * HELD_OUT
    draw = random.Random(SEED)  # noqa: S311
    draw.shuffle(rounds)
    if workload.kind == "short":
        return rounds[:count]
    if workload.kind == "uniform":
        return sorted(rounds, key=lambda row: length_of(tokenizer, row))[:count]
    return [conversation(tokenizer, rounds, draw) for _ in range(count)]


def conversation(tokenizer: Any, rounds: list[list[dict[str, str]]], draw: random.Random) -> list[dict[str, str]]:
    """Join questions and answers up to a random length between 60 and 256 tokens."""
    longest = draw.randint(60, 256)
    row = min(draw.sample(rounds, 3), key=lambda one: length_of(tokenizer, one))
    while length_of(tokenizer, longer := row + draw.choice(rounds)) <= longest:
        row = longer
    return row


def length_of(tokenizer: Any, messages: Sequence[dict[str, str]]) -> int:
    """Return the tokens of a conversation."""
    return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])


# -------------------------------------------------------------------------------------------------------- random rows


def build_random(workload: Workload, config: Config, folder: Path) -> None:
    """Write a base of a real architecture with random weights and fewer layers, and rows in validate's format."""
    import bench_memory

    facts = {**bench_memory.architecture_facts(workload.base), "num_hidden_layers": workload.layers}
    facts.pop("layer_types", None)
    name = f"{workload.base}, {workload.layers} layers"
    bench_memory.BASES[name] = facts
    bench_memory.build_base(bench_memory.Case(name, name, "bfloat16"), folder / BASE)
    os.chdir(folder)  # the base's name in params.yaml is relative
    write_random_rows(workload, config, facts["vocab_size"], Paths())


def write_random_rows(workload: Workload, config: Config, vocabulary: int, paths: Paths) -> None:
    """Write random tokens in rows of 64 to max_length, a quarter of them supervised, packed if configured."""
    from finetune.model.base import identify_base
    from finetune.model.tokens import IGNORED, Tokenized
    from finetune.validate.tokenized import TokenRow, pack, write_arrow

    draw, tokens = random.Random(SEED), {}  # noqa: S311
    paths.validated.mkdir(parents=True)
    for split, count in (("train", workload.rows), ("validation", HELD_OUT)):
        rows = []
        for number in range(count):
            size = draw.randint(64, config.train.max_length) if number else config.train.max_length
            ids = [draw.randrange(3, vocabulary) for _ in range(size)]
            labels = [IGNORED] * (size - size // 4) + ids[-(size // 4) :]
            rows.append(TokenRow((str(number),), Tokenized(ids, labels), (size,)))
        packed = pack(rows, config.train.max_length) if config.train.packing else rows
        write_arrow(paths.validated / f"{split}.arrow", packed, packed=config.train.packing)
        supervised = sum(row.tokenized.supervised for row in packed)
        tokens[split] = {"examples": count, "rows": len(packed), "supervised_tokens": supervised}
    manifest = {"base": identify_base(config.model), "max_length": config.train.max_length, "tokens": tokens}
    write_manifest(paths.validated, {**manifest, "packing": config.train.packing, "prepared_sha256": {}})
