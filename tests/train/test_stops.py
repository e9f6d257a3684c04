"""A run stopped by a signal, a lack of disk or memory, or broken files reports it and resumes to the same result."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from finetune.files.manifests import MANIFEST, read_manifest, write_manifest
from finetune.files.strict_json import read_json
from tests.builders.resumed import Workshop, checkpoint, newest_step, order, outcome
from tests.builders.resumed import workshop as workshop
from tests.builders.small_run import ROOT
from tests.builders.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.end_to_end

KILLED, MACHINE, DATA, STOPPED = -9, 4, 3, 5


def assert_resumes(workshop: Workshop, folder: Path, setting: str) -> None:
    """Assert that the next start ends with the result of an uninterrupted run."""
    assert workshop.start(folder) == 0, workshop.start.output(folder)
    assert outcome(folder) == outcome(workshop.uninterrupted(setting))


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_at_the_end_of_the_step(workshop: Workshop, name: str) -> None:
    """A signal from Slurm, a spot machine or Ctrl-C saves a checkpoint at the end of the step, and no step is lost."""
    folder = workshop.ready("long")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / "train.log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "finetune", "train"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    curve = folder / "reports/curves.tsv"
    wait_for(lambda: curve.exists() and len(curve.read_text(encoding="utf-8").splitlines()) > 2, running)
    running.send_signal(signal.Signals[name])
    assert running.wait(PATIENCE) == STOPPED
    step, output = newest_step(folder), (folder / "train.log").read_text(encoding="utf-8")
    assert f"{name}: saving at the end of this step, then stopping" in output
    assert f"train was stopped by {name} and saved at step {step} of 80; run the same command again to resume" in output
    assert 4 <= step < 80
    assert read_json(folder / "work/status.json")["ended"] == "interrupted"
    assert_resumes(workshop, folder, "long")
    assert read_json(folder / "reports/train_cost.json")["resumed_from_step"] == step


@pytest.mark.parametrize("step", [0, 6, 15])
def test_a_signal_interrupts_an_evaluation(workshop: Workshop, step: int) -> None:
    """An evaluation can take minutes, and Slurm kills after 30 seconds: the resumed run repeats it."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, f"evaluation {step}", send="SIGTERM") == STOPPED
    assert newest_step(folder) == step
    kept = (
        f"and saved at step {step} of 15"
        if step
        else "; no checkpoint has been written yet; run the same command again to resume"
    )
    assert f"train was stopped by SIGTERM{' ' * (step > 0)}{kept}" in workshop.start.output(folder)
    assert_resumes(workshop, folder, "dropout")


def test_a_signal_in_the_last_evaluation_before_early_stopping(workshop: Workshop) -> None:
    """The resumed run repeats the evaluation and stops early after it, as the uninterrupted run does."""
    steps = outcome(workshop.uninterrupted("spoilt")).report["steps"]
    folder = workshop.ready("spoilt")
    assert workshop.start(folder, f"evaluation {steps}", send="SIGTERM") == STOPPED
    assert_resumes(workshop, folder, "spoilt")


def test_a_signal_checkpoint_is_not_a_candidate_for_the_best(workshop: Workshop) -> None:
    """The checkpoint that the signal writes is not a candidate for the best one, as in the uninterrupted run."""
    folder = workshop.ready("rare saves")
    assert workshop.start(folder, "evaluation 9", send="SIGTERM") == STOPPED
    assert newest_step(folder) == 9
    assert_resumes(workshop, folder, "rare saves")


