"""A tree whose stages run in containers: its params and its locks."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import Config, parse_config
from finetune.containers import command_line, runtime
from tests.builders.small_run import params

LOCKS = ("cpu", "torch-cpu", "cuda", "apple", "base")


def config(**changes: Any) -> Config:
    """Return the small params with podman, and with changes."""
    return parse_config(params(**{"runtime": "podman", **changes}), "params.yaml")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a working tree with its own locks and a base in a folder, without the caller's environment."""
    root = tmp_path / "tree"
    (root / "requirements").mkdir(parents=True)
    for name in LOCKS:
        (root / f"requirements/{name}.lock").write_text(f"{name}==1.0\n", encoding="utf-8")
    for folder in ("base", "data/raw", "models", "work", ".dvc"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    for name in (runtime.OVERRIDE, runtime.OTHER_IMAGE, runtime.INSIDE, "HF_TOKEN", *command_line.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    return root
