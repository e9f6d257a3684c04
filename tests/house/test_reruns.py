"""A code change makes DVC rerun the stages that use the code, and a cosmetic change never reruns the training.

The stages of the clone make empty outputs, so that its dvc.lock is valid within seconds; only `dvc status` is
tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.builders.small_run import CODE, copy_tree

EXPENSIVE = {"prepare", "train"}
SOURCE = "src/finetune/"
# Each change: a text of the file, its replacement, and the stages that rerun.
CHANGES = {
    "a colour": ("console.py", '"deploy": "bold green"', '"deploy": "green"', set()),
    "a sentence of an error": ("errors.py", "A problem has one shape", "Each problem has one shape", set()),
    "a place": ("paths.py", '"The files and folders', '"All files and folders', set()),
    "a scorer": (
        "config/scorers.py",
        "class ExactMatch(Scorer):",
        'class FirstLine(Scorer):\n    """The first line."""\n\n\nclass ExactMatch(Scorer):',
        {"validate", "evaluate", "decide"},
    ),
    "how a scorer scores": (
        "answers/matching.py",
        "def exact_match(",
        "SPARE = 1\n\n\ndef exact_match(",
        {"validate", "evaluate", "decide"},
    ),
    "a criterion's rule": ("config/criteria.py", "RULES: dict", "SPARE = 1\nRULES: dict", {"validate", "decide"}),
    "how a criterion is judged": ("decide/criteria.py", "ENOUGH_PEAKS = ", "SPARE = 1\nENOUGH_PEAKS = ", {"decide"}),
    "the section decide": (
        "config/decide.py",
        "class DecideConfig",
        "SPARE = 1\n\n\nclass DecideConfig",
        {"validate", "decide"},
    ),
    "the report": ("decide/report/svg.py", "FEW = ", "SPARE = 1\nFEW = ", {"decide"}),
    "a check": ("validate/checks/balance.py", "FEW_ROWS = ", "SPARE = 1\nFEW_ROWS = ", {"validate"}),
    "a command": ("commands/gate.py", "EXIT_CODES = ", "SPARE = 1\nEXIT_CODES = ", set()),
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree in which every stage is up to date."""
    root = copy_tree(tmp_path_factory.mktemp("clone"), [*CODE, "params.yaml", "models", "data/raw", ".dvc/config"])
    for name in ("looks", "seeds"):
        (root / f"data/{name}.json").write_text("{}\n", encoding="utf-8")
    yaml = YAML()
    pipeline = yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"))
    for stage in pipeline["stages"].values():
        outs = [out for key in ("outs", "metrics") for out in stage.get(key, [])]
        folders = [out for out in outs if "." not in Path(out).name]
        files = [out for out in outs if out not in folders]
        stage["cmd"] = f"mkdir -p reports out {' '.join(folders)} && touch data/prepared/test.jsonl {' '.join(files)}"
    with (root / "dvc.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(pipeline, file)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    dvc(root, "repro", "--quiet")
    assert stages_to_run(root) == set()
    return root


def dvc(root: Path, *arguments: str) -> str:
    """Return what DVC prints."""
    line = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, check=True).stdout


def stages_to_run(root: Path) -> set[str]:
    """Return the stages listed by `dvc status`."""
    return set(json.loads(dvc(root, "status", "--json") or "{}"))


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_reruns_the_stages_that_use_it(clone: Path, what: str) -> None:
    """A changed message, colour, scorer or rule never reruns the training."""
    name, before, after, expected = CHANGES[what]
    path = clone / SOURCE / name
    text = path.read_text(encoding="utf-8")
    assert before in text
    try:
        path.write_text(text.replace(before, after, 1), encoding="utf-8")
        stages = stages_to_run(clone)
    finally:
        path.write_text(text, encoding="utf-8")
    assert not stages & EXPENSIVE
    assert stages == expected


@pytest.mark.parametrize("name", ["train/health.py", "config/train.py", "model/adapter.py", "plan/order.py"])
def test_changed_training_code_reruns_the_training(clone: Path, name: str) -> None:
    """Otherwise an outdated adapter would silently be evaluated."""
    path = clone / SOURCE / name
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(f"{text}\nSPARE = 1\n", encoding="utf-8")
        assert "train" in stages_to_run(clone)
    finally:
        path.write_text(text, encoding="utf-8")
