"""A simulated machine for the doctor: its recipes, its programs, and the predictions for the recipes."""

import json
import os
import shutil
from copy import deepcopy
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


class Machine:
    """A root with params.yaml and the real locks; PATH has only git, and no recipe's memory is known."""

    def __init__(self, place: Path, params: dict[str, Any], patch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.root, self.programs, self.hub = place / "root", place / "bin", place / "hub home"
        self.params, self.patch, self.capsys = params, patch, capsys
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(self.hub / "hub"))
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(self.hub / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        self.programs.mkdir()
        if git := shutil.which("git", path=os.defpath):
            (self.programs / "git").symlink_to(git)
        patch.setenv("PATH", str(self.programs))
        (self.root / "recipes").mkdir(parents=True)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        shutil.copytree(ROOT / "requirements", self.root / "requirements")
        (self.root / "models").symlink_to(ROOT / "models")
        (self.root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")  # JSON is valid YAML
        self.predict()

    def add(self, **recipes: dict[str, Any]) -> None:
        """`add(big={"environment": "cuda"})`: add recipes, given as changes of params.yaml."""
        for name, changes in recipes.items():
            sections = {key: deepcopy(self.params[key]) for key in RECIPE_SECTIONS} | {"recipe": name}
            for key, change in changes.items():
                sections[key] = sections[key] | change if isinstance(change, dict) else change
            (self.root / f"recipes/{name}.yaml").write_text(json.dumps(sections), encoding="utf-8")

    def install(self, **scripts: str) -> None:
        """`install(docker="exit 1")`: put a program on PATH."""
        for name, body in scripts.items():
            path = self.programs / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            path.chmod(0o755)

    def predict(self, **recipes: tuple[int, int]) -> None:
        """`predict(tiny=(2_000_000, 1 * GB))`: set parameters and peak of each recipe; others are unknown."""

        def known(predictor: Any, config: Config) -> tuple[int | None, int | None, str | None]:
            return (*recipes[config.recipe], None) if config.recipe in recipes else (None, None, "no config.json")

        self.patch.setattr(fit.Predictor, "predict", known)

    def report(self, recipe: str | None = None, quick: bool = False) -> Any:
        """Return the output of `--json`, the exit code, and the checks by subject."""
        code = run(self.root, recipe, True, quick)
        report = json.loads(self.capsys.readouterr().out)
        return report | {"code": code, "by": {check["what"]: check for check in report["checks"]}}

    def lines(self, recipe: str | None = None) -> list[str]:
        """Return the lines of the text output for a recipe that can run."""
        assert run(self.root, recipe, False, False) == 0
        lines: list[str] = self.capsys.readouterr().out.splitlines()
        return lines


@pytest.fixture
def machine(
    tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Machine:
    """Return a machine without recipes, without accelerators, and without programs except git."""
    return Machine(tmp_path, params, monkeypatch, capsys)