def test_a_second_ctrl_c_stops_at_once(workshop: Workshop) -> None:
    """A second Ctrl-C loses only the steps since the last checkpoint."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "micro 7 1", send="SIGINT SIGINT") == STOPPED
    assert "train was interrupted; run it again" in workshop.start.output(folder)
    (other,) = [path for path in folder.glob("work/checkpoints/*") if not (path / "finished").exists()]
    assert (other / "checkpoint-6").is_dir()
    assert len(order(folder, 1)) == order(workshop.uninterrupted("dropout"), 1).index(order(folder, 1)[-1]) + 1
    assert_resumes(workshop, folder, "dropout")


# ------------------------------------------------------------------------------------------------ broken checkpoints


def spoil_random_states(folder: Path) -> None:
    """Replace the random states with another run's; the file itself stays valid."""
    path = folder / "rng_state.pth"
    states = torch.load(path, weights_only=False)
    states["cpu"] = torch.Generator().manual_seed(99).get_state()
    torch.save(states, path)
    write_manifest(folder, read_json(folder / MANIFEST))


def spoil_unlogged_loss(folder: Path) -> None:
    """Write a checkpoint that has lost the losses since the last log."""
    path = folder / "progress.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"unlogged_loss": 7', '"unlogged_loss": 0'), encoding="utf-8"
    )
    write_manifest(folder, read_json(folder / MANIFEST))


@pytest.mark.parametrize(("spoil", "same"), [(spoil_random_states, False), (spoil_unlogged_loss, True)])
def test_a_spoilt_checkpoint_changes_the_result(workshop: Workshop, spoil: Callable[[Path], None], same: bool) -> None:
    """Without its random states or its unlogged losses, a resumed run differs visibly from an uninterrupted one."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "step 5") == KILLED
    spoil(checkpoint(folder, 3))
    assert workshop.start(folder) == 0
    found, expected = outcome(folder), outcome(workshop.uninterrupted("dropout"))
    assert (found.adapter == expected.adapter) == same
    assert found.logged != expected.logged


def test_a_broken_checkpoint_is_skipped(workshop: Workshop) -> None:
    """A truncated optimizer would crash; a missing one would silently resume with other weights."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "step 10") == KILLED
    path = checkpoint(folder, 9) / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert_resumes(workshop, folder, "dropout")
    output = workshop.start.output(folder)
    assert "checkpoint-9 is not a usable checkpoint and was renamed to bad-checkpoint-9" in output
    assert read_json(folder / "reports/train_cost.json")["resumed_from_step"] == 6


@pytest.mark.parametrize("how", ["vanished", "broken"])
def test_a_lost_best_checkpoint_resumes_from_before_it(workshop: Workshop, how: str) -> None:
    """The best checkpoint gets published: without it the run resumes from before it, not with the second best."""
    folder, best = workshop.ready("spoilt"), outcome(workshop.uninterrupted("spoilt")).report["kept_step"]
    assert workshop.start(folder, "publish") == KILLED
    path = checkpoint(folder, best)
    assert newest_step(folder) > best
    weights = path / "adapter_model.safetensors"
    if how == "vanished":
        path.rename(folder / "elsewhere")
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert_resumes(workshop, folder, "spoilt")
    assert f"its best checkpoint, step {best}, is not usable" in workshop.start.output(folder)


def test_changed_params_start_a_new_run(workshop: Workshop) -> None:
    """Checkpoints of another learning rate are not resumed: no manifest would describe the adapter."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "step 7") == KILLED
    workshop.set(folder, "plain")
    assert_resumes(workshop, folder, "plain")
    assert "resumes from" not in workshop.start.output(folder)
    assert "from 1 unfinished runs with other params, data or code" in workshop.start.output(folder)
    (other,) = [path for path in folder.glob("work/checkpoints/*") if not (path / "finished").exists()]
    assert (other / "checkpoint-6").is_dir()


# -------------------------------------------------------------------------------------------- lack of space or memory


@pytest.mark.parametrize(
    ("trouble", "kept", "told"),
    [
        ("disk 6", 3, "needed for a checkpoint; the checkpoint of step 3 is kept; free disk space"),
        ("writes 6 60", 3, "a checkpoint could not be written (free disk space: dvc gc -w)"),  # the optimizer has 70 kB
        ("writes 6 20", 3, "File too large"),  # the adapter has 35 kB
    ],
)
def test_a_full_disk_ends_the_run(workshop: Workshop, trouble: str, kept: int, told: str) -> None:
    """A full disk ends the run with its own exit code, and every complete checkpoint remains."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, trouble=trouble) == MACHINE, workshop.start.output(folder)
    output = workshop.start.output(folder)
    assert told in output, output
    assert "Traceback" not in output
    assert newest_step(folder) == kept
    assert_resumes(workshop, folder, "dropout")


