"""DVC ignores no input that params.yaml can name."""

import re
from pathlib import Path

import pathspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from finetune.config.data import Source
from finetune.config.params import Config
from finetune.errors import DataError
from finetune.prepare.sources import NEVER_WATCHED, source_path

ROOT = Path(__file__).resolve().parents[2]
IGNORED = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines())
NAMES = {
    part
    for file in (".dvcignore", ".gitignore")
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
    for part in re.split(r"[/*]+", line)
    if part and not line.startswith("#")
}
names = st.sampled_from(sorted(NAMES | {"rows.jsonl", "x.partial", "x.replaced", "a", ".hidden"}))
paths = st.lists(names, min_size=1, max_size=5).map("/".join)


@given(paths, st.sampled_from(["data/raw", "models", "scorers", "recipes"]))
def test_no_input_is_ignored_for_its_name(path: str, folder: str) -> None:
    """A change of rows in `data/raw/x/work/rows.jsonl` must rerun prepare."""
    bytecode = "__pycache__" in path.split("/") and folder != "data/raw"  # check_watched refuses it
    assert bytecode or not IGNORED.match_file(f"{folder}/{path}")


@pytest.mark.parametrize("file", [".dvcignore", ".gitignore"])
def test_ignore_patterns_are_anchored(file: str) -> None:
    """Patterns that match anywhere hide other files too: `reports/` once hid part of the package."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    free = {line for line in lines if line and not line.startswith(("#", "/"))}
    assert free <= {"__pycache__/"}


def test_every_dependency_is_tracked() -> None:
    """DVC ignores no dependency in dvc.yaml."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert not [dep for stage in stages.values() for dep in stage["deps"] if IGNORED.match_file(dep)]


@pytest.mark.parametrize("hidden", NEVER_WATCHED)
def test_untracked_folders_are_refused_as_sources(tmp_path: Path, config: Config, hidden: str) -> None:
    """DVC ignores these folders everywhere."""
    file = tmp_path / config.data.directory / "x" / hidden / "rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="DVC does not track anything in a folder named"):
        source_path(config.data, Source(name="x", path=f"x/{hidden}/rows.jsonl"), tmp_path)


def test_a_nested_ignore_file_is_refused(tmp_path: Path, config: Config) -> None:
    """It could hide rows next to it."""
    file = tmp_path / config.data.directory / "x/rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}\n", encoding="utf-8")
    (file.parent / ".dvcignore").write_text("rows.jsonl\n", encoding="utf-8")
    with pytest.raises(DataError, match="may hide changed rows from DVC"):
        source_path(config.data, Source(name="x", path="x/rows.jsonl"), tmp_path)
