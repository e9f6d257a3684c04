"""Several processes give the result of one, start and stop together, and leave no process behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from finetune.files.manifests import read_manifest
from finetune.files.strict_json import read_json
from finetune.model.adapter import WEIGHTS
from finetune.train.batches import share
from tests.builders.resumed import newest_step
from tests.builders.small_run import ROOT, copy_of, params, validated
from tests.builders.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.end_to_end

# 33 training examples in micro-batches of two: 17 per epoch, 4 per step. The last step of an epoch has one micro-batch,
# during which the second process computes a blank row.
COMMON: dict[str, Any] = {
    "adapter__lora_dropout": 0.0,
    "train__num_train_epochs": 12,
    "train__per_device_train_batch_size": 2,
    "train__per_device_eval_batch_size": 4,
    "train__eval_steps": 6,
    "train__save_steps": 6,
}
ALONE = {"train__gradient_accumulation_steps": 4}
TOLERANCE = 1e-5


def spread(nodes: int = 1, strategy: str = "ddp") -> dict[str, Any]:
    """Return the params of a run on two processes."""
    how = {"nodes": nodes, "devices": 2, "strategy": strategy, "offload_optimizer": "none", "offload_param": "none"}
    return {"train__gradient_accumulation_steps": 2, "train__distributed": how}


class Runs:
    """Starts the command line in copies of one workspace, and ends the processes that a test leaves running."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0
        self.started: list[psutil.Process] = []
        validated(root / "ready", count=56, **COMMON, **ALONE)

    def folder(self, **changes: Any) -> Path:
        """Create a workspace with its own params."""
        self.made += 1
        folder = copy_of(self.root / "ready", self.root / f"run-{self.made}")
        (folder / "params.yaml").write_text(json.dumps(params(**COMMON, **changes)), encoding="utf-8")
        return folder

    def begin(self, folder: Path, command: str = "train", **environment: str) -> "subprocess.Popen[bytes]":
        """Start a command; its output goes to `COMMAND.log`."""
        named = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment}
        with (folder / f"{command}.log").open("w", encoding="utf-8") as log:
            running = subprocess.Popen(
                [sys.executable, "-m", "finetune", command],
                cwd=folder,
                env={**os.environ, **named},
                stdout=log,
                stderr=log,
            )
        self.started.append(psutil.Process(running.pid))
        return running

    def complete(self, folder: Path) -> Path:
        """Train in the folder to the end and return the folder."""
        running = self.begin(folder)
        assert running.wait(PATIENCE) == 0, output_of(folder)
        assert processes_in(folder) == []
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Start runs, and end the processes that a failed test left."""
    made = Runs(tmp_path_factory.mktemp("distributed"))
    yield made
    for process in processes_in(made.root):
        process.kill()


@pytest.fixture(scope="module")
def run_of_one(runs: Runs) -> Path:
    """Return the run of a single process."""
    return runs.complete(runs.folder(**ALONE))


@pytest.fixture(scope="module")
def run_of_two(runs: Runs) -> Path:
    """Return the uninterrupted run of two processes."""
    return runs.complete(runs.folder(**spread()))


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is a folder or is inside it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def running_modules(folder: Path) -> dict[str, psutil.Process]:
    """Return the processes of a folder by the module they run: the command line, torchrun and one of the workers."""
    found = {}
    for process in processes_in(folder):
        words = process.cmdline()
        if "-m" in words or "finetune.train.worker" in words:
            after_module = [word for word in words if word.startswith("finetune")]
            found[after_module[0]] = process
    return found


def output_of(folder: Path, command: str = "train") -> str:
    """Return what a command printed."""
    return (folder / f"{command}.log").read_text(encoding="utf-8")


def wait_until_gone(folder: Path) -> None:
    """Fail if a process of a folder outlives its run."""
    wait_for(lambda: not processes_in(folder), what="its processes had gone")


def curves_of(folder: Path) -> dict[str, list[list[float]]]:
    """Return both curves: step, loss, for training learning rate and gradient norm; a blank row shifts the epoch."""
    curves = {}
    for name in ("curves", "validation_curve"):
        lines = (folder / f"reports/{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        curves[name] = [[float(number) for at, number in enumerate(line.split("\t")[:5]) if at != 1] for line in lines]
    return curves


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the published adapter."""
    return dict(load_file(folder / "out/adapter" / WEIGHTS))


def hashes_of(folder: Path) -> tuple[str, Any]:
    """Return the hashes that two runs of the same kind have in common."""
    manifest = read_manifest(folder / "out/adapter")
    return str(manifest["adapter_sha256"]), manifest["checkpoints"]


