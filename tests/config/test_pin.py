"""`finetune pin`: the one line that fixes a run's base."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.config.loading import read_yaml
from finetune.config.recipes import pin, read_recipe, with_revision
from finetune.errors import ConfigError, MachineError
from tests.builders.planned_run import COMMIT, make_here
from tests.builders.small_run import ROOT, build_base


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine for every test: a CPU with 32 GB, no accelerator; and the top of the repository."""
    make_here(monkeypatch)


# ---- Pinning


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the shipped recipes and params.yaml, as the present directory."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """`hub(COMMIT)`: a Hub that answers so (or raises it); gives the names that it is asked for."""
    import huggingface_hub

    def answering(answer: Any) -> list[str]:
        asked: list[str] = []

        def model_info(_: Any, name: str) -> Any:
            asked.append(name)
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(sha=answer)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)  # the class is imported by others, too
        return asked

    return answering


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    """The lines that differ."""
    return [pair for pair in zip(before.split("\n"), after.split("\n"), strict=True) if pair[0] != pair[1]]


def test_pin_writes_one_line_and_keeps_all_else(
    folder: Path, hub: Callable[[Any], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Comments, spaces and the other keys to the letter; params.yaml runs another recipe and stays as it is."""
    asked = hub(COMMIT)
    recipe, own = Path("recipes/h100.yaml"), Path("params.yaml")
    before, mine = recipe.read_text(encoding="utf-8"), own.read_text(encoding="utf-8")
    pin(Path("recipes"), "h100", own)
    assert asked == ["mistralai/Mistral-7B-Instruct-v0.3"]
    assert changed_lines(before, recipe.read_text(encoding="utf-8")) == [
        (
            "  revision: null           # pinned by: ./finetune pin h100",
            f"  revision: {COMMIT}           # pinned by: ./finetune pin h100",
        )
    ]
    assert own.read_text(encoding="utf-8") == mine
    told = f"mistralai/Mistral-7B-Instruct-v0.3 is pinned at {COMMIT} in recipes/h100.yaml"
    assert told in " ".join(capsys.readouterr().out.split())
    assert read_recipe("h100", folder).model.revision == COMMIT


def test_pin_moves_a_pin(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Pinned before, the base has moved on; the person who pins again wants it."""
    for commit in ("c" * 40, COMMIT):
        hub(commit)
        pin(Path("recipes"), "cpu", Path("params.yaml"))
        assert read_yaml(Path("recipes/cpu.yaml"))["model"]["revision"] == commit


def test_pin_pins_params_too_where_that_recipe_is_in_use(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Else the next run would stop for want of the pin that was just made."""
    hub(COMMIT)
    main(["use", "laptop"])
    before = Path("params.yaml").read_text(encoding="utf-8")
    assert main(["pin", "laptop"]) == 0
    (line,) = changed_lines(before, Path("params.yaml").read_text(encoding="utf-8"))
    assert line[1].startswith(f"  revision: {COMMIT}")


def test_pin_leaves_params_that_name_another_base(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """The recipe's commit is none of a base that was written there since."""
    hub(COMMIT)
    main(["use", "laptop"])
    own = Path("params.yaml")
    text = own.read_text(encoding="utf-8").replace("HuggingFaceTB/SmolLM2-135M-Instruct", "org/another", 1)
    own.write_text(text, encoding="utf-8")
    pin(Path("recipes"), "laptop", own)
    assert own.read_text(encoding="utf-8") == text


def test_a_local_base_needs_no_pin(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Its hash is its identity; the Hub is not asked."""
    asked = hub(COMMIT)
    build_base(Path("models/tiny-base"))
    with pytest.raises(ConfigError, match="is a local folder, which is pinned by its hash; nothing to do"):
        pin(Path("recipes"), "tiny", Path("params.yaml"))
    assert asked == []


def answer_of(status: int) -> Any:
    """The Hub's refusal with this status."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    kind = RepositoryNotFoundError if status == 404 else HfHubHTTPError
    response: Any = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind("refused", response=response)


@pytest.mark.parametrize(
    ("answer", "kind", "code", "text"),
    [
        (
            answer_of(404),
            ConfigError,
            2,
            "the Hub does not provide Qwen/Qwen2.5-Coder-7B-Instruct (404); check the name",
        ),
        (
            answer_of(403),
            ConfigError,
            2,
            "(403); check the name; for gated models, accept the licence and set HF_TOKEN",
        ),
        (answer_of(429), MachineError, 4, "the Hub is not answering for Qwen/Qwen2.5-Coder-7B-Instruct (429)"),
        (answer_of(503), MachineError, 4, "(503); run ./finetune pin again later"),
        (ConnectionError("no route"), MachineError, 4, "(ConnectionError); run ./finetune pin while connected"),
        (OSError("no name service"), MachineError, 4, "can't be reached for Qwen/Qwen2.5-Coder-7B-Instruct (OSError)"),
    ],
)
def test_a_hub_that_does_not_answer_changes_nothing(
    folder: Path,
    hub: Callable[[Any], list[str]],
    capsys: pytest.CaptureFixture[str],
    answer: Any,
    kind: type[Exception],
    code: int,
    text: str,
) -> None:
    """A wrong name is the user's mistake (2), no network the machine's (4); neither leaves half a pin."""
    hub(answer)
    before = Path("recipes/cpu.yaml").read_bytes()
    with pytest.raises(kind):
        pin(Path("recipes"), "cpu", Path("params.yaml"))
    assert main(["pin", "cpu"]) == code
    assert text in capsys.readouterr().err
    assert Path("recipes/cpu.yaml").read_bytes() == before


def test_a_name_that_is_none_is_the_users_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library refuses it before it asks anybody; offline, a right name is the machine's."""
    recipe = Path("recipes/cpu.yaml")
    right = recipe.read_text(encoding="utf-8")
    assert main(["pin", "cpu"]) == 4  # HF_HUB_OFFLINE is set for all tests
    recipe.write_text(right.replace("Qwen/Qwen2.5-Coder-7B-Instruct", "a/b/c", 1), encoding="utf-8")
    assert main(["pin", "cpu"]) == 2
    assert "a/b/c is neither a local folder nor a name on the Hub, like org/name" in capsys.readouterr().err


def test_a_revision_without_a_line_of_its_own_is_told() -> None:
    """A section in one line has no place for it, and saying `pinned` would be a lie."""
    assert with_revision("model:\n  revision:   null # why\n", COMMIT) == f"model:\n  revision: {COMMIT} # why\n"
    assert with_revision("model:\n  revision: 'a'\nother:\n  revision: 1\n", "b") == (
        "model:\n  revision: b\nother:\n  revision: 1\n"
    )
    with pytest.raises(ConfigError, match="has no separate line"):
        with_revision("model: {revision: null}\n", COMMIT)
