"""Run DVC from within: a command to its end, a stop without data loss, and the contents of dvc.lock."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from finetune.console import say
from finetune.errors import ConfigError, InterruptedRunError
from finetune.files.hashing import sha256_json
from finetune.files.nested import dig
from finetune.paths import Paths
from finetune.processes.detach import stop

PATIENCE = 30.0  # seconds for DVC to end by itself after Ctrl-C, which its stage has also received


def run_dvc(root: Path, arguments: Sequence[str]) -> int:
    """Run DVC to its end; if interrupted, wait until its stage has saved its state and ended."""
    process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], cwd=root)
    try:
        return process.wait()
    except KeyboardInterrupt:
        say("waiting until the stage has saved its state")
        try:
            process.wait(timeout=PATIENCE)  # a Ctrl-C in the terminal has reached it too
        except subprocess.TimeoutExpired:
            stop(Paths(root))
            process.wait()
        raise InterruptedRunError(
            "", "seeds was interrupted", "finished seeds are recorded; run the same command again to resume"
        ) from None


def require_identity(root: Path) -> None:
    """Raise ConfigError if git has no author: DVC stores an experiment as a commit, and would fail after the start."""
    for key in ("name", "email"):
        line = ["git", "-C", str(root), "config", f"user.{key}"]
        known = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
        if not known and not all(os.environ.get(f"GIT_{who}_{key.upper()}") for who in ("AUTHOR", "COMMITTER")):
            raise ConfigError(
                "git",
                f"user.{key} is not set, but experiments are stored as commits; nothing was started or changed",
                'git config user.name "Your Name" && git config user.email you@example.org',
            )


def inputs_hash(root: Path) -> str | None:
    """Return a hash of the data and code of DVC's last run, except decide's; None if nothing was run.

    It covers the dependencies in dvc.lock of the stages up to evaluate that are not outputs of stages.
    """
    lock = read_lock(root)
    if lock is None:
        return None
    stages = dig(read_yaml_text(lock), ("stages",)) or {}
    made = [str(out["path"]) for stage in stages.values() for out in stage.get("outs") or []]
    hashes = {
        dependency["path"]: dependency.get("md5")
        for name, stage in stages.items()
        if name != "decide"
        for dependency in stage.get("deps") or []
        if not any(dependency["path"] == out or dependency["path"].startswith(f"{out}/") for out in made)
    }
    return sha256_json(hashes)


def quiet_dvc(root: Path, *arguments: str) -> None:
    """Run DVC with only its error messages."""
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "--quiet"], cwd=root, check=False)


def read_lock(root: Path) -> str | None:
    """Return the text of dvc.lock; None if nothing was run."""
    path = root / "dvc.lock"
    return path.read_text(encoding="utf-8") if path.exists() else None


def seed_of(lock: str) -> Any:
    """Return the training seed of the adapter in a dvc.lock."""
    content = read_yaml_text(lock)
    return dig(content, ("stages", "train", "params", "params.yaml", "seed"))


def read_yaml_text(text: str) -> Any:
    """Parse a YAML text to plain objects."""
    return YAML(typ="safe", pure=True).load(text)
