"""What the doctor tells of a machine that is made up for it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.doctor.command import run
from finetune.config.params import Config
from finetune.config.recipes import RECIPE_SECTIONS
from finetune.plan import fit
from tests.conftest import ROOT

GB = 10**9


HUB = {"base": "org/name", "revision": "0" * 40}


@pytest.fixture
def repository(tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`repository(big={"environment": "cuda"})`: a root with params.yaml, these recipes and the true locks."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub home/hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hub home/token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "root"
    (root / "recipes").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "requirements", root / "requirements")
    (root / "models").symlink_to(ROOT / "models")

    def made(**recipes: dict[str, Any]) -> Path:
        (root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML too
        for name, changes in recipes.items():
            sections = {key: params[key] for key in RECIPE_SECTIONS} | {"recipe": name}
            for key, change in changes.items():
                sections[key] = sections[key] | change if isinstance(change, dict) else change
            (root / f"recipes/{name}.yaml").write_text(json.dumps(sections), encoding="utf-8")
        return root

    return made


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tools(docker="exit 1")`: the only programs on PATH, besides git unless it is False."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    true_git = shutil.which("git", path=os.defpath)

    def put(git: bool = True, **scripts: str) -> None:
        if git and true_git:
            (folder / "git").symlink_to(true_git)
        for name, body in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            path.chmod(0o755)

    return put


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`predicted(tiny=(2_000_000, 1 * GB))`: parameters and peak of each recipe; of others nothing is known."""

    def known(**recipes: tuple[int, int]) -> None:
        def predict(self: Any, config: Config) -> tuple[int | None, int | None, str | None]:
            return (*recipes[config.recipe], None) if config.recipe in recipes else (None, None, "no config.json")

        monkeypatch.setattr(fit.Predictor, "predict", predict)

    return known


def told(capsys: pytest.CaptureFixture[str], root: Path, recipe: str | None = None, quick: bool = False) -> Any:
    """The report and the exit code, of `--json`."""
    code = run(root, recipe, True, quick)
    report = json.loads(capsys.readouterr().out)
    return report | {"code": code, "by": {check["what"]: check for check in report["checks"]}}
