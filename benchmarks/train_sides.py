"""The sides of bench_train.py: how each tool is configured for the same training.

The peers get the output of validate: the same rows, tokens and labels (soup-cli reads the conversations and computes
the same labels, as the counted supervised tokens prove). The base model is a copy in float32: the committed file is
bfloat16, in which soup-cli would compute.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ADAPTER = "out/adapter"


@dataclass(frozen=True)
class Side:
    """One tool in one setting: its environment ("" is this one), and the command in it."""

    name: str
    environment: str
    ask: Callable[[dict[str, Any]], list[str]]  # params.yaml to MODULE ARGUMENT...; writes the files that it names


def ask_ours(_params: dict[str, Any]) -> list[str]:
    """Return the train stage as a user runs it."""
    return ["finetune", "train"]


def ask_trl(setting: str) -> Callable[[dict[str, Any]], list[str]]:
    """Return the plain script in one of its settings."""
    return lambda _: [str(HERE / "plain_train.py"), "params.yaml", "data/validated", "out", setting]


SAME = (  # the same names in TRL, LLaMA-Factory and params.yaml
    *("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "bf16"),
    *("logging_steps", "save_steps", "eval_steps"),
)


def ask_llamafactory(**changes: Any) -> Callable[[dict[str, Any]], list[str]]:
    """Write a LLaMA-Factory file for rows that are tokenized already; `dataset` is required but not read."""

    def ask(params: dict[str, Any]) -> list[str]:
        train, adapter = params["train"], params["adapter"]
        content = {
            **{name: train[name] for name in SAME},
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": params["model"]["base"],
            "flash_attn": "sdpa",
            "template": "empty",
            "dataset": "rows",
            "eval_dataset": "rows",
            "tokenized_path": "tokenized",
            "cutoff_len": train["max_length"],
            "finetuning_type": "lora",
            "lora_rank": adapter["r"],
            "lora_alpha": adapter["lora_alpha"],
            "lora_dropout": adapter["lora_dropout"],
            "lora_target": ",".join(adapter["target_modules"]),
            "seed": params["seed"],
            "eval_strategy": "steps",
            "output_dir": ADAPTER,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            **changes,
        }
        return ["llamafactory.cli", "train", write_yaml("llamafactory.yaml", content)]

    return ask


def ask_soup(params: dict[str, Any]) -> list[str]:
    """Write a soup-cli file for the conversations; warmup is a share of the steps, rounded up; without evaluation."""
    train, adapter = params["train"], params["adapter"]
    steps = len(Path("conversations.jsonl").read_text(encoding="utf-8").splitlines()) // train["effective_batch_size"]
    training = {
        "epochs": train["num_train_epochs"],
        "lr": train["learning_rate"],
        "batch_size": train["per_device_train_batch_size"],
        "gradient_accumulation_steps": train["gradient_accumulation_steps"],
        "seed": params["seed"],
        "warmup_ratio": (train["warmup_steps"] - 0.5) / (steps * train["num_train_epochs"]),
        "weight_decay": train["weight_decay"],
        "max_grad_norm": train["max_grad_norm"],
        "optimizer": train["optim"],
        "scheduler": train["lr_scheduler_type"],
        "logging_steps": train["logging_steps"],
        "save_steps": train["save_steps"],
        "quantization": "none",
        "lora": {"r": adapter["r"], "alpha": adapter["lora_alpha"], "dropout": adapter["lora_dropout"]}
        | {"target_modules": adapter["target_modules"]},
    }
    data = {"train": "conversations.jsonl", "format": "chatml", "val_split": 0.0, "max_length": train["max_length"]}
    content = {"base": params["model"]["base"], "task": "sft", "data": data, "training": training, "output": ADAPTER}
    return ["soup_cli", "train", "--config", write_yaml("soup.yaml", content), "--yes"]


BASELINE, OURS, PACKED = "TRL, defaults", "ours", "TRL, packed"
SIDES = [
    Side(OURS, "", ask_ours),
    Side(BASELINE, "", ask_trl("defaults")),
    Side("TRL, no checkpointing", "", ask_trl("no checkpointing")),
    Side("TRL, grouped by length", "", ask_trl("grouped")),
    Side(PACKED, "", ask_trl("packed")),
    Side("LLaMA-Factory, defaults", "llamafactory", ask_llamafactory()),
    Side(
        "LLaMA-Factory, tuned",
        "llamafactory",
        ask_llamafactory(disable_gradient_checkpointing=True, train_sampling_strategy="group_by_length"),
    ),
    Side("soup-cli", "soup", ask_soup),
]


def write_yaml(name: str, content: dict[str, Any]) -> str:
    """Write YAML as JSON, which is valid YAML; return the name."""
    Path(name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return name


def write_inputs(folder: Path) -> None:
    """Write the peers' input: the tokenized rows as a `datasets` folder, and the training split's conversations."""
    from datasets import Dataset, DatasetDict

    splits = {}
    for name in ("train", "validation"):
        rows = Dataset.from_file(str(folder / f"data/validated/{name}.arrow"))
        columns = {"input_ids": rows["input_ids"], "labels": rows["labels"]}
        splits[name] = Dataset.from_dict(columns | {"attention_mask": [[1] * len(ids) for ids in rows["input_ids"]]})
    DatasetDict(splits).save_to_disk(folder / "tokenized")
    with (folder / "conversations.jsonl").open("w", encoding="utf-8") as file:
        for line in (folder / "data/prepared/train.jsonl").read_text(encoding="utf-8").splitlines():
            messages = [{name: turn[name] for name in ("role", "content")} for turn in json.loads(line)["messages"]]
            file.write(json.dumps({"messages": messages}) + "\n")
