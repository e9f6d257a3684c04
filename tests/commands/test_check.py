"""A run on an unsuitable machine stops before anything is written, and the error names recipes that can run."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from finetune.cli.main import main
from finetune.commands import check
from finetune.hardware import preflight
from tests.builders.small_run import ROOT, params
from tests.house.test_house import makefile_targets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with the shipped recipes and params, on a machine whose best recipe is `laptop`."""
    monkeypatch.chdir(tmp_path)
    for who, what in itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.setenv(f"GIT_{who}_{what}", "me")
    shutil.copytree(ROOT / "recipes", "recipes")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    monkeypatch.setattr(preflight, "find_missing_device", lambda kind: None if kind == "cpu" else f"no {kind} here")
    monkeypatch.setattr(check, "find_best", lambda root: "laptop")
    return tmp_path


def test_a_recipe_for_another_machine_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the missing device and two alternatives; params.yaml is unchanged."""
    before = (folder / "params.yaml").read_bytes()
    assert main(["check", "h100"]) == 4
    output = capsys.readouterr()
    assert output.out == "recipe h100 can't run on this machine; searching for a recipe that can\n"
    assert output.err == (
        "error: recipes/h100.yaml: environment: cuda: no cuda here; nothing was started or "
        "changed; on this machine you can run ./finetune rehearse h100 (every stage on a "
        "shrunken base), or make train-laptop, the largest base that fits this machine\n"
    )
    assert (folder / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "recipes"]


def test_params_for_another_machine_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make repro` uses params.yaml without a recipe name; the params may come from another machine."""
    assert main(["use", "apple"]) == 0
    assert main(["check"]) == 4
    assert capsys.readouterr().err.startswith("error: params.yaml: environment: apple: no apple here; nothing was")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "scorers",
            {"mine": {"scorer": "function", "of": None, "function": "scorers.none.at_all", "lowest": 0, "highest": 1}},
            "error: params.yaml: evaluate.scorers.mine.function: ",
        ),
        (
            "scorers",
            {"like": {"scorer": "regular_expression", "of": None, "pattern": "(", "lowest": 0}},
            "error: params.yaml: evaluate.scorers.like.lowest: unknown key",
        ),
        (
            "baseline",
            {"form": "recorded", "name": "old", "path": "old.jsonl", "sha256": "0" * 64},
            "error: old.jsonl: no such file; evaluate.baseline.path names it",
        ),
    ],
)
def test_inputs_of_evaluate_are_checked_before_the_run(
    folder: Path, key: str, value: object, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing scorer or recorded run would otherwise be reported after hours of training."""
    content = params()
    content["evaluate"][key] = value
    content["decide"]["criteria"] = [{"rule": "memory_at_most", "limit": "2 GB"}]
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["check"]) in (2, 3)
    assert capsys.readouterr().err.startswith(text)


def test_without_a_fitting_recipe_the_list_is_recommended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no recipe is known to fit, none is recommended."""
    monkeypatch.setattr(check, "find_best", lambda root: None)
    assert main(["check", "h100"]) == 4
    assert capsys.readouterr().err.endswith("or another recipe (./finetune recipes lists them)\n")


def test_too_few_devices_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe for four GPUs on one GPU would otherwise fail only after prepare."""
    monkeypatch.setattr(preflight, "find_missing_device", lambda kind: None)
    monkeypatch.setattr(preflight, "count_devices", lambda kind: 1)
    assert main(["check", "a100x4"]) == 4
    assert "environment: cuda: 4 devices per node are required, but 1 found; " in capsys.readouterr().err
    monkeypatch.setattr(preflight, "count_devices", lambda kind: 4)
    assert main(["check", "a100x4"]) == 0


def test_a_suitable_machine_passes_silently(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check runs before every run, so it prints nothing if all is well."""
    assert main(["check", "tiny"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_an_experiment_needs_an_author(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rented machine often has no git author; DVC would fail after params.yaml was changed."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.delenv("GIT_COMMITTER_EMAIL")
    assert main(["check", "tiny"]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: git: user.email is not set, but experiments are stored as commits; nothing was")
    assert main(["check"]) == 0, "make repro keeps no experiment"
    Path("gitconfig").write_text("[user]\nname = Me\nemail = me@example.org\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "gitconfig")
    assert main(["check", "tiny"]) == 0
    monkeypatch.setenv("FINETUNE_STARTED", str(folder / "started"))  # as in a container, which sees no git config
    monkeypatch.setenv("FINETUNE_UMASK", "22")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert main(["check", "tiny"]) == 0


def test_an_unknown_recipe_is_a_usage_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make train-tinny` reports the unknown recipe before checking for a device."""
    assert main(["check", "tinny"]) == 2
    assert capsys.readouterr().err == "error: recipe 'tinny': no such file recipes/tinny.yaml; did you mean tiny?\n"


def test_mistakes_in_params_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All mistakes in params.yaml are reported at once, before the machine is checked."""
    content = params() | {"sed": 1, "environment": "cuda"}
    Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["check"]) == 2
    assert "sed: unknown key; did you mean seed?" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["train-%", "repro"])
def test_the_front_door_checks_first(target: str) -> None:
    """The check precedes the change of params.yaml, a detached start, and DVC."""
    _, lines = makefile_targets()[target]
    assert re.match(r"@(requirements/setup\.sh [^&|;]+ && )?finetune check", lines[0])
    assert any("use" in line or "dvc repro" in line for line in lines[1:])


@pytest.mark.slow
def test_the_recommended_recipe_passes() -> None:
    """The recommended recipe passes the check itself."""
    best = check.find_best(ROOT)
    if best is None:
        pytest.skip("no recipe's memory can be predicted here")
    check.check(ROOT, best)
