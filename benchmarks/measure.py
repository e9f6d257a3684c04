"""Run a command and measure it externally: wall-clock seconds, and the total peak memory of all its processes."""

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from finetune.hardware.devices import describe_machine

SECONDS_BETWEEN_LOOKS = 0.2
TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
PACKAGES = ("datasets", "datasketch", "duckdb", "numpy", "orjson", "polars", "pyarrow", "rensa")


def results_file(name: str) -> Path:
    """Return the path of a benchmark's result of today."""
    return Path(__file__).parent / f"results/{name}-{date.today()}.json"


def what_ran(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Return date, machine and versions, which every result contains."""
    installed = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"date": str(date.today()), "machine": describe_machine("cpu").model_dump(), "versions": installed}


@dataclass(frozen=True)
class Measured:
    """The measured cost of one run."""

    wall_seconds: float
    peak_memory_bytes: int  # proportional set size, summed over the process and its children


def run_measured(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Measured:
    """Run a command to its end. Raise RuntimeError with its output if it fails."""
    log = folder / "log.txt"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        wall = time.perf_counter() - start
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    return Measured(wall, peak)


def tree_memory(process_id: int) -> int:
    """Return the current bytes of a process and its children; pages that they share are counted once."""
    total = 0
    try:
        processes = [psutil.Process(process_id), *psutil.Process(process_id).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Set dotted keys of the params, in place."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = value
    return content
