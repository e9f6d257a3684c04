"""A base to check, and the findings about it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import parse_config
from finetune.validate.checks.base_model import Base, examine_base
from tests.builders.small_run import build_base, params


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a base without defects."""
    folder = tmp_path_factory.mktemp("whole") / "base"
    build_base(folder)
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy that tests may damage, named `base` in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / "base"))


def examine(**changes: Any) -> Base:
    """Check the base of the small run, with keys changed."""
    return examine_base(parse_config(params(**changes), "params.yaml"), Path())


def found(**changes: Any) -> list[str]:
    """Return the codes of the findings."""
    return [finding.code for finding in examine(**changes).findings]


def edit(path: Path, **keys: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
