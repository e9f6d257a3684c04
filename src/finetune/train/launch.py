"""Run several processes with torchrun, forward signals to them, and re-raise their errors as our own."""

import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from finetune.config.train import TrainParams
from finetune.console import say
from finetune.errors import ConfigError, DataError, FinetuneError, InterruptedRunError, MachineError, Problem
from finetune.files.strict_json import read_json
from finetune.hardware.host import usable_cores
from finetune.hardware.preflight import find_device_problem, find_package_problems
from finetune.paths import Paths
from finetune.processes.signals import run_and_forward

WORKER = "finetune.train.worker"
ERRORS: dict[int, type[FinetuneError]] = {
    error.exit_code: error for error in (FinetuneError, ConfigError, DataError, MachineError, InterruptedRunError)
}
PORT = "29500"  # torchrun's own default


def launch(params: TrainParams, paths: Paths) -> None:
    """Run this node's processes to their end; re-raise the first error among them.

    On several nodes, NODE_RANK, MASTER_ADDR and MASTER_PORT identify this node and the address of the first one.
    """
    require_devices(params)
    if os.environ.get("NODE_RANK", "0") == "0":
        for path in left_errors(paths):
            path.unlink(missing_ok=True)
    code, received = run_and_forward(
        command(params),
        pass_on,
        env={"OMP_NUM_THREADS": str(threads(params)), **os.environ},
        start_new_session=True,  # Ctrl-C in the terminal reaches the processes only through us
    )
    if code:
        raise_what_failed(paths, received)


def join(params: TrainParams, paths: Paths) -> None:
    """Take part in training on a node other than the first: wait until the first one trains, and end with it."""
    address, port = os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT", PORT))
    if not address or os.environ.get("NODE_RANK", "0") == "0":
        raise ConfigError("join", "set MASTER_ADDR, MASTER_PORT and a NODE_RANK above 0, as jobs/ does")
    say(f"waiting for training to start on {address}:{port}")
    began, verdict = time.time(), paths.reports / "decision.json"
    while not listens(address, port):
        if verdict.exists() and verdict.stat().st_mtime > began:
            say("the first node finished without training; there is nothing to join")
            return
        time.sleep(2)
    launch(params, paths)


def listens(address: str, port: int) -> bool:
    """Return whether a server is listening at this address."""
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def require_devices(params: TrainParams) -> None:
    """Raise MachineError unless this node has the devices and the package that the processes need."""
    packages = find_package_problems(params.environment, params.model, params.train)
    problems = [problem for problem in packages if problem.code == "strategy-missing"]
    device = find_device_problem(params.environment, params.train)
    if params.environment == "cpu" and params.train.distributed.strategy == "fsdp":
        place, message = "params.yaml: train.distributed.strategy", "fsdp needs CUDA: accelerate would silently use DDP"
        problems.append(Problem("strategy-needs-cuda", place, message, "use ddp"))
    if device or problems:
        raise MachineError.of([*problems, *([device] if device else [])])


def per_node(params: TrainParams) -> int:
    """Return the number of processes per node, one per device."""
    return params.train.distributed.devices // params.train.distributed.nodes


def threads(params: TrainParams) -> int:
    """Return the threads per process, so that together they use as many as there are cores."""
    return max(usable_cores() // per_node(params), 1)


def command(params: TrainParams) -> list[str]:
    """Return torchrun's command line for this node."""
    nodes, environment = params.train.distributed.nodes, os.environ
    place = ["--standalone", "--nnodes", "1"]
    if nodes > 1:
        place = ["--nnodes", str(nodes), "--node-rank", environment.get("NODE_RANK", "0")]
        place += ["--master-addr", environment.get("MASTER_ADDR", "127.0.0.1")]
        place += ["--master-port", environment.get("MASTER_PORT", PORT)]
    run = [sys.executable, "-m", __name__]
    return [*run, *place, "--nproc-per-node", str(per_node(params)), "--max-restarts", "0", "-m", WORKER]


def pass_on(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Forward a signal to the workers, which save at the end of their step, or to torchrun if there are none yet."""
    with suppress(psutil.Error):  # it may have just ended
        processes = workers(process.pid)
        for worker in processes:
            worker.send_signal(number)
        if not processes:
            process.terminate()


def workers(pid: int) -> list[Any]:
    """Return the training processes below torchrun; a data loader's workers are below these."""
    return [child for child in psutil.Process(pid).children() if WORKER in child.cmdline()]


def raise_what_failed(paths: Paths, received: str | None) -> None:
    """Raise the first process's recorded error, with its exit code; `received` is the signal that ended them."""
    errors = [read_json(path) for path in left_errors(paths)]
    if not errors and received:
        raise InterruptedRunError(
            "",
            f"train was stopped by {received} before it could save",
            "the newest checkpoint is kept; run the same command again to resume",
        )
    if not errors:
        raise MachineError(
            "train",
            "a process died without a message, often because memory ran out",
            "the newest checkpoint is kept; run the same command again to resume from it",
        )
    worst = next((error for error in errors if error["exit_code"] != InterruptedRunError.exit_code), errors[0])
    kind = ERRORS.get(worst["exit_code"], FinetuneError)
    raise kind.of(Problem(**problem) for problem in worst["problems"])


def left_errors(paths: Paths) -> list[Path]:
    """Return the error files of the processes, in their order."""
    return sorted(paths.work.glob("worker-*.json"))


def torchrun() -> int:
    """Run torchrun without its traceback when a worker fails (which records its own error) or it is terminated."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable(logging.ERROR)
    try:
        main(sys.argv[1:])
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(torchrun())
