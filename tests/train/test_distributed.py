"""Several processes give the result of one, are started and stopped as one, and leave nobody behind."""

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

# 33 training examples in micro-batches of two: 17 an epoch, 4 a step. The last step of an epoch has one of them, on
# which the second process computes a blank row.
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
    """The params of two processes."""
    how = {"nodes": nodes, "devices": 2, "strategy": strategy, "offload_optimizer": "none", "offload_param": "none"}
    return {"train__gradient_accumulation_steps": 2, "train__distributed": how}


class Runs:
    """Starts the command line in copies of one workspace, and ends what a test leaves."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0
        self.started: list[psutil.Process] = []
        validated(root / "ready", count=56, **COMMON, **ALONE)

    def folder(self, **changes: Any) -> Path:
        """A workspace with params of its own."""
        self.made += 1
        folder = copy_of(self.root / "ready", self.root / f"run-{self.made}")
        (folder / "params.yaml").write_text(json.dumps(params(**COMMON, **changes)), encoding="utf-8")
        return folder

    def begin(self, folder: Path, command: str = "train", **environment: str) -> "subprocess.Popen[bytes]":
        """Start a command; what it says goes to `COMMAND.log`."""
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

    def whole(self, folder: Path) -> Path:
        """The same folder, when train has ended well."""
        running = self.begin(folder)
        assert running.wait(PATIENCE) == 0, said(folder)
        assert below(folder) == []
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Whatever a failed test has left running is ended."""
    made = Runs(tmp_path_factory.mktemp("distributed"))
    yield made
    for process in below(made.root):
        process.kill()


@pytest.fixture(scope="module")
def alone(runs: Runs) -> Path:
    """The run of a single process."""
    return runs.whole(runs.folder(**ALONE))


@pytest.fixture(scope="module")
def together(runs: Runs) -> Path:
    """The run of two processes that nothing disturbed."""
    return runs.whole(runs.folder(**spread()))


def below(folder: Path) -> list[psutil.Process]:
    """The processes that stand in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def running_modules(folder: Path) -> dict[str, psutil.Process]:
    """The processes of a folder by the module that they run: the command line, torchrun, and one of the workers."""
    found = {}
    for process in below(folder):
        words = process.cmdline()
        if "-m" in words or "finetune.train.worker" in words:
            after_module = [word for word in words if word.startswith("finetune")]
            found[after_module[0]] = process
    return found


def said(folder: Path, command: str = "train") -> str:
    """What a command printed."""
    return (folder / f"{command}.log").read_text(encoding="utf-8")


def wait_until_gone(folder: Path) -> None:
    """Fail where a process of a folder outlives its run."""
    wait_for(lambda: not below(folder), what="its processes had gone")


def logged(folder: Path) -> dict[str, list[list[float]]]:
    """Both curves: step, loss, and of the training learning rate and gradient norm; a blank row moves the epoch."""
    curves = {}
    for name in ("curves", "validation_curve"):
        lines = (folder / f"reports/{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        curves[name] = [[float(number) for at, number in enumerate(line.split("\t")[:5]) if at != 1] for line in lines]
    return curves


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The published adapter's tensors."""
    return dict(load_file(folder / "out/adapter" / WEIGHTS))


def bits(folder: Path) -> tuple[str, Any]:
    """The hashes that two runs of the same kind have in common."""
    manifest = read_manifest(folder / "out/adapter")
    return str(manifest["adapter_sha256"]), manifest["checkpoints"]


def assert_close(one: Path, other: Path) -> None:
    """The same steps, losses and weights but for the order of sums."""
    curves, expected = logged(one), logged(other)
    for name, rows in curves.items():
        assert len(rows) == len(expected[name]) > 10
        for row, its in zip(rows, expected[name], strict=True):
            assert row == pytest.approx(its, rel=TOLERANCE), name
    mine, its = weights(one), weights(other)
    assert mine.keys() == its.keys()
    assert all(torch.allclose(mine[name], its[name], rtol=0, atol=TOLERANCE) for name in its)
    reports = [read_json(folder / "reports/train.json") for folder in (one, other)]
    assert [report["steps"] for report in reports] == [60, 60]
    assert reports[0]["validation_loss"] == pytest.approx(reports[1]["validation_loss"], rel=TOLERANCE)


def test_two_processes_are_one_with_twice_the_accumulation(alone: Path, together: Path) -> None:
    """Who gets a second device gets the same adapter sooner; a partial step and blank rows change nothing."""
    rows = read_manifest(alone / "data/validated")["tokens"]
    assert (rows["train"]["rows"], rows["validation"]["rows"]) == (33, 11)
    assert [batches[-1] for rank in (0, 1) if (batches := share(range(33), 2, rank, 2))] == [[32], [33]]
    assert_close(together, alone)
    assert len(list(together.glob("work/checkpoints/*/finished"))) == 1
    assert not list(together.glob("work/worker-*.json"))


def test_two_processes_that_die_go_on_to_the_same_bits(runs: Runs, together: Path) -> None:
    """A worker, torchrun and the parent of all are killed, then a signal comes: nobody is left, and nothing is lost."""
    folder = runs.folder(**spread())
    for module in ("finetune.train.worker", "finetune.train.launch"):
        before, running = newest_step(folder), runs.begin(folder)
        wait_for(lambda: len(running_modules(folder)) == 3, running, "its processes were there")
        victim = running_modules(folder)[module]
        wait_for(lambda before=before: newest_step(folder) > before, running, "a checkpoint")  # type: ignore[misc]
        victim.kill()
        assert running.wait(PATIENCE) == 4, said(folder)
        assert "error: train: a process died without a message, often because memory ran out; the newest" in said(
            folder
        )
        assert "Traceback" not in said(folder)
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
    assert running.wait(PATIENCE) == 5, said(folder)
    assert f"train was stopped by SIGTERM and saved at step {newest_step(folder)} of 60" in said(folder)
    assert below(folder) == []

    runs.whole(folder)
    assert bits(folder) == bits(together)
    assert logged(folder)["validation_curve"] == logged(together)["validation_curve"]


def test_an_error_of_a_process_comes_back_as_its_own(runs: Runs) -> None:
    """What torchrun says of a failed child helps nobody: the text and the exit code are the process's."""
    folder = runs.folder(**spread(), train__learning_rate=1.0, train__max_grad_norm=0.0, train__optim="sgd")
    spoil_base(folder / "base/model.safetensors")
    running = runs.begin(folder)
    assert running.wait(PATIENCE) == 2, said(folder)
    assert "error: params.yaml: train.learning_rate: the validation loss after step 0 is nan" in said(folder)
    assert "Traceback" not in said(folder)
    assert below(folder) == []


def spoil_base(path: Path) -> None:
    """A base that computes NaN, whose hash the validated data are told."""
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


def test_two_nodes_are_one_with_two_devices(runs: Runs, together: Path) -> None:
    """The head trains and publishes, the other joins and ends with it; who starts first does not matter."""
    folder = runs.folder(**spread(nodes=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    other = runs.begin(folder, "join", NODE_RANK="1", **place)
    head = runs.begin(folder, "train", NODE_RANK="0", **place)
    assert head.wait(PATIENCE) == 0, said(folder)
    assert other.wait(PATIENCE) == 0, said(folder, "join")
    assert below(folder) == []
    assert f"waits until 127.0.0.1:{port} trains" in said(folder, "join")
    assert_close(folder, together)
