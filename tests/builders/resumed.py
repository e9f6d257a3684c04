"""Shared by the tests of resumed runs: settings, their workspaces, uninterrupted runs, and the compared results."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.files.hashing import sha256_tensors
from finetune.files.manifests import read_manifest
from finetune.files.strict_json import read_json
from finetune.model.adapter import WEIGHTS
from tests.builders.killed_run import Starts
from tests.builders.small_run import copy_of, params, validated

# 36 training examples in micro-batches of 4, two per step: 5 steps per epoch, the last of a single micro-batch. Losses
# are logged every second step and saved every third, so a sum of unlogged losses must be restored.
COMMON = {"train__logging_steps": 2, "train__per_device_eval_batch_size": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "packed": {
        "train__packing": True,
        "train__train_sampling_strategy": "random",
        "train__dataloader_num_workers": 2,
        "train__max_length": 40,
    },
    "nf4": {"model__quantization": "nf4"},
    "spoilt": {  # the first steps are the best; then early stopping ends the run
        "train__learning_rate": 0.5,
        "train__lr_scheduler_type": "constant",
        "train__num_train_epochs": 6,
        "train__early_stopping_patience": 3,
    },
    "no best": {"train__eval_steps": 2, "train__load_best_model_at_end": False},
    "plain": {"adapter__lora_dropout": 0.0},
    "long": {"train__num_train_epochs": 16, "train__save_steps": 1000, "train__eval_steps": 1000},
}
SETTINGS["rare saves"] = SETTINGS["spoilt"] | {"train__save_steps": 6}  # the best step is not among them
COMPARED = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")


@dataclass
class Outcome:
    """The results by which two runs are compared, bit for bit."""

    adapter: str  # the canonical hash of the published weights
    checkpoints: list[dict[str, Any]]  # hashes of adapter and optimizer at each scheduled save
    logged: list[dict[str, float]]  # at full precision
    report: dict[str, Any]


class Workshop:
    """Workspaces in which train can start, and one uninterrupted run per setting."""

    def __init__(self, root: Path) -> None:
        self.root, self.start, self.made = root, Starts(), 0
        self.wholes: dict[str, Path] = {}

    def ready(self, setting: str) -> Path:
        """Create a workspace with the data and the params of a setting."""
        kind = "packed" if "packed" in setting else "padded"
        source = self.root / kind
        if not source.exists():
            validated(source, **COMMON, **(SETTINGS[setting] if kind == "packed" else {}))
        self.made += 1
        folder = copy_of(source, self.root / f"run-{self.made}")
        self.set(folder, setting)
        return folder

    def set(self, folder: Path, setting: str) -> None:
        """Write the params of a setting."""
        content = params(**{**COMMON, **SETTINGS[setting]})
        (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")

    def uninterrupted(self, setting: str) -> Path:
        """Return the folder of the uninterrupted run."""
        if setting not in self.wholes:
            folder = self.ready(setting)
            assert self.start(folder) == 0, self.start.output(folder)
            self.wholes[setting] = folder
        return self.wholes[setting]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Create one workshop for all tests of a module."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


def outcome(folder: Path) -> Outcome:
    """Return the results of the run in a folder."""
    manifest = read_manifest(folder / "out/adapter")
    adapter = sha256_tensors(folder / "out/adapter" / WEIGHTS)
    assert adapter == manifest["adapter_sha256"]
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    logged = [{key: entry[key] for key in COMPARED if key in entry} for entry in history]
    return Outcome(adapter, manifest["checkpoints"], logged, read_json(folder / "reports/train.json"))


def order(folder: Path, number: int) -> list[dict[str, Any]]:
    """Return the micro-batches that a start computed: step, examples, hash of the tokens."""
    lines = (folder / f"order-{number}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint in a folder; 0 if there is none."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("work/checkpoints/*/checkpoint-*")), default=0)


def checkpoint(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    (found,) = folder.glob(f"work/checkpoints/*/checkpoint-{step}")
    return found


def remove(folder: Path) -> None:
    """Remove a workspace that is no longer needed."""
    shutil.rmtree(folder)
