"""Each change of docs/extending.md is applied to a copy of this tree, and has the described effect."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders.small_run import params

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^## A (\w+)\n.*?^```diff\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
COPIED = (
    "src",
    "recipes",
    "models",
    "docs",
    "tests",
    "scorers",
    "README.md",
    "params.yaml",
    "pyproject.toml",
    "dvc.yaml",
)
MOST_LINES = 30


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Create a copy of the files that the changes need, as its own repository, so that `git apply` uses it as root."""
    root = tmp_path / "tree"
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def apply(tree: Path, change: str) -> None:
    """Apply a change with `git apply`, as a reader of the page would."""
    subprocess.run(["git", "apply", "-"], cwd=tree, input=DIFFS[change], text=True, check=True)


def run(tree: Path, *command: str) -> str:
    """Run a command with the code of the changed tree, and return its output."""
    environment = os.environ | {"PYTHONPATH": "src", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finetune(tree: Path, *words: str) -> str:
    """Run `python -m finetune ...` of the changed tree."""
    return run(tree, "-m", "finetune", *words)


def give(tree: Path, rows: list[dict[str, Any]], **changes: Any) -> None:
    """Write rows and params of a small run to the tree; the format is left to detection."""
    (tree / "data/raw").mkdir(parents=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (tree / "data/raw/rows.jsonl").write_text("".join(lines), encoding="utf-8")
    sources = [{"name": "small", "path": "rows.jsonl"}]
    usual = {"data__sources": sources, "data__system_prompts": {}, "model__base": "models/tiny-base"}
    (tree / "params.yaml").write_text(json.dumps(params(**(usual | changes))), encoding="utf-8")


def test_the_page_has_the_six_changes() -> None:
    """There is one change of each kind, in the order of the title."""
    assert list(DIFFS) == ["format", "check", "scorer", "criterion", "recipe", "command"]


@pytest.mark.parametrize("change", DIFFS)
def test_a_change_is_short(change: str) -> None:
    """An example must fit on a screen."""
    added = [line for line in DIFFS[change].splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(added) < MOST_LINES


def test_all_changes_apply_in_sequence(tree: Path) -> None:
    """The changes do not conflict, and the result is formatted and passes the checks."""
    for change in DIFFS:
        apply(tree, change)
    changed = sorted(set(re.findall(r"^\+\+\+ b/(.*\.py)$", "".join(DIFFS.values()), flags=re.MULTILINE)))
    run(tree, "-m", "ruff", "check", "--no-cache", *changed)
    run(tree, "-m", "ruff", "format", "--no-cache", "--check", *changed)


@pytest.mark.end_to_end
def test_the_new_format_is_read(tree: Path) -> None:
    """The format is detected by its fields, all rows are in the ledger, and its own tests pass."""
    apply(tree, "format")
    rows = [{"document": f"Report {at} of many words, such as {at * 7919}.", "summary": f"{at}."} for at in range(40)]
    give(tree, [*rows, {"document": "No summary."}], data__on_bad_row="skip", data__max_bad_fraction=0.1)
    finetune(tree, "prepare")
    (source,) = json.loads((tree / "reports/prepare.json").read_text(encoding="utf-8"))["sources"].values()
    assert (source["format"], source["read"], source["dropped"], source["kept"]) == ("summary", 41, {"bad_row": 1}, 40)
    example = json.loads((tree / "data/prepared/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [message["role"] for message in example["messages"]] == ["user", "assistant"]
    run(tree, "-m", "pytest", "tests/records/test_formats.py")


@pytest.mark.end_to_end
def test_the_new_check_raises_its_finding(tree: Path) -> None:
    """The code is on the findings page, validate raises it, and it can be accepted."""
    apply(tree, "check")
    assert finetune(tree, "findings") == (tree / "docs/findings.md").read_text(encoding="utf-8")
    run(tree, "-m", "pytest", "tests/validate/checks/test_data.py", "-k", "prompts_with_their_answer")
    rows = [{"question": f"{word} number {at}?", "answer": word} for at, word in enumerate(["open", "close"] * 30)]
    accepted = {"test-near-overlap": "alike on purpose", "answers-in-prompts": "extracting is the task"}
    give(tree, rows, findings__accept=accepted, data__split={**params()["data"]["split"], "stratify_by": None})
    finetune(tree, "prepare")
    finetune(tree, "validate")
    findings = json.loads((tree / "reports/validation.json").read_text(encoding="utf-8"))["findings"]
    (found,) = [finding for finding in findings if finding["code"] == "answers-in-prompts"]
    assert found["severity"] == "warning" and found["accepted"] == "extracting is the task"
    assert found["message"] == "12 of 12 test prompts contain their answer, so copying would score as well"


@pytest.mark.end_to_end
def test_the_new_scorer_scores(tree: Path) -> None:
    """params.yaml and a criterion accept the scorer, and its scores are right."""
    apply(tree, "scorer")
    criterion = {"rule": "at_least", "metric": "named", "group": "all", "threshold": 0.5}
    give(tree, [], evaluate__scorers={"named": {"scorer": "first_line", "of": None}}, decide__criteria=[criterion])
    code = """
from pathlib import Path
from finetune.config.params import load_config
from finetune.records.examples import Answer, Example, Message
from finetune.score.scorers import build_scorers
example = Example("1", "small", 1, "namer", (Message("user", "Which?"), Message("assistant", "ValueError")))
asked = load_config(Path("params.yaml")).evaluate.scorers
texts = (Answer(text, 1, True) for text in ("TypeError", "ValueError\\nas the mode is wrong"))
scored = build_scorers(asked, {}, [example], Path()).score([example], [next(texts)], [next(texts)], {})
print(scored.baseline[0].scores, scored.candidate[0].scores)
"""
    assert run(tree, "-c", code) == "{'named': 0.0} {'named': 1.0}\n"
    run(tree, "-m", "pytest", "tests/score/test_scorers.py", "-k", "right_or_wrong")


@pytest.mark.end_to_end
def test_the_new_rule_is_applied(tree: Path) -> None:
    """params.yaml accepts the rule; its own tests and those of all rules pass."""
    apply(tree, "criterion")
    run(tree, "-m", "pytest", "tests/decide/test_criteria.py", "tests/config/test_decide.py")
    give(tree, [], decide__criteria=[{"rule": "better_by", "metric": "exact_match", "group": "all", "margin": 0.1}])
    code = """
from pathlib import Path
from finetune.config.params import load_config
(criterion,) = load_config(Path("params.yaml")).decide.criteria
print(criterion.describe(), criterion.target)
"""
    assert run(tree, "-c", code) == "exact_match better than the baseline by 0.1 0.1\n"


@pytest.mark.end_to_end
def test_the_new_recipe_is_listed_and_planned(tree: Path) -> None:
    """The table on the page has its row."""
    apply(tree, "recipe")
    assert "tiny-wide" in finetune(tree, "recipes")
    table = (tree / "recipes/README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in finetune(tree, "recipes", "--table").splitlines() if "tiny-wide" in line]
    assert row in table
    plan = finetune(tree, "plan", "tiny-wide", "--examples", "2731", "--length", "225")
    assert "684 steps of 16 rows" in plan
    assert "868,352 of 2,837,440 parameters are trained" in plan


@pytest.mark.end_to_end
def test_the_new_command_runs(tree: Path) -> None:
    """The command is in the help and runs, and its own tests pass."""
    apply(tree, "command")
    assert "adapter       Print the published adapter's hash and base model." in finetune(tree, "--help")
    run(tree, "-m", "pytest", "tests/cli/test_results.py")
    (tree / "out/adapter").mkdir(parents=True)
    manifest = {"adapter_sha256": "abc", "base": {"name": "models/tiny-base"}, "files": {}}
    (tree / "out/adapter/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert json.loads(finetune(tree, "adapter", "--json")) == {"adapter_sha256": "abc", "base": "models/tiny-base"}
