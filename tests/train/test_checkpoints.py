"""Checkpoints are complete or absent, the newest good one is found, and no good checkpoint is lost."""

import json
from collections import namedtuple
from pathlib import Path

import pytest

from finetune.errors import MachineError
from finetune.paths import FINISHED
from finetune.train.checkpoints import Checkpoints, clear_others


def save(store: Checkpoints, step: int, best: int | None = None) -> Path:
    """Write a checkpoint of a hundred bytes."""
    store.begin(100)
    (store.partial / "weights").write_bytes(bytes(100))
    return store.publish(step, best, {"saved": []})


def spoil(path: Path) -> None:
    """Truncate the file, as a full or failing disk does."""
    (path / "weights").write_bytes(bytes(99))


def test_newest_complete_checkpoint_is_found_and_bad_ones_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-written checkpoint is set aside with a warning and the one before it is used."""
    store = Checkpoints(tmp_path, 5)
    for step in (3, 6, 9):
        save(store, step)
    spoil(store.path(6))
    (store.path(9) / "manifest.json").unlink()
    assert store.newest() == store.path(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-checkpoint-6", "bad-checkpoint-9", "checkpoint-3"]
    output = capsys.readouterr().out
    assert "checkpoint-9 is not a usable checkpoint and was renamed to bad-checkpoint-9: it is incomplete" in output
    assert "checkpoint-6/weights: differs from the published file" in output


def test_a_checkpoint_whose_best_one_is_bad_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best checkpoint is what gets published: a run that has lost it resumes from before it."""
    store = Checkpoints(tmp_path, 5)
    save(store, 3)
    save(store, 6, best=6)
    save(store, 9, best=6)
    spoil(store.path(6))
    assert store.newest() == store.path(3)
    assert (
        "checkpoint-9 is not a usable checkpoint and was renamed to bad-checkpoint-9: its best"
        in capsys.readouterr().out
    )
    assert store.steps() == [3]  # several processes take the newest one left


@pytest.mark.parametrize("best", ["x", [3], {"step": 3}])
def test_a_manifest_without_a_best_step_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], best: object
) -> None:
    """A manifest without a best step is set aside like any other damage; the run resumes from the one before."""
    store = Checkpoints(tmp_path, 5)
    save(store, 3)
    save(store, 6)
    manifest = store.path(6) / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8")) | {"best_step": best}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert store.newest() == store.path(3)
    assert "manifest.json does not name the best step" in capsys.readouterr().out


def test_the_best_and_the_newest_checkpoint_are_kept(tmp_path: Path) -> None:
    """The limit includes the best checkpoint, which is never removed; nor is the one just written."""
    store = Checkpoints(tmp_path, 2)
    for step, best in ((3, 3), (6, 3), (9, 3), (12, 3)):
        save(store, step, best)
    assert store.steps() == [12, 3]
    save(store, 15, 15)
    assert store.steps() == [15, 12]


def test_a_half_written_checkpoint_is_ignored_and_cleared(tmp_path: Path) -> None:
    """Only the rename completes a checkpoint; the next start removes what a kill left unfinished."""
    store = Checkpoints(tmp_path, 2)
    save(store, 3)
    store.begin(100)
    (store.partial / "weights").write_bytes(bytes(50))
    assert store.newest() == store.path(3)
    assert not store.partial.exists()


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    """A run that was stopped in its evaluation saves the same step a second time when it resumes."""
    store = Checkpoints(tmp_path, 2)
    save(store, 3)
    save(store, 3, best=3)
    assert json.loads((store.path(3) / "manifest.json").read_text(encoding="utf-8"))["best_step"] == 3


def test_a_full_disk_is_detected_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the directory, the free and needed space, and the checkpoint that the run can resume from."""
    store = Checkpoints(tmp_path, 2)
    save(store, 3)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 2 * 10**7, 2 * 10**7))
    with pytest.raises(MachineError) as raised:
        store.begin(10**9)
    assert str(raised.value) == (
        f"{tmp_path}: 0.02 GB are free, but 1.02 GB are needed for a checkpoint; the checkpoint of step 3 is kept; "
        "free disk space (unfinished runs with other params are in the same folder), then run it again"
    )
    assert store.steps() == [3]


def test_unfinished_runs_are_reported_and_published_runs_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unfinished runs of other params fill the disk and are reported; published runs, stored by DVC, are removed."""
    one, two = Checkpoints(tmp_path / "one", 2), Checkpoints(tmp_path / "two", 2)
    save(one, 3)
    save(two, 3)
    two.finish()
    clear_others(tmp_path, "two")
    assert (tmp_path / "two" / FINISHED).exists()
    assert "contains 0.00 GB from 1 unfinished runs with other params" in capsys.readouterr().out
    clear_others(tmp_path, "one")
    assert not (tmp_path / "two").exists()
    assert capsys.readouterr().out == ""


def test_files_of_other_processes_are_waited_for(tmp_path: Path) -> None:
    """A shared disk shows files late; without its random state a run would silently resume differently."""
    from finetune.train.checkpoints import wait_for_files

    (tmp_path / "rng_state_0.pth").touch()
    wait_for_files([tmp_path / "rng_state_0.pth"])
    with pytest.raises(MachineError, match=r"rng_state_1.pth of other processes are not visible; is the disk shared"):
        wait_for_files([tmp_path / "rng_state_0.pth", tmp_path / "rng_state_1.pth"], seconds=0.0)
