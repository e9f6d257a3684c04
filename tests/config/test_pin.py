"""`finetune pin` writes the line that fixes a run's base."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.config.loading import read_yaml
from finetune.config.pins import pin, with_kernel, with_revision
from finetune.config.recipes import read_recipe
from finetune.errors import ConfigError, MachineError
from tests.builders.planned_run import COMMIT, make_here
from tests.builders.small_run import ROOT, build_base


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate the same machine for every test: a CPU with 32 GB, no accelerator; and change to the root folder."""
    make_here(monkeypatch)


# ---- Pinning


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a repository with the shipped recipes and params.yaml, and make it the working directory."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """`hub(COMMIT)`: simulate a Hub with this answer (or error); return the list of the requested names."""
    import huggingface_hub

    def answering(answer: Any) -> list[str]:
        requests: list[str] = []

        def model_info(_: Any, name: str) -> Any:
            requests.append(name)
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(sha=answer)

        monkeypatch.setattr(huggingface_hub.HfApi, "kernel_info", model_info)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)  # other modules have imported the class
        return requests

    return answering


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    """Return the lines that differ."""
    return [pair for pair in zip(before.split("\n"), after.split("\n"), strict=True) if pair[0] != pair[1]]


def test_pin_writes_one_line_and_keeps_the_rest(
    folder: Path, hub: Callable[[Any], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Comments, spaces and other keys are unchanged; so is params.yaml, which is of another recipe."""
    requests = hub(COMMIT)
    recipe, own = Path("recipes/h100.yaml"), Path("params.yaml")
    before, mine = recipe.read_text(encoding="utf-8"), own.read_text(encoding="utf-8")
    pin(Path("recipes"), "h100", own)
    assert requests == ["mistralai/Mistral-7B-Instruct-v0.3"]
    shipped = "c170c708c41dac9275d15a8fff4eca08d52bab71"
    ((old, new),) = changed_lines(before, recipe.read_text(encoding="utf-8"))
    assert old == f"  revision: {shipped}   # update: ./finetune pin h100"
    assert new == old.replace(shipped, COMMIT)
    assert own.read_text(encoding="utf-8") == mine
    message = f"mistralai/Mistral-7B-Instruct-v0.3 is pinned at {COMMIT} in recipes/h100.yaml"
    assert message in " ".join(capsys.readouterr().out.split())
    assert read_recipe("h100", folder).model.revision == COMMIT


