"""Runs a command and measures it from outside: wall seconds, and the peak memory of all its processes together."""

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
    """Where a benchmark's result of today goes."""
    return Path(__file__).parent / f"results/{name}-{date.today()}.json"


def what_ran(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Date, machine and versions, as they stand in every result."""
    found = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"date": str(date.today()), "machine": describe_machine("cpu").model_dump(), "versions": found}


@dataclass(frozen=True)
class Measured:
    """What one run cost."""

    wall_seconds: float
    peak_memory_bytes: int  # proportional set size, summed over the process and its children


def run_measured(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Measured:
    """Run to the end; RuntimeError with what the command printed where it fails."""
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
    """Bytes that a process and its children hold now; pages that they share are counted once."""
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
    """The params with dotted keys set, in place."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = value
    return content
