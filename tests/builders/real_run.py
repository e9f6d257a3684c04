"""Small runs on a real base model: SmolLM2-135M-Instruct and a few rows of each of ten intents of banking77.

A run has eight steps. Its folder has the outputs of all stages; the folder `resumed` beside it has those of a training
that was killed and started again.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.real_base import TASK, copy_rows
from tests.builders.killed_run import Starts
from tests.builders.small_run import ROOT, params

ROWS = ROOT / "data/banking77"
TRAIN_ROWS, TEST_ROWS = 8, 2  # of each intent
KILLED_AT = "micro 6 1"  # between the micro-batches of step 7; the newest checkpoint is that of step 4
CHANGES: dict[str, Any] = {
    **TASK,
    "data__split": {"method": "exact", "train": 0.8, "validation": 0.2, "test": 0.0, "stratify_by": "label"},
    "model__chat_template": "chatml.jinja",
    "adapter__r": 16,
    "adapter__lora_dropout": 0.05,
    "train__max_length": 128,
    "train__num_train_epochs": 1,
    "train__per_device_train_batch_size": 4,
    "train__per_device_eval_batch_size": 8,
    "train__learning_rate": 1e-3,
    "train__eval_steps": 4,
    "train__save_steps": 4,
    "evaluate__max_new_tokens": 10,
    "evaluate__batch_size": 16,
    "evaluate__scorers": {
        "exact_match": {"scorer": "exact_match", "of": None},
        "intents": {"scorer": "classification", "of": None, "by": "generation", "labels": None},
    },
    "evaluate__memory": {"processes": 3, "batch_size": 4},
    "decide__criteria": [
        {"rule": "at_most", "metric": "loss", "group": "all", "threshold": 3.0},
        {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"},
        {"rule": "memory_at_most", "limit": "8 GB"},
    ],
}


def complete_run(root: Path, base: Path, starts: Starts, **changes: Any) -> Path:
    """Run all stages in a new folder, train again with a kill in a copy of it, and return the folder."""
    folder, resumed = real_workspace(root / "run", base, **changes), root / "resumed"
    run_stages(folder, "prepare", "validate")
    shutil.copytree(folder, resumed, symlinks=True)
    assert starts(folder) == 0, starts.output(folder)
    assert starts(resumed, KILLED_AT) == -9, starts.output(resumed)
    assert not (resumed / "out/adapter").exists()
    assert starts(resumed) == 0, starts.output(resumed)
    run_stages(folder, "evaluate", "decide")
    return folder


def real_workspace(root: Path, base: Path, **changes: Any) -> Path:
    """Create a folder with rows, a link to the base, the template and params.yaml."""
    (root / "data/raw").mkdir(parents=True)
    for name, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        copy_rows(ROWS / f"{name}.csv", root / f"data/raw/{name}.csv", count)
    (root / "base").symlink_to(base)
    shutil.copy(ROOT / "models/templates/chatml.jinja", root)
    content = params(**CHANGES, **changes)
    (root / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    return root


def run_stages(root: Path, *names: str) -> None:
    """Run stages as users do, each in its own process, with one thread; fail with the output of a stage that fails."""
    source = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    for name in names:
        command = [sys.executable, "-m", "finetune", name]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        (root / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        assert done.returncode == 0, f"{name}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
