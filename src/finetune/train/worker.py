"""One of several processes of a run, started by torchrun (launch.py): `python -m finetune.train.worker`."""

import os
import sys
import traceback
from pathlib import Path

from finetune.config.loading import load_params
from finetune.config.train import TrainParams
from finetune.console import quiet_libraries
from finetune.errors import FinetuneError, MachineError
from finetune.files.atomic import write_json
from finetune.hardware.devices import set_device_environment
from finetune.hardware.failures import find_machine_problem
from finetune.hardware.host import calm_threads
from finetune.paths import Paths
from finetune.processes.signals import die_with_parent, stop_on_signals

# The errors of gloo and NCCL in the remaining processes when one of them has died.
PEER_LOST = ("Connection reset by peer", "Connection closed by peer", "remote process exited")


def main() -> int:
    """Run one training process; write an error to a file for the parent process, and return its exit code."""
    die_with_parent()  # a killed torchrun must not leave processes that train beside the next run
    calm_threads()
    quiet_libraries()
    params, paths = load_params(Path("params.yaml"), TrainParams), Paths()
    set_device_environment(
        params.environment, params.train.distributed.devices, deterministic=params.train.deterministic
    )
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - only the first process prints
    try:
        with stop_on_signals() as stop:  # before torch is imported, which takes seconds
            from finetune.train.run import train

            train(params, paths, stop)
    except FinetuneError as error:
        return leave(paths, error)
    except (OSError, MemoryError, RuntimeError) as error:
        if any(words in str(error) for words in PEER_LOST):
            return MachineError.exit_code  # the failed process has recorded its error, if it could
        trouble = find_machine_problem(error)
        if trouble is None:
            traceback.print_exc()
            return leave(paths, FinetuneError("train", f"process {os.environ['RANK']}: {error}"))
        return leave(paths, MachineError("train", trouble, "earlier complete files are kept"))
    return 0


def error_file(work: Path, rank: str) -> Path:
    """Return the path where a process leaves its error for the parent."""
    return work / f"worker-{int(rank):04}.json"


def leave(paths: Paths, error: FinetuneError) -> int:
    """Write the error down; return its exit code."""
    problems = [problem.to_json() for problem in error.problems]
    write_json(error_file(paths.work, os.environ["RANK"]), {"exit_code": error.exit_code, "problems": problems})
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
