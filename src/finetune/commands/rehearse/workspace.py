"""The rehearsal's own folder: the recipe with a small base model, a sample of its rows and a run of a few steps.

All changes are listed; everything else is the recipe's own.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.config.kernels import is_flash
from finetune.config.params import Config, parse_config
from finetune.config.train import TrainConfig
from finetune.config.types import SPLITS, Split
from finetune.errors import DataError
from finetune.files.atomic import write_json, write_lines
from finetune.files.hashing import sha256_file
from finetune.hardware.devices import find_missing_device
from finetune.model.shrink import LAYERS
from finetune.model.tokens import tokenize
from finetune.paths import Paths
from finetune.records.examples import Example
from finetune.records.io import read_examples, to_json_lines
from finetune.reports.prepare import PrepareReport, SplitReport
from finetune.validate.codes import all_codes

Change = Callable[[str, str, Any, str], None]  # section, key, value, why
MICRO, ACCUMULATION, EPOCHS = 4, 2, 2
EXACT_MATCH = {"exact_match": {"scorer": "exact_match", "of": None}}
ON_LOSS = [{"rule": "better_than_baseline", "metric": "loss", "group": "all"}]
STEPS_AN_EPOCH, EVENT_STEPS = 4, 3
KILLED_AT = 5  # after the checkpoint of step 3, within the second epoch
CANDIDATES = 400  # rows of a split that the sample is chosen from
HELD_OUT: dict[Split, int] = {"validation": 12, "test": 24}
SHORT = 512  # tokens; longer rows are used only if there are too few shorter ones
# Group shares in a sample differ from the data set's: these findings would be artefacts of the sample.
OF_THE_SAMPLE = (
    "agent",
    "answers-",
    "group-",
    "label",
    "language-",
    "length-shift",
    "padding-",
    "split-",
    "system-prompt",
    "test-",
)


def rehearsal_params(real: Config, rows: int, longest: int) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe's params with reduced sizes, and the list of changes for the report."""
    content: dict[str, Any] = json.loads(real.model_dump_json())
    changes: list[str] = []

    def change(section: str, key: str, value: Any, why: str) -> None:
        if content[section][key] != value:
            changes.append(f"{section}.{key}: {content[section][key]} -> {value} ({why})")
            content[section][key] = value

    here = real.environment if find_missing_device(real.environment) is None else "cpu"
    if here != real.environment:
        changes.append(f"environment: {real.environment} -> {here} (this machine has no such device)")
    content |= {"environment": here, "machine": "this", "runtime": "native"}
    content["data"]["directory"] = "data/raw"
    content["model"] |= {"base": "base", "revision": None, "chat_template": None, "pad_token": None}
    model_changes(real, change)
    device_changes(real, here, change)
    training_changes(real.train, rows, longest, change)
    smaller = {"latency": {"prompts": 20, "warmup": 1}, "memory": {"processes": 3, "batch_size": 4}}
    content["evaluate"] |= smaller | {"max_new_tokens": min(real.evaluate.max_new_tokens, 8), "batch_size": 24}
    evaluation_changes(content, change)
    accepted = [name for name, code in all_codes().items() if name.startswith(OF_THE_SAMPLE) and not code.binding]
    content["findings"]["accept"] = dict.fromkeys(accepted, "from the rehearsal sample")
    return content, changes


def training_changes(train: TrainConfig, rows: int, longest: int, change: Change) -> None:
    """Reduce training to a few steps on one device that still include every event of a run."""
    micro = min(train.per_device_train_batch_size, MICRO)
    accumulation = min(train.gradient_accumulation_steps, ACCUMULATION)
    smaller = {
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": min(train.per_device_eval_batch_size, 8),
        "gradient_accumulation_steps": accumulation,
        "effective_batch_size": micro * accumulation,
        "num_train_epochs": EPOCHS,
        "warmup_steps": 2 if train.warmup_steps else 0,
        "logging_steps": 1,
        "eval_steps": EVENT_STEPS,
        "save_steps": EVENT_STEPS,
    }
    for key, value in smaller.items():
        change("train", key, value, "a few steps only")
    single = {"nodes": 1, "devices": 1, "strategy": "none", "offload_optimizer": "none", "offload_param": "none"}
    change("train", "distributed", single, "one device")
    change("train", "max_length", longest, f"the longest of the {rows} rows taken")
    change("train", "early_stopping_patience", None, "too few steps")
    change("train", "report_to", [], "a rehearsal uses no network")


def evaluation_changes(content: dict[str, Any], change: Change) -> None:
    """Keep only sides and scorers that are local: a rehearsal makes no requests and downloads nothing."""
    evaluation = content["evaluate"]
    if evaluation["baseline"]["form"] != "base":
        change("evaluate", "baseline", {"form": "base"}, "no recorded answers exist for the sample")
    if evaluation["candidate"]["form"] == "server":
        change("evaluate", "candidate", {"form": "adapter"}, "a rehearsal uses no network")
    change("evaluate", "forgetting", None, "the small base has no knowledge to forget")
    kept = {name: scorer for name, scorer in evaluation["scorers"].items() if scorer["scorer"] != "judge"}
    judged = set(evaluation["scorers"]) - set(kept)
    if judged:
        change("evaluate", "scorers", kept or EXACT_MATCH, "a rehearsal uses no network")
        criteria = [item for item in content["decide"]["criteria"] if item.get("metric") not in judged]
        change("decide", "criteria", criteria or ON_LOSS, "only scorers used in the rehearsal")


