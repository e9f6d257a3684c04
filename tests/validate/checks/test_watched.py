"""Bases and templates that DVC does not track."""

from pathlib import Path

import pytest

from finetune.config.params import Config
from finetune.validate.checks.watched import check_watched
from tests.builders.kinds import Change


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Create a tree run by DVC, with a base and a template inside and outside of models/."""
    for folder in ("models/mine", "elsewhere/base"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / folder / "chat.jinja").write_text("x", encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    return tmp_path


def keys(tree: Path, config: Config) -> list[str]:
    """Return the keys with a finding."""
    found = check_watched(config, tree)
    assert {finding.code for finding in found} <= {"file-unwatched"}
    return [finding.place.removeprefix("params.yaml: ") for finding in found]


def test_files_in_models_are_tracked(tree: Path, change: Change) -> None:
    """A base of the Hub is pinned by its commit."""
    config = change(**{"model.base": "models/mine", "model.chat_template": "models/mine/chat.jinja"})
    assert keys(tree, config) == []
    assert keys(tree, change(**{"model.base": "org/model", "model.revision": "0" * 40})) == []


def test_untracked_files_elsewhere_are_reported(tree: Path, change: Change) -> None:
    """After a change of a template outside of models/, DVC would not run the stages again."""
    config = change(**{"model.base": "elsewhere/base", "model.chat_template": "elsewhere/base/chat.jinja"})
    assert keys(tree, config) == ["model.base", "model.chat_template"]
    assert keys(tree, change(**{"model.base": str(tree / "elsewhere/base")})) == ["model.base"]


def test_the_models_of_the_baseline_are_checked(tree: Path, change: Change) -> None:
    """They determine the baseline that the candidate is compared with."""
    model = change(**{"model.base": "elsewhere/base"}).model.model_dump(mode="json")
    config = change(**{"model.base": "models/mine", "evaluate.baseline": {"form": "model", "model": model}})
    assert keys(tree, config) == ["evaluate.baseline.model.base"]


@pytest.mark.parametrize("link", ["models/linked", "models/mine/weights"])
def test_links_are_not_followed(tree: Path, change: Change, link: str) -> None:
    """DVC hashes the link, not its target."""
    (tree / link).symlink_to(tree / "elsewhere/base")
    base = "models/linked" if link.endswith("linked") else "models/mine"
    assert keys(tree, change(**{"model.base": base})) == ["model.base"]


def test_outside_of_a_pipeline_nothing_is_checked(tree: Path, change: Change) -> None:
    """Users who run a stage without DVC decide themselves when to run it."""
    (tree / "dvc.yaml").unlink()
    assert keys(tree, change(**{"model.base": "elsewhere/base"})) == []
