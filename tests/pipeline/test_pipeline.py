"""The complete pipeline through DVC in a temporary repository, with the commands that users run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.runs_repository import finetune, outputs
from tests.builders.small_run import small_tree

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a repository with this tree's files, small data and a small base; the pipeline has run once."""
    root = small_tree(tmp_path_factory.mktemp("pipeline") / "repository")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"]):
        run(root, *command)
    commit(root, "start")
    run(root, "dvc", "repro")
    commit(root, "first run")
    return root


def commit(root: Path, message: str) -> None:
    """Commit everything with a name of its own."""
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", message)


def run(root: Path, *command: str, code: int = 0) -> str:
    """Run a command in the repository and return its output. Exit codes other than `code` fail."""
    git = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@localhost"}
    git |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@localhost"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **git, "DVC_NO_ANALYTICS": "1", "PATH": path}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(command)}: exit {done.returncode}\n{output}"
    return output


def hashes(root: Path) -> dict[str, str]:
    """Return the hash of every output in dvc.lock."""
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load(root / "dvc.lock")
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_the_pipeline_ends_in_a_verdict(repository: Path) -> None:
    """The pipeline turns raw rows into a decision with its evidence."""
    decision = json.loads((repository / "reports/decision.json").read_text(encoding="utf-8"))
    assert decision["verdict"] in ("deploy", "iterate", "abort")
    assert [item["status"] for item in decision["criteria"]][1] == "pass"
    assert decision["look"] == 1
    page = (repository / "reports/report.html").read_text(encoding="utf-8")
    assert f">{decision['verdict'].capitalize()}</h1>" in page
    assert (repository / "reports/summary.md").read_text(encoding="utf-8").startswith("# ")
    looks = json.loads((repository / "data/looks.json").read_text(encoding="utf-8"))
    assert looks == {decision["test_sha256"]: [decision["adapter_sha256"]]}


def test_the_run_can_be_shared_with_another_clone(repository: Path, tmp_path: Path) -> None:
    """With a remote and two clones, the run of one is checked, gated and bundled in the other."""
    run(repository, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    commit(repository, "a remote")
    finetune(repository, "push")
    run(tmp_path, "git", "clone", "-q", str(repository), "B")
    there = tmp_path / "B"
    assert "are in place and verified" in finetune(there, "pull")
    assert outputs(there) == outputs(repository)
    assert "Data and pipelines are up to date." in run(there, "dvc", "repro")
    for place in (repository, there):
        assert "warning: tracked files differ" not in finetune(place, "bundle")
    first, second = (next((place / "out/bundle").glob("*.tar.gz")) for place in (repository, there))
    assert first.read_bytes() == second.read_bytes()
    assert "Data and pipelines are up to date." in run(there, "dvc", "repro")
    assert run(there, "git", "status", "--short") == ""


def test_a_second_repro_does_nothing(repository: Path) -> None:
    """Without a change no stage runs."""
    assert "Data and pipelines are up to date." in run(repository, "dvc", "repro")


def test_a_changed_gate_trains_nothing(repository: Path) -> None:
    """Changing the gate takes seconds, and the result is a separate experiment."""
    output = run(repository, "dvc", "exp", "run", "--name", "asked", "-S", "decide.confidence=0.9")
    assert "Running stage 'decide'" in output
    assert "Stage 'train' didn't change, skipping" in output
    assert "Stage 'evaluate' didn't change, skipping" in output
    shown = run(repository, "dvc", "exp", "show", "--csv")
    assert "asked" in shown
    assert "verdict" in shown.splitlines()[0]
    assert "confidence" in run(repository, "dvc", "metrics", "diff", "HEAD")
    assert "plots.html" not in run(repository, "git", "status", "--short")
    assert "file://" in run(repository, "dvc", "plots", "diff", "HEAD", "--out", "work/plots")
    run(repository, "git", "checkout", "--", "params.yaml", "dvc.lock", "data/looks.json")
    run(repository, "dvc", "checkout")


def test_a_queued_experiment_runs_in_its_own_copy(repository: Path) -> None:
    """A sweep does not change the working tree; another learning rate gives another adapter."""
    before = hashes(repository)
    run(repository, "dvc", "exp", "run", "--queue", "--name", "faster", "-S", "train.learning_rate=1.0e-2")
    run(repository, "dvc", "exp", "run", "--run-all")
    assert hashes(repository) == before
    run(repository, "dvc", "exp", "apply", "faster")
    after = hashes(repository)
    assert after["out/adapter"] != before["out/adapter"]
    assert after["data/validated"] == before["data/validated"]
    run(repository, "git", "checkout", "--", ".")
    run(repository, "dvc", "checkout")


def repeatable_columns(repository: Path) -> list[list[str]]:
    """Return the training curve without measurements: step, epoch, loss, learning rate, gradient norm."""
    lines = (repository / "reports/curves.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[:5] for line in lines]


def test_forced_repetition_gives_the_same_bytes(repository: Path) -> None:
    """After repeated training from the same state, only measurements may differ."""
    before, curves = hashes(repository), repeatable_columns(repository)
    run(repository, "dvc", "repro", "--force", "--no-run-cache", "--single-item", "prepare")
    run(repository, "dvc", "repro", "--force", "--no-run-cache", "--single-item", "validate")
    run(repository, "dvc", "repro", "--force", "--no-run-cache", "--single-item", "train")
    after = hashes(repository)
    measured = {name for name in before if before[name] != after[name]}
    assert measured == {"reports/train_cost.json", "reports/curves.tsv"}  # it contains tokens per second and memory
    assert repeatable_columns(repository) == curves


def test_a_failing_stage_fails_the_run(repository: Path) -> None:
    """A broken row stops all later stages, and DVC's exit code says so."""
    path = repository / "data/raw/rows.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + "{broken\n", encoding="utf-8")
    output = run(repository, "dvc", "repro", code=255)
    assert "rows.jsonl:62: broken JSON" in output
    assert "Running stage 'train'" not in output
    path.write_text(whole, encoding="utf-8")
