"""Checkpoints: whole or not there, the newest good one is found, and nothing good is lost on the way."""

import json
from collections import namedtuple
from pathlib import Path

import pytest

from finetune.errors import MachineError
from finetune.paths import FINISHED
from finetune.train.checkpoints import Checkpoints, clear_others


def save(store: Checkpoints, step: int, best: int | None = None) -> Path:
    """A checkpoint of a hundred bytes."""
    store.begin(100)
    (store.partial / "weights").write_bytes(bytes(100))
    return store.publish(step, best, {"saved": []})


def spoil(path: Path) -> None:
    """What a full disk or a bad one does."""
    (path / "weights").write_bytes(bytes(99))


def test_newest_whole_one_is_found_and_bad_ones_are_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-written checkpoint would resume other weights in silence; the one before it is taken, aloud."""
    store = Checkpoints(tmp_path, 5)
    for step in (3, 6, 9):
        save(store, step)
    spoil(store.path(6))
    (store.path(9) / "manifest.json").unlink()
    assert store.newest() == store.path(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-checkpoint-6", "bad-checkpoint-9", "checkpoint-3"]
    told = capsys.readouterr().out
    assert "checkpoint-9 is not a usable checkpoint and was set aside as bad-checkpoint-9: it was not finished" in told
    assert "checkpoint-6/weights: is not the file that was published" in told


def test_a_checkpoint_whose_best_one_is_bad_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is published at the end is the best one: a run that can't have it resumes from before it."""
    store = Checkpoints(tmp_path, 5)
    save(store, 3)
    save(store, 6, best=6)
    save(store, 9, best=6)
    spoil(store.path(6))
    assert store.newest() == store.path(3)
    assert (
        "checkpoint-9 is not a usable checkpoint and was set aside as bad-checkpoint-9: its best"
        in capsys.readouterr().out
    )
    assert store.steps() == [3]  # several processes take the newest that is left


@pytest.mark.parametrize("best", ["x", [3], {"step": 3}])
def test_a_manifest_without_a_best_step_is_no_good_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], best: object
) -> None:
    """It is set aside like any other damage, and the run resumes from the one before."""
    store = Checkpoints(tmp_path, 5)
    save(store, 3)
    save(store, 6)
    manifest = store.path(6) / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8")) | {"best_step": best}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert store.newest() == store.path(3)
    assert "manifest.json names no step as its best one" in capsys.readouterr().out


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    """The limit counts the best one, which is never removed; nor is the one just written."""
    store = Checkpoints(tmp_path, 2)
    for step, best in ((3, 3), (6, 3), (9, 3), (12, 3)):
        save(store, step, best)
    assert store.steps() == [12, 3]
    save(store, 15, 15)
    assert store.steps() == [15, 12]


def test_what_a_kill_while_writing_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    """Only the rename makes it one, and the next start clears it away."""
    store = Checkpoints(tmp_path, 2)
    save(store, 3)
    store.begin(100)
    (store.partial / "weights").write_bytes(bytes(50))
    assert store.newest() == store.path(3)
    assert not store.partial.exists()


def test_the_same_step_is_written_anew(tmp_path: Path) -> None:
    """A run that was stopped in its evaluation saves the step a second time when it goes on."""
    store = Checkpoints(tmp_path, 2)
    save(store, 3)
    save(store, 3, best=3)
    assert json.loads((store.path(3) / "manifest.json").read_text(encoding="utf-8"))["best_step"] == 3


def test_no_room_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the place, what is there and what is needed, and what a stop now leaves."""
    store = Checkpoints(tmp_path, 2)
    save(store, 3)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 2 * 10**7, 2 * 10**7))
    with pytest.raises(MachineError) as raised:
        store.begin(10**9)
    assert str(raised.value) == (
        f"{tmp_path}: 0.02 GB are free, 1.02 GB are needed for a checkpoint; the checkpoint of step 3 is kept; "
        "free disk space (unfinished runs with other params are in the same folder), then run it again"
    )
    assert store.steps() == [3]


def test_other_unfinished_runs_are_told_of_and_published_ones_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They fill the disk until someone removes them; what was published is in DVC's hands by the next training."""
    one, two = Checkpoints(tmp_path / "one", 2), Checkpoints(tmp_path / "two", 2)
    save(one, 3)
    save(two, 3)
    two.finish()
    clear_others(tmp_path, "two")
    assert (tmp_path / "two" / FINISHED).exists()
    assert "holds 0.00 GB of 1 unfinished runs with other params" in capsys.readouterr().out
    clear_others(tmp_path, "one")
    assert not (tmp_path / "two").exists()
    assert capsys.readouterr().out == ""


def test_files_of_other_processes_are_waited_for(tmp_path: Path) -> None:
    """A shared disk shows them late; without a random state the library would resume another run in silence."""
    from finetune.train.checkpoints import wait_for_files

    (tmp_path / "rng_state_0.pth").touch()
    wait_for_files([tmp_path / "rng_state_0.pth"])
    with pytest.raises(MachineError, match=r"rng_state_1.pth of other processes are not visible; is the disk shared"):
        wait_for_files([tmp_path / "rng_state_0.pth", tmp_path / "rng_state_1.pth"], seconds=0.0)