def model_changes(real: Config, change: Change) -> None:
    """Replace settings that fit only the recipe's own base: its weights, its depth and its vocabulary."""
    if real.model.quantization == "stored":
        change("model", "quantization", "none", "the small base is not quantized")
    change("adapter", "start", None, "it belongs to the real base")
    layers = real.adapter.layers_to_transform
    if layers is not None and max(layers) >= LAYERS:
        change("adapter", "layers_to_transform", None, "the small base has other layers")
    if tokens := real.adapter.trainable_token_indices:
        change("adapter", "trainable_token_indices", list(range(len(tokens))), "the small base may have fewer tokens")


def device_changes(real: Config, here: str, change: Change) -> None:
    """Replace settings that only the recipe's own device supports."""
    if here == "cuda":
        return
    why = f"has no kernels on {here}"
    if is_flash(real.model.attention):
        change("model", "attention", "sdpa", why)
    if "8bit" in real.train.optim:
        change("train", "optim", "adamw_torch", why)
    for key in ("fp16", "tf32", "use_liger_kernel"):
        change("train", key, False, why)
    if real.model.dtype == "float16" and here == "cpu":
        change("model", "dtype", "float32", why)


def choose_rows(tokenizer: Any, examples: Sequence[Example], count: int, limit: int) -> tuple[list[Example], int]:
    """Choose `count` examples, cycling through the agents and preferring short ones; also return the longest's tokens.

    None is longer than `limit` (the recipe's max_length) unless all are. Raises DataError if there are no examples.
    """
    if not examples:
        raise DataError("data/prepared", "a split is empty, so there is nothing to rehearse")
    ordered = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())[:CANDIDATES]
    tokens = {example.id: len(tokenize(tokenizer, example.messages, example.tools).input_ids) for example in ordered}
    short = [example for example in ordered if tokens[example.id] <= min(SHORT, limit)]
    if len(short) < min(count, len(ordered)):
        short = sorted(ordered, key=lambda example: tokens[example.id])[: max(count, len(short))]
    agents: dict[str, list[Example]] = {}
    for example in short:
        agents.setdefault(example.agent, []).append(example)
    in_turn = [example for turn in zip_longest(*agents.values()) for example in turn if example is not None]
    chosen = in_turn[:count]
    return chosen, max(tokens[example.id] for example in chosen)


def rows_needed(real: Config) -> int:
    """Return the number of training examples for a few steps per epoch; more if several are packed into a row."""
    accumulated = min(real.train.gradient_accumulation_steps, ACCUMULATION)
    rows = STEPS_AN_EPOCH * min(real.train.per_device_train_batch_size, MICRO) * accumulated
    return rows * 4 if real.train.packing else rows


def write_sample(paths: Paths, tokenizer: Any, real: Config, prepared: Path) -> tuple[int, int]:
    """Write the sample of the prepared splits; return its number of training rows and its longest row in tokens."""
    sizes = {"train": rows_needed(real)} | HELD_OUT
    longest, chosen = 0, {}
    for name in SPLITS:
        examples = read_examples(prepared / f"{name}.jsonl")
        chosen[name], tokens = choose_rows(tokenizer, examples, sizes[name], real.train.max_length)
        longest = max(longest, tokens)
        write_lines(paths.prepared / f"{name}.jsonl", to_json_lines(chosen[name]))
    hashes = {name: sha256_file(paths.prepared / f"{name}.jsonl") for name in SPLITS}
    report = PrepareReport(
        settings=real.data.model_dump(mode="json", exclude_unset=True),
        sources={},
        splits={name: account_of(chosen[name]) for name in SPLITS},
        labels=known_answers([*chosen["train"], *chosen["test"], *read_examples(prepared / "test.jsonl")]),
        prepared_sha256=hashes,
    )
    write_json(paths.reports / "prepare.json", report.to_json())
    return len(chosen["train"]), max(longest + longest % 8, 16)


def account_of(examples: Sequence[Example]) -> SplitReport:
    """Return the report of a sample; each row without a group counts as a separate group."""
    groups = {example.group for example in examples if example.group is not None}
    return SplitReport(
        examples=len(examples),
        groups=len(groups) + sum(example.group is None for example in examples),
        by_agent=Counter(example.agent for example in examples),
        by_source=Counter(example.source for example in examples),
        by_label=Counter(example.label for example in examples if example.label is not None),
    )


def known_answers(examples: Sequence[Example]) -> dict[str, list[str]]:
    """Return the distinct answers by agent: the classes of a classification, of which a sample may contain only one."""
    classes: dict[str, set[str]] = {}
    for example in examples:
        classes.setdefault(example.agent, set()).add(example.completion.strip())
    return {agent: sorted(answers) for agent, answers in classes.items()}


def prepare_folder(real: Config, root: Path, paths: Paths, tokenizer: Any) -> list[str]:
    """Write the sample and params.yaml beside the small base; return the changes. Raise ConfigError for bad params."""
    rows, longest = write_sample(paths, tokenizer, real, Paths(root).prepared)
    if (root / "scorers").is_dir():
        shutil.copytree(root / "scorers", paths.root / "scorers", dirs_exist_ok=True)
    content, changes = rehearsal_params(real, rows, longest)
    write_json(paths.root / "params.yaml", content)  # JSON is YAML too
    parse_config(content, str(paths.root / "params.yaml"))
    return changes