def test_pin_updates_an_existing_pin(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """The base has a newer commit since the first pin, and the user pins again."""
    for commit in ("c" * 40, COMMIT):
        hub(commit)
        pin(Path("recipes"), "cpu", Path("params.yaml"))
        assert read_yaml(Path("recipes/cpu.yaml"))["model"]["revision"] == commit


def test_pin_also_pins_params_of_the_same_recipe(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Otherwise the next run would stop because of the missing pin."""
    hub(COMMIT)
    main(["use", "laptop"])
    before = Path("params.yaml").read_text(encoding="utf-8")
    assert main(["pin", "laptop"]) == 0
    (line,) = changed_lines(before, Path("params.yaml").read_text(encoding="utf-8"))
    assert line[1].startswith(f"  revision: {COMMIT}")


def test_pin_keeps_params_with_another_base(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """The recipe's commit does not belong to another base in params.yaml."""
    hub(COMMIT)
    main(["use", "laptop"])
    own = Path("params.yaml")
    text = own.read_text(encoding="utf-8").replace("HuggingFaceTB/SmolLM2-135M-Instruct", "org/another", 1)
    own.write_text(text, encoding="utf-8")
    pin(Path("recipes"), "laptop", own)
    assert own.read_text(encoding="utf-8") == text


def test_a_local_base_needs_no_pin(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Its hash is its identity; the Hub is not contacted."""
    requests = hub(COMMIT)
    build_base(Path("models/tiny-base"))
    with pytest.raises(ConfigError, match="is a local folder, which is pinned by its hash; nothing to do"):
        pin(Path("recipes"), "tiny", Path("params.yaml"))
    assert requests == []


def answer_of(status: int) -> Any:
    """Return the Hub's error with this status."""
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
def test_an_error_of_the_hub_changes_nothing(
    folder: Path,
    hub: Callable[[Any], list[str]],
    capsys: pytest.CaptureFixture[str],
    answer: Any,
    kind: type[Exception],
    code: int,
    text: str,
) -> None:
    """A wrong name is the user's error (2), a missing network the machine's (4); neither writes a pin."""
    hub(answer)
    before = Path("recipes/cpu.yaml").read_bytes()
    with pytest.raises(kind):
        pin(Path("recipes"), "cpu", Path("params.yaml"))
    assert main(["pin", "cpu"]) == code
    assert text in capsys.readouterr().err
    assert Path("recipes/cpu.yaml").read_bytes() == before


def test_an_invalid_name_is_the_users_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library refuses an invalid name without a request; offline, a valid name is the machine's error."""
    recipe = Path("recipes/cpu.yaml")
    right = recipe.read_text(encoding="utf-8")
    assert main(["pin", "cpu"]) == 4  # all tests set HF_HUB_OFFLINE
    recipe.write_text(right.replace("Qwen/Qwen2.5-Coder-7B-Instruct", "a/b/c", 1), encoding="utf-8")
    assert main(["pin", "cpu"]) == 2
    assert "a/b/c is neither a local folder nor a name on the Hub, like org/name" in capsys.readouterr().err


def test_a_revision_without_its_own_line_is_reported() -> None:
    """A section on one line has no place for the revision, and `pinned` would be wrong."""
    assert with_revision("model:\n  revision:   null # why\n", COMMIT) == f"model:\n  revision: {COMMIT} # why\n"
    assert with_revision("model:\n  revision: 'a'\nother:\n  revision: 1\n", "b") == (
        "model:\n  revision: b\nother:\n  revision: 1\n"
    )
    with pytest.raises(ConfigError, match="has no separate line"):
        with_revision("model: {revision: null}\n", COMMIT)


KERNEL = "kernels-community/flash-attn2"


def test_a_kernel_is_pinned_with_its_base(
    folder: Path,
    hub: Callable[[Any], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its commit is written into the recipe; without the package that selects its files, the output says what to do."""
    requests = hub(COMMIT)
    recipe = Path("recipes/h100.yaml")
    text = with_kernel(recipe.read_text(encoding="utf-8"), KERNEL)
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{KERNEL} needs its commit, as {KERNEL}@ and 40 hex digits"):
        read_recipe("h100", Path())
    monkeypatch.setattr("finetune.config.pins.find_spec", lambda _: None)
    pin(Path("recipes"), "h100", Path("params.yaml"))
    assert requests == ["mistralai/Mistral-7B-Instruct-v0.3", KERNEL]
    assert read_recipe("h100", Path()).model.attention == f"{KERNEL}@{COMMIT}"
    assert "run this on the machine that trains, after pip install kernels" in capsys.readouterr().out


def test_a_kernel_is_downloaded_for_this_machine(
    folder: Path, hub: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package downloads the build for this machine; its errors are those of the machine."""
    hub(COMMIT)
    recipe = Path("recipes/h100.yaml")
    recipe.write_text(with_kernel(recipe.read_text(encoding="utf-8"), KERNEL), encoding="utf-8")
    asked = []
    package = SimpleNamespace(install_kernel=lambda name, revision: asked.append((name, revision)))
    monkeypatch.setattr("finetune.config.pins.find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "kernels", package)
    pin(Path("recipes"), "h100", Path("params.yaml"))
    assert asked == [(KERNEL, COMMIT)]
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace())
    with pytest.raises(MachineError, match="can't be downloaded"):
        pin(Path("recipes"), "h100", Path("params.yaml"))


@pytest.mark.parametrize("name", ["other/flash-attn2@" + "0" * 40, "kernels-community/x@main", "flash_attention_9"])
def test_another_attention_is_refused(folder: Path, name: str) -> None:
    """Code of other organizations, unpinned code and misspelled names are refused."""
    recipe = Path("recipes/h100.yaml")
    recipe.write_text(with_kernel(recipe.read_text(encoding="utf-8"), name), encoding="utf-8")
    with pytest.raises(ConfigError, match="is neither auto, sdpa, eager, flash_attention_2 nor a kernel, like"):
        read_recipe("h100", Path())
