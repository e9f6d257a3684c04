"""The train stage: `data/validated` and the base model -> `out/adapter`, `reports/train.json` and the curves."""

import os
import shutil
import subprocess

from finetune.config.train import TrainParams
from finetune.errors import InterruptedRunError
from finetune.files.run_lock import pipeline_lock
from finetune.hardware.devices import require_device, set_device_environment
from finetune.paths import Paths
from finetune.processes.signals import stop_on_signals
from finetune.train.launch import launch

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # of torchrun, or left in a job's environment


def run(params: TrainParams, paths: Paths) -> None:
    """Train on the data of validate, resuming from the newest valid checkpoint, and publish the best adapter."""
    spread = params.train.distributed
    keep_awake()
    set_device_environment(params.environment, spread.devices, deterministic=params.train.deterministic)
    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        require_device(params.environment)
        from finetune.train.fingerprint import find_run
        from finetune.train.run import train

        if spread.strategy == "none":
            for name in LAUNCHED:
                os.environ.pop(name, None)
            train(params, paths, stop)
            return
        store, _ = find_run(params, paths)
        with pipeline_lock(paths.work / "train.lock", "train"):  # workers of a killed run may still be saving
            store.newest()  # sets bad ones aside before several processes look
    if stop.by:
        raise InterruptedRunError(
            "", f"train was stopped by {stop.by}", f"{store.what_is_kept()}; run the same command again to resume"
        )
    launch(params, paths)


def keep_awake() -> None:
    """On a Mac, keep the system from sleeping while this process runs: training may take a night."""
    tool = shutil.which("caffeinate")
    if tool:
        subprocess.Popen([tool, "-i", "-w", str(os.getpid())])
