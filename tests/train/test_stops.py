"""A run that is stopped, lacks disk or memory, or finds its files broken says so and goes on to the same result."""

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


def goes_on(workshop: Workshop, folder: Path, setting: str) -> None:
    """The next start ends as the run that nothing disturbed."""
    assert workshop.start(folder) == 0, workshop.start.said(folder)
    assert outcome(folder) == outcome(workshop.whole(setting))


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_at_the_end_of_the_step(workshop: Workshop, name: str) -> None:
    """Slurm, spot machines and Ctrl-C: no save was due, and nothing of what was computed is lost."""
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
    step, said = newest_step(folder), (folder / "train.log").read_text(encoding="utf-8")
    assert f"{name}: the run is saved at the end of this step and stops" in said
    assert f"train was stopped by {name} and saved at step {step} of 80; the same command resumes from there" in said
    assert 4 <= step < 80
    assert read_json(folder / "work/status.json")["ended"] == "interrupted"
    goes_on(workshop, folder, "long")
    assert read_json(folder / "reports/train_cost.json")["resumed_from_step"] == step


@pytest.mark.parametrize("step", [0, 6, 15])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(workshop: Workshop, step: int) -> None:
    """It can take minutes, and Slurm kills after 30 seconds: it is taken anew when the run goes on."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, f"evaluation {step}", send="SIGTERM") == STOPPED
    assert newest_step(folder) == step
    kept = (
        f"and saved at step {step} of 15" if step else "; no checkpoint has been written yet, the same command resumes"
    )
    assert f"train was stopped by SIGTERM{' ' * (step > 0)}{kept}" in workshop.start.said(folder)
    goes_on(workshop, folder, "dropout")


def test_a_signal_in_the_evaluation_that_patience_ends_with(workshop: Workshop) -> None:
    """The evaluation decides when it is taken up again, as it would have."""
    steps = outcome(workshop.whole("spoilt")).report["steps"]
    folder = workshop.ready("spoilt")
    assert workshop.start(folder, f"evaluation {steps}", send="SIGTERM") == STOPPED
    goes_on(workshop, folder, "spoilt")


def test_a_signal_in_an_evaluation_without_a_save(workshop: Workshop) -> None:
    """The checkpoint that the signal leaves is none that the whole run would have chosen among."""
    folder = workshop.ready("rare saves")
    assert workshop.start(folder, "evaluation 9", send="SIGTERM") == STOPPED
    assert newest_step(folder) == 9
    goes_on(workshop, folder, "rare saves")


def test_a_second_ctrl_c_stops_at_once(workshop: Workshop) -> None:
    """Who is in a hurry loses the steps since the last checkpoint, and nothing else."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "micro 7 1", send="SIGINT SIGINT") == STOPPED
    assert "train was interrupted; run it again" in workshop.start.said(folder)
    (other,) = [path for path in folder.glob("work/checkpoints/*") if not (path / "finished").exists()]
    assert (other / "checkpoint-6").is_dir()
    assert len(order(folder, 1)) == order(workshop.whole("dropout"), 1).index(order(folder, 1)[-1]) + 1
    goes_on(workshop, folder, "dropout")


# ------------------------------------------------------------------------------------------------ broken checkpoints


def spoil_random_states(folder: Path) -> None:
    """The file is whole, but its content is another run's."""
    path = folder / "rng_state.pth"
    states = torch.load(path, weights_only=False)
    states["cpu"] = torch.Generator().manual_seed(99).get_state()
    torch.save(states, path)
    write_manifest(folder, read_json(folder / MANIFEST))


def spoil_unlogged_loss(folder: Path) -> None:
    """As if the losses since the last log had been forgotten."""
    path = folder / "progress.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"unlogged_loss": 7', '"unlogged_loss": 0'), encoding="utf-8"
    )
    write_manifest(folder, read_json(folder / MANIFEST))


@pytest.mark.parametrize(("spoil", "same"), [(spoil_random_states, False), (spoil_unlogged_loss, True)])
def test_the_comparison_can_fail(workshop: Workshop, spoil: Callable[[Path], None], same: bool) -> None:
    """Without the random states dropout is another, without the unlogged losses the curve is: both would be seen."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "step 5") == KILLED
    spoil(checkpoint(folder, 3))
    assert workshop.start(folder) == 0
    found, expected = outcome(folder), outcome(workshop.whole("dropout"))
    assert (found.adapter == expected.adapter) == same
    assert found.logged != expected.logged


def test_a_broken_checkpoint_is_passed_over(workshop: Workshop) -> None:
    """A truncated optimizer would crash, a missing one would resume with other weights in silence."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "step 10") == KILLED
    path = checkpoint(folder, 9) / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    goes_on(workshop, folder, "dropout")
    said = workshop.start.said(folder)
    assert "checkpoint-9 is not a usable checkpoint and was set aside as bad-checkpoint-9" in said
    assert read_json(folder / "reports/train_cost.json")["resumed_from_step"] == 6


@pytest.mark.parametrize("how", ["vanished", "broken"])
def test_the_best_checkpoint_is_not_there_any_more(workshop: Workshop, how: str) -> None:
    """It is what the run publishes: without it the run begins before it, and not with the second best."""
    folder, best = workshop.ready("spoilt"), outcome(workshop.whole("spoilt")).report["kept_step"]
    assert workshop.start(folder, "publish") == KILLED
    path = checkpoint(folder, best)
    assert newest_step(folder) > best
    weights = path / "adapter_model.safetensors"
    if how == "vanished":
        path.rename(folder / "elsewhere")
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    goes_on(workshop, folder, "spoilt")
    assert f"its best checkpoint, step {best}, is not usable" in workshop.start.said(folder)


