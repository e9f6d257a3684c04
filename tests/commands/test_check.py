"""A run on the wrong machine stops before anything is written or waited for, and says what works here."""

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
    """A folder with the shipped recipes and params, on a machine without accelerators, where `laptop` fits best."""
    monkeypatch.chdir(tmp_path)
    for who, what in itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.setenv(f"GIT_{who}_{what}", "me")
    shutil.copytree(ROOT / "recipes", "recipes")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    monkeypatch.setattr(preflight, "find_missing_device", lambda kind: None if kind == "cpu" else f"no {kind} here")
    monkeypatch.setattr(check, "find_best", lambda root: "laptop")
    return tmp_path


def test_a_recipe_for_another_machine_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing, and the two things that work here; params.yaml is as it was."""
    before = (folder / "params.yaml").read_bytes()
    assert main(["check", "h100"]) == 4
    told = capsys.readouterr()
    assert told.out == "recipe h100 can't run on this machine; searching for a recipe that can\n"
    assert told.err == (
        "error: recipes/h100.yaml: environment: cuda: no cuda here; nothing was started or changed; "
        "what works here: ./finetune rehearse h100 (every stage, on a shrunken base), "
        "or make train-laptop, the largest base that fits this machine\n"
    )
    assert (folder / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "recipes"]


def test_params_for_another_machine_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make repro` runs no recipe by name; its params may come from another machine's commit."""
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
def test_what_evaluate_reads_is_asked_for_before_the_run(
    folder: Path, key: str, value: object, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing scorer or recorded run would be told after hours of training."""
    content = params()
    content["evaluate"][key] = value
    content["decide"]["criteria"] = [{"rule": "memory_at_most", "limit": "2 GB"}]
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["check"]) in (2, 3)
    assert capsys.readouterr().err.startswith(text)


def test_where_nothing_fits_the_list_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a known fit, no recipe is recommended by chance."""
    monkeypatch.setattr(check, "find_best", lambda root: None)
    assert main(["check", "h100"]) == 4
    assert capsys.readouterr().err.endswith("or another recipe (./finetune recipes lists them)\n")


def test_too_few_devices_are_a_wrong_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe for four GPUs on one GPU would fail only after prepare."""
    monkeypatch.setattr(preflight, "find_missing_device", lambda kind: None)
    monkeypatch.setattr(preflight, "count_devices", lambda kind: 1)
    assert main(["check", "a100x4"]) == 4
    assert "environment: cuda: 4 devices a node are asked for, 1 found; " in capsys.readouterr().err
    monkeypatch.setattr(preflight, "count_devices", lambda kind: 4)
    assert main(["check", "a100x4"]) == 0


def test_what_can_run_here_is_passed_in_silence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The front door asks before every run; there is nothing to read where all is right."""
    assert main(["check", "tiny"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


def test_an_experiment_needs_an_author(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rented machine has none. DVC asks after params.yaml is changed, with DETACH=1 in a log that nobody reads."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.delenv("GIT_COMMITTER_EMAIL")
    assert main(["check", "tiny"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: git: user.email is not set, and an experiment is kept as a commit; nothing was")
    assert main(["check"]) == 0, "make repro keeps no experiment"
    Path("gitconfig").write_text("[user]\nname = Me\nemail = me@example.org\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "gitconfig")
    assert main(["check", "tiny"]) == 0
    monkeypatch.setenv("FINETUNE_STARTED", str(folder / "started"))  # in a container, which sees no config of git's
    monkeypatch.setenv("FINETUNE_UMASK", "22")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert main(["check", "tiny"]) == 0


def test_an_unknown_recipe_is_bad_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make train-tinny` must not look for a device first."""
    assert main(["check", "tinny"]) == 2
    assert capsys.readouterr().err == "error: recipe 'tinny': no such file recipes/tinny.yaml; did you mean tiny?\n"


def test_a_mistake_in_params_is_found_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As without a device question: all mistakes at once, before the machine."""
    content = params() | {"sed": 1, "environment": "cuda"}
    Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["check"]) == 2
    assert "sed: unknown key; did you mean seed?" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["train-%", "repro"])
def test_the_front_door_asks_first(target: str) -> None:
    """Before params.yaml is changed, before a detached start, and before DVC."""
    _, lines = makefile_targets()[target]
    assert re.match(r"@(requirements/setup\.sh [^&|;]+ && )?finetune check", lines[0])
    assert any("use" in line or "dvc repro" in line for line in lines[1:])


@pytest.mark.slow
def test_the_best_recipe_is_one_that_passes() -> None:
    """What is recommended instead must not be refused in turn."""
    best = check.find_best(ROOT)
    if best is None:
        pytest.skip("no recipe's memory can be predicted here")
    check.check(ROOT, best)
