"""A complete run that is small enough for a test: 60 rows, a random base of 220,000 parameters, a dozen steps."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from finetune.config.loading import read_yaml
from finetune.config.params import Config, params_of, parse_config
from finetune.files.manifests import read_manifest
from finetune.paths import Paths

ROOT = Path(__file__).parents[2]
WORDS = [
    "open",
    "close",
    "read",
    "write",
    "seek",
    "flush",
    "join",
    "split",
    "parse",
    "send",
    "bind",
    "copy",
    "move",
    "load",
    "dump",
    "sort",
    "find",
    "wait",
    "stop",
    "start",
]


def rows(count: int) -> list[dict[str, Any]]:
    """Return interactions of two agents with a learnable pattern, and one failed row."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        agent, output = (("upper", word.upper()), ("last", word[-1]))[number % 2]
        found.append({"agent": agent, "task": f"{word} number {number}", "output": output, "success": True})
    return [*found, {"agent": "last", "task": "failed", "output": "nothing", "success": False}]


def params(**changes: Any) -> dict[str, Any]:
    """Return a small version of the repository's params.yaml, with keys changed (`train__learning_rate=1.0`)."""
    content: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    small = {
        "data.directory": "data/raw",
        "data.sources": [{"name": "small", "path": "rows.jsonl", "format": "interactions"}],
        "data.system_prompts": {"upper": "Write the word in capitals."},
        "data.duplicates.near": "ignore",  # the rows are similar on purpose
        "findings.accept": {"test-near-overlap": "the rows are alike on purpose"},
        "data.split": {"method": "exact", "train": 0.6, "validation": 0.2, "test": 0.2, "stratify_by": "agent"},
        "model.base": "base",
        "adapter.r": 4,
        "adapter.lora_dropout": 0.1,
        "train.max_length": 64,
        "train.num_train_epochs": 3,
        "train.per_device_train_batch_size": 4,
        "train.gradient_accumulation_steps": 2,
        "train.effective_batch_size": 8,
        "train.warmup_steps": 2,
        "train.logging_steps": 1,
        "train.eval_steps": 3,
        "train.save_steps": 3,
        "evaluate.max_new_tokens": 4,
        "evaluate.scorers": {"exact_match": {"scorer": "exact_match", "of": None}},
        "evaluate.latency": {"prompts": 20, "warmup": 1},
        "decide.criteria": [
            {"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.5},
            {"rule": "memory_at_most", "limit": "8 GB"},
        ],
    } | {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in small.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = value
    return content


def build_base(folder: Path) -> None:
    """Build a random Qwen2 base with the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny-base")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(
        **shape,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def workspace(root: Path, count: int = 60, **changes: Any) -> tuple[Config, Paths]:
    """Create a folder with rows, base and params.yaml, and make it the working directory (names are relative)."""
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    (root / "data/raw").mkdir(parents=True)
    lines = [json.dumps(row) + "\n" for row in rows(count)]
    (root / "data/raw/rows.jsonl").write_text("".join(lines), encoding="utf-8")
    build_base(root / "base")
    content = params(**changes)
    (root / "params.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is valid YAML
    return parse_config(content, "params.yaml"), Paths()


def validated(root: Path, **changes: Any) -> tuple[Config, Paths]:
    """Create a workspace in which prepare and validate have run."""
    from finetune.prepare import stage as prepare
    from finetune.validate import stage as validate

    config, paths = workspace(root, **changes)
    prepare.run(params_of("prepare", config), paths)
    validate.run(params_of("validate", config), paths)
    return config, paths


def trainer_of(config: Config, paths: Paths) -> Any:
    """Return a trainer on validated data, before training."""
    from finetune.model.tokens import load_tokenizer
    from finetune.processes.signals import StopRequest
    from finetune.train import run, setup
    from finetune.train.checkpoints import Checkpoints

    model, tokenizer = setup.build_model(config, "cpu", paths), load_tokenizer(config.model)
    store = Checkpoints(paths.checkpoints / "x", config.train.save_total_limit)
    trainer = setup.build_trainer(config, paths, model, tokenizer, store, StopRequest())
    run.begin(trainer, config, None, None, read_manifest(paths.validated)["tokens"])
    return trainer


def copy_of(source: Path, target: Path) -> Path:
    """Copy a workspace, so that several runs can start from the same state."""
    shutil.copytree(source, target)
    return target


CODE = [
    "Makefile",
    "finetune",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
    "requirements",
    "recipes",
    "src",
    "pyproject.toml",
    "scorers",
]


def copy_tree(root: Path, names: list[str]) -> Path:
    """Create a folder with copies of these files and folders of the repository."""
    for name in names:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".mypy_cache"))
        else:
            shutil.copy(source, target)
    return root


def small_tree(root: Path, count: int = 60, **changes: Any) -> Path:
    """Create a folder with the repository's code, small data, a small base and params.yaml, for runs with DVC."""
    copy_tree(root, CODE)
    (root / "data/raw").mkdir(parents=True)
    for name in ("looks", "seeds"):
        (root / f"data/{name}.json").write_text("{}\n", encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in rows(count)]
    (root / "data/raw/rows.jsonl").write_text("".join(lines), encoding="utf-8")
    build_base(root / "models/small")
    write_params(root, **changes)
    return root


def write_params(root: Path, **changes: Any) -> None:
    """Write the small params with the base of `small_tree`."""
    content = params(**{"model__base": "models/small", **changes})
    (root / "params.yaml").write_text(json.dumps(content, indent=2), encoding="utf-8")