def assert_close(one: Path, other: Path) -> None:
    """Assert that steps, losses and weights are equal up to the order of summation."""
    curves, expected = curves_of(one), curves_of(other)
    for name, rows in curves.items():
        assert len(rows) == len(expected[name]) > 10
        for row, its in zip(rows, expected[name], strict=True):
            assert row == pytest.approx(its, rel=TOLERANCE), name
    mine, its = tensors_of(one), tensors_of(other)
    assert mine.keys() == its.keys()
    assert all(torch.allclose(mine[name], its[name], rtol=0, atol=TOLERANCE) for name in its)
    reports = [read_json(folder / "reports/train.json") for folder in (one, other)]
    assert [report["steps"] for report in reports] == [60, 60]
    assert reports[0]["validation_loss"] == pytest.approx(reports[1]["validation_loss"], rel=TOLERANCE)


def test_two_processes_equal_one_with_twice_the_accumulation(run_of_one: Path, run_of_two: Path) -> None:
    """A second device gives the same adapter, only sooner; a partial step and blank rows do not change it."""
    rows = read_manifest(run_of_one / "data/validated")["tokens"]
    assert (rows["train"]["rows"], rows["validation"]["rows"]) == (33, 11)
    assert [batches[-1] for rank in (0, 1) if (batches := share(range(33), 2, rank, 2))] == [[32], [33]]
    assert_close(run_of_two, run_of_one)
    assert len(list(run_of_two.glob("work/checkpoints/*/finished"))) == 1
    assert not list(run_of_two.glob("work/worker-*.json"))


def test_killed_processes_resume_bit_identically(runs: Runs, run_of_two: Path) -> None:
    """After kills of a worker, torchrun and the parent and after a signal, no process and no progress is lost."""
    folder = runs.folder(**spread())
    for module in ("finetune.train.worker", "finetune.train.launch"):
        before, running = newest_step(folder), runs.begin(folder)
        wait_for(lambda: len(running_modules(folder)) == 3, running, "its processes were there")
        victim = running_modules(folder)[module]
        wait_for(lambda before=before: newest_step(folder) > before, running, "a checkpoint")  # type: ignore[misc]
        victim.kill()
        assert running.wait(PATIENCE) == 4, output_of(folder)
        assert "error: train: a process died without a message, often because memory ran out; the newest" in output_of(
            folder
        )
        assert "Traceback" not in output_of(folder)
        wait_until_gone(folder)
        assert not (folder / "out/adapter").exists()

    before, running = newest_step(folder), runs.begin(folder)
    wait_for(lambda: newest_step(folder) > before, running, "another checkpoint")
    running.kill()
    running.wait()
    wait_until_gone(folder)
    assert not (folder / "out/adapter").exists()

    before, running = newest_step(folder), runs.begin(folder)
    wait_for(lambda: newest_step(folder) > before, running, "a third checkpoint")
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE) == 5, output_of(folder)
    assert f"train was stopped by SIGTERM and saved at step {newest_step(folder)} of 60" in output_of(folder)
    assert processes_in(folder) == []

    runs.complete(folder)
    assert hashes_of(folder) == hashes_of(run_of_two)
    assert curves_of(folder)["validation_curve"] == curves_of(run_of_two)["validation_curve"]


def test_the_error_of_a_worker_process_is_reported(runs: Runs) -> None:
    """The error and exit code of the failed process are reported, not torchrun's own summary."""
    folder = runs.folder(**spread(), train__learning_rate=1.0, train__max_grad_norm=0.0, train__optim="sgd")
    spoil_base(folder / "base/model.safetensors")
    running = runs.begin(folder)
    assert running.wait(PATIENCE) == 2, output_of(folder)
    assert "error: params.yaml: train.learning_rate: the validation loss after step 0 is nan" in output_of(folder)
    assert "Traceback" not in output_of(folder)
    assert processes_in(folder) == []


def spoil_base(path: Path) -> None:
    """Make the base compute NaN, and write its new hash to the validated data."""
    from safetensors.torch import save_file

    tensors = load_file(path)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    from finetune.config.params import parse_config
    from finetune.model.base import identify_base

    folder = path.parents[1]
    here = Path.cwd()
    os.chdir(folder)
    try:
        base = identify_base(parse_config(params(**COMMON, **ALONE), "params.yaml").model)
    finally:
        os.chdir(here)
    manifest = folder / "data/validated/manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "base": base}), encoding="utf-8")


def test_two_nodes_equal_one_with_two_devices(runs: Runs, run_of_two: Path) -> None:
    """The head trains and publishes, the other node joins and ends with it; either may start first."""
    folder = runs.folder(**spread(nodes=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    other = runs.begin(folder, "join", NODE_RANK="1", **place)
    head = runs.begin(folder, "train", NODE_RANK="0", **place)
    assert head.wait(PATIENCE) == 0, output_of(folder)
    assert other.wait(PATIENCE) == 0, output_of(folder, "join")
    assert processes_in(folder) == []
    assert f"waiting for training to start on 127.0.0.1:{port}" in output_of(folder, "join")
    assert_close(folder, run_of_two)
