"""finetune verify repeats a finished run in a fresh folder and reports whether the result is the same."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from finetune.commands import verify
from finetune.config.params import Config, params_of
from finetune.errors import ConfigError, DataError, InterruptedRunError
from finetune.files.atomic import write_json
from finetune.files.manifests import MANIFEST, read_manifest
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.train import run, stage
from tests.builders.small_run import copy_of, params, validated

SAVES = [{"step": step, "adapter_sha256": f"a{step}", "optimizer_sha256": f"o{step}"} for step in (3, 6, 9)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a trained adapter."""
    root = tmp_path_factory.mktemp("verify") / "run"
    config, paths = validated(root, train__num_train_epochs=2)
    stage.run(params_of("train", config), paths)
    return root


def rewrite(root: Path, **changes: object) -> None:
    """Change entries of the adapter's manifest."""
    path = root / "out/adapter" / MANIFEST
    write_json(path, read_json(path) | changes)


@pytest.mark.slow
def test_a_run_and_its_first_steps_are_reproduced(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The repetition gives the same bits at every checkpoint; the finished run is not touched."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)
    before = read_manifest(root / "out/adapter")
    (root / "params.yaml").write_text(json.dumps(params(train__learning_rate=0.5)), encoding="utf-8")  # changed since
    verify.run(Path(), None, 1)
    assert "the whole run: identical bit for bit (tier bitwise)" in capsys.readouterr().out
    verify.run(Path(), 2, 1)
    assert "the first 3 steps: identical bit for bit" in capsys.readouterr().out
    assert read_manifest(root / "out/adapter") == before
    assert not (root / "work/verify").exists()


@pytest.mark.slow
def test_different_bits_are_an_error_or_a_spread(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with other bits is an error on the tier that promises equal bits, and a reported spread on the other."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)
    rewrite(root, checkpoints=SAVES, adapter_sha256="0")
    with pytest.raises(DataError, match=r"the whole run: different, although its tier is bitwise; validation"):
        verify.run(Path(), None, 1)
    rewrite(root, tier="statistical")
    verify.run(Path(), None, 1)
    output = capsys.readouterr().out
    assert "as the tier statistical allows; validation losses range from" in output
    assert "differs" in output


def test_a_stop_is_reported_without_leftovers(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped repetition cannot be resumed: its folder is deleted, and the message says so."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)

    def train(config: Config, paths: Paths, stop: Any, until: int | None) -> None:
        (paths.work / "checkpoints").mkdir(parents=True)
        stop.ask(signal.SIGTERM, None)
        raise InterruptedRunError("", "train stopped", "the same command resumes")

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(
        InterruptedRunError, match=r"verify was stopped by SIGTERM; .*run the same command again to restart$"
    ):
        verify.run(Path(), None, 1)
    assert not (root / "work/verify").exists()


def test_an_error_leaves_no_files(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk, the files of the repetition are deleted."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)

    def train(config: Config, paths: Paths, stop: Any, until: int | None) -> None:
        assert paths.validated.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(OSError, match="No space left"):
        verify.run(Path(), None, 1)
    assert not (root / "work/verify").exists()
    assert (root / "data/validated/train.arrow").exists()


def test_different_arithmetic_is_reported_before_the_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference of machines is reported before the run, not hours later, and again in the result."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)
    monkeypatch.setattr(verify, "repeat", lambda *_: read_manifest(root / "out/adapter"))
    verify.run(Path(), 2, 1)
    assert "warning" not in capsys.readouterr().out
    report = root / "reports/train_cost.json"
    content = read_json(report)
    there = content["machine"]["arithmetic"]["threads"]
    content["machine"]["arithmetic"]["threads"] = 96
    write_json(report, content)
    named = f"threads was 96, is {there}"
    verify.run(Path(), 2, 1)
    output = capsys.readouterr().out
    assert f"warning: rounding may differ from the machine of the original run: {named}" in output
    rewrite(root, checkpoints=SAVES)
    monkeypatch.setattr(verify, "repeat", lambda *_: read_manifest(root / "out/adapter") | {"checkpoints": []})
    with pytest.raises(DataError, match=f"different, although its tier is bitwise; the likely cause: {named}"):
        verify.run(Path(), 2, 1)
    report.unlink()
    with pytest.raises(DataError, match=r"was the run made on another machine\?"):
        verify.run(Path(), 2, 1)


def test_changes_since_the_run_are_reported(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library rounds differently, so a difference would not be evidence against the run."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)
    versions = read_manifest(root / "out/adapter")["versions"]
    rewrite(root, versions=versions | {"torch": "2.12.0"}, fingerprint="0" * 64)
    with pytest.raises(DataError, match=r"have changed since: versions: torch was 2.12.0, is 2.13.0"):
        verify.run(Path(), None, 1)
    rewrite(root, versions=versions)
    with pytest.raises(DataError, match=r"have changed since: the code; restore"):
        verify.run(Path(), None, 1)


def test_runs_on_several_devices_are_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on several devices are refused before anything starts."""
    root = copy_of(finished, tmp_path / "run")
    monkeypatch.chdir(root)
    spread = {"nodes": 1, "devices": 2, "strategy": "ddp", "offload_optimizer": "none", "offload_param": "none"}
    content = read_manifest(root / "out/adapter")["params"]
    content["train"]["distributed"] = spread
    rewrite(root, params=content)
    with pytest.raises(ConfigError, match="supports runs on one device only"):
        verify.run(Path(), None, 1)


def test_steps_are_rounded_up_to_the_next_checkpoint() -> None:
    """Bits are known at checkpoints only; steps beyond the last but one mean the complete run."""
    assert [verify.last_step(SAVES, steps) for steps in (1, 3, 4, 7, 100, None)] == [3, 3, 6, None, None, None]
    assert verify.last_step([], 5) is None


def test_every_checkpoint_is_compared() -> None:
    """A checkpoint that was not reached, or whose optimizer differs, counts as different."""
    assert verify.compare(SAVES, SAVES)[1]
    other = [SAVES[0], SAVES[1] | {"optimizer_sha256": "x"}]
    rows, same = verify.compare(SAVES, other)
    assert not same
    assert rows == [("3", "same", "same"), ("6", "same", "differs"), ("9", "differs", "differs")]