def test_changed_params_begin_anew(workshop: Workshop) -> None:
    """Checkpoints of another learning rate would give an adapter that no manifest describes."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, "step 7") == KILLED
    workshop.set(folder, "plain")
    goes_on(workshop, folder, "plain")
    assert "resumes from" not in workshop.start.said(folder)
    assert "of 1 unfinished runs with other params, data or code" in workshop.start.said(folder)
    (other,) = [path for path in folder.glob("work/checkpoints/*") if not (path / "finished").exists()]
    assert (other / "checkpoint-6").is_dir()


# ------------------------------------------------------------------------------------------- neither room nor memory


@pytest.mark.parametrize(
    ("trouble", "kept", "told"),
    [
        ("disk 6", 3, "needed for a checkpoint; the checkpoint of step 3 is kept; free some space"),
        ("writes 6 60", 3, "a checkpoint could not be written (free disk space: dvc gc -w)"),  # the optimizer's 70 kB
        ("writes 6 20", 3, "File too large"),  # the adapter's 35 kB
    ],
)
def test_no_room_for_a_checkpoint(workshop: Workshop, trouble: str, kept: int, told: str) -> None:
    """A full disk ends the run with its own exit code, and loses no checkpoint that was whole."""
    folder = workshop.ready("dropout")
    assert workshop.start(folder, trouble=trouble) == MACHINE, workshop.start.said(folder)
    said = workshop.start.said(folder)
    assert told in said, said
    assert "Traceback" not in said
    assert newest_step(folder) == kept
    goes_on(workshop, folder, "dropout")


def test_no_place_for_checkpoints(workshop: Workshop) -> None:
    """It is known before the first step and not after hours."""
    folder = workshop.ready("dropout")
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work/checkpoints").write_text("not a folder", encoding="utf-8")
    assert workshop.start(folder) == MACHINE, workshop.start.said(folder)
    said = workshop.start.said(folder)
    assert "error: train: work/checkpoints" in said
    assert "Not a directory; earlier complete files are kept" in said
    assert not (folder / "order-1.jsonl").read_text(encoding="utf-8")


def test_no_data(workshop: Workshop) -> None:
    """The stage that writes them is named."""
    folder = workshop.ready("dropout")
    (folder / "data/validated").rename(folder / "data/elsewhere")
    assert workshop.start(folder) == DATA
    said = workshop.start.said(folder)
    assert "error: data/validated/manifest.json: no such file; run the stage that writes it (dvc repro)" in said


@pytest.mark.parametrize("own_error", [1, 0])
def test_a_micro_batch_without_memory_is_halved(workshop: Workshop, own_error: int) -> None:
    """The same examples at each step, in the same order: only the number of passes is another."""
    whole, folder = workshop.whole("plain"), workshop.ready("plain")
    trouble = f"memory 2 {own_error}"
    assert workshop.start(folder, "step 7", trouble=trouble) == KILLED
    told = "2 rows, accumulated 4 times, the same effective batch size of 8"
    assert told in workshop.start.said(folder)
    assert workshop.start(folder, trouble=trouble) == 0
    assert "no memory" not in workshop.start.said(folder)
    assert [batch["step"] for batch in order(folder, 2)][:5] == [6, 6, 6, 6, 7]
    assert rows_of_steps(folder, 2) == {step: rows for step, rows in rows_of_steps(whole, 1).items() if step >= 6}
    found, expected = outcome(folder), outcome(whole)
    assert read_manifest(folder / "out/adapter")["micro_batch"] == 2
    for mine, its in zip(found.logged, expected.logged, strict=True):
        assert mine == pytest.approx(its, rel=1e-5)


def rows_of_steps(folder: Path, number: int) -> dict[int, list[list[str]]]:
    """The examples of each step in their order, whatever its micro-batches."""
    found: dict[int, list[list[str]]] = {}
    for batch in order(folder, number):
        found.setdefault(batch["step"], []).extend(batch["ids"])
    return found


def test_killed_and_whole_runs_with_less_memory_are_one(workshop: Workshop) -> None:
    """The smaller micro-batch is kept beside the checkpoint: the run that goes on need not find it out again."""
    whole, folder = workshop.ready("dropout"), workshop.ready("dropout")
    assert workshop.start(whole, trouble="memory 2") == 0
    assert workshop.start(folder, "step 7", trouble="memory 2") == KILLED
    assert workshop.start(folder) == 0  # the memory is there again, and yet
    assert outcome(folder) == outcome(whole)


def test_one_row_without_memory_is_the_end(workshop: Workshop) -> None:
    """The machine can't, and nothing was computed in vain."""
    folder = workshop.ready("plain")
    assert workshop.start(folder, trouble="memory 0") == MACHINE
    said = workshop.start.said(folder)
    assert "the longest row alone does not fit in the memory of this machine; use a smaller train.max_length" in said
    assert order(folder, 1) == []


def test_nothing_is_left_running() -> None:
    """A process that outlives its test would hold a folder's lock."""
    names = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "finetune train" in name]