def test_an_unusable_checkpoint_directory_is_reported(workshop: Workshop) -> None:
    """A checkpoint directory that cannot be created is reported before the first step."""
    folder = workshop.ready("dropout")
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work/checkpoints").write_text("not a folder", encoding="utf-8")
    assert workshop.start(folder) == MACHINE, workshop.start.output(folder)
    output = workshop.start.output(folder)
    assert "error: train: work/checkpoints" in output
    assert "Not a directory; earlier complete files are kept" in output
    assert not (folder / "order-1.jsonl").read_text(encoding="utf-8")


def test_missing_data_is_reported(workshop: Workshop) -> None:
    """The error names the stage that writes the missing data."""
    folder = workshop.ready("dropout")
    (folder / "data/validated").rename(folder / "data/elsewhere")
    assert workshop.start(folder) == DATA
    output = workshop.start.output(folder)
    assert "error: data/validated/manifest.json: no such file; run the stage that writes it (dvc repro)" in output


@pytest.mark.parametrize("own_error", [1, 0])
def test_a_micro_batch_without_memory_is_halved(workshop: Workshop, own_error: int) -> None:
    """Each step has the same examples in the same order; only the number of passes differs."""
    uninterrupted, folder = workshop.uninterrupted("plain"), workshop.ready("plain")
    trouble = f"memory 2 {own_error}"
    assert workshop.start(folder, "step 7", trouble=trouble) == KILLED
    told = "2 rows, accumulated 4 times, the same effective batch size of 8"
    assert told in workshop.start.output(folder)
    assert workshop.start(folder, trouble=trouble) == 0
    assert "no memory" not in workshop.start.output(folder)
    assert [batch["step"] for batch in order(folder, 2)][:5] == [6, 6, 6, 6, 7]
    assert rows_of_steps(folder, 2) == {
        step: rows for step, rows in rows_of_steps(uninterrupted, 1).items() if step >= 6
    }
    found, expected = outcome(folder), outcome(uninterrupted)
    assert read_manifest(folder / "out/adapter")["micro_batch"] == 2
    for mine, its in zip(found.logged, expected.logged, strict=True):
        assert mine == pytest.approx(its, rel=1e-5)


def rows_of_steps(folder: Path, number: int) -> dict[int, list[list[str]]]:
    """Return the examples of each step in order, regardless of micro-batches."""
    found: dict[int, list[list[str]]] = {}
    for batch in order(folder, number):
        found.setdefault(batch["step"], []).extend(batch["ids"])
    return found


def test_a_resumed_run_keeps_the_halved_micro_batch(workshop: Workshop) -> None:
    """The smaller micro-batch is stored beside the checkpoint: the resumed run does not have to find it again."""
    uninterrupted, folder = workshop.ready("dropout"), workshop.ready("dropout")
    assert workshop.start(uninterrupted, trouble="memory 2") == 0
    assert workshop.start(folder, "step 7", trouble="memory 2") == KILLED
    assert workshop.start(folder) == 0  # although the memory is available again
    assert outcome(folder) == outcome(uninterrupted)


def test_a_row_that_does_not_fit_ends_the_run(workshop: Workshop) -> None:
    """If a single row does not fit, the hardware is insufficient; the run ends before its first step."""
    folder = workshop.ready("plain")
    assert workshop.start(folder, trouble="memory 0") == MACHINE
    output = workshop.start.output(folder)
    assert "the longest row alone does not fit in the memory of this machine; use a smaller train.max_length" in output
    assert order(folder, 1) == []


def test_nothing_is_left_running() -> None:
    """A process that outlives its test would hold a folder's lock."""
    names = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "finetune train" in name]
