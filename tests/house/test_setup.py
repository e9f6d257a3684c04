"""The set-up chooses the environment by what it finds, and keeps the one that is there where the GPUs are elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import VERSION

SETUP = Path(__file__).resolve().parents[2] / "requirements/setup.sh"


def checksum(text: str) -> str:
    """What the set-up writes of its locks."""
    return subprocess.run(["cksum"], input=text, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with locks of a line each; nothing in it can be installed."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/finetune").touch(mode=0o755)
    shutil.copy(SETUP, tmp_path / "requirements")
    for name in ("cuda", "cpu", "torch-cpu", "base"):
        (tmp_path / f"requirements/{name}.lock").write_text(f"{name}\n", encoding="utf-8")
    return tmp_path


def set_up(tree: Path, environment: str) -> int:
    """Run it where no GPU answers and no Python is found; its exit code, 0 where nothing is to be done."""
    tools = tree / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "sed", "uname", "rm", "expr"):
        (tools / name).symlink_to(shutil.which(name) or name)
    command = ["sh", str(tree / "requirements/setup.sh"), environment, "params.yaml"]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("FINETUNE", "PYTHON"))}
    return subprocess.run(
        command, env={**surroundings, "PATH": str(tools)}, capture_output=True, check=False
    ).returncode


def test_a_login_node_keeps_the_gpus_packages(tree: Path) -> None:
    """`finetune status` there must not put PyTorch's CPU build over the one that a job is training with."""
    mark = tree / ".venv/installed-run"
    mark.write_text(f"cuda {checksum('cuda' + chr(10))}\n", encoding="utf-8")
    assert set_up(tree, "auto") == 0
    assert mark.exists()


def test_another_environment_is_made_where_it_is_asked_for(tree: Path) -> None:
    """The counter-example: by name it is another one, and without a Python it can't be made."""
    (tree / ".venv/installed-run").write_text(f"cuda {checksum('cuda' + chr(10))}\n", encoding="utf-8")
    assert set_up(tree, "cpu") == 4


def run_command(folder: Path) -> str:
    """What the command in this environment prints when it is started in a folder."""
    command = [str(Path(sys.executable).parent / "finetune"), "--version"]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, check=True).stdout


def test_the_command_is_of_the_tree_that_one_is_in(tmp_path: Path) -> None:
    """A queued experiment runs in a copy of the tree, by the copy's code; elsewhere it is the tree of .venv."""
    assert run_command(tmp_path) == f"finetune {VERSION}\n"
    package = tmp_path / "src/finetune"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('of the copy')\n", encoding="utf-8")
    assert run_command(tmp_path) == "of the copy\n"
