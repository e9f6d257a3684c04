"""Measure the run time of each command in the folder of a finished run, including a `dvc repro` with nothing to do.

    PYTHONPATH=src python benchmarks/bench_start.py [--rounds 5]

Each round runs every command once in a separate process, in random order. For comparison, it also runs Python alone and
the imports of a training: the minimum of every command, and of one that trains.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from measure import TRAINING, results_file, what_ran

from finetune.files.atomic import write_json

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable]
COMMANDS = {
    "Python alone": [*PYTHON, "-c", "pass"],
    "import of torch, transformers, peft and trl": [
        *PYTHON,
        "-c",
        "import torch, transformers, peft, trl.trainer.sft_trainer",
    ],
    "`make`": ["make"],
    "`./finetune recipes`": ["./finetune", "recipes"],
    "`./finetune doctor --quick`": ["./finetune", "doctor", "--quick"],
    "`./finetune status`": ["./finetune", "status"],
    "`./finetune gate`": ["./finetune", "gate"],
    "`./finetune exps`": ["./finetune", "exps"],
    "`./finetune doctor`": ["./finetune", "doctor"],
    "`./finetune plan`": ["./finetune", "plan"],
    "`./finetune check`": ["./finetune", "check"],
    "`dvc status`": ["dvc", "status"],
    "`dvc repro`, nothing to do": ["dvc", "repro"],
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS], default=[*COMMANDS])
    parser.add_argument("--out", type=Path, default=results_file("start"))
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in options.only}
    draw = random.Random(0)  # noqa: S311
    for number in range(-1, options.rounds):  # the first round, which fills the disk's cache, does not count
        for name in draw.sample(options.only, len(options.only)):
            taken = run(name)
            if number >= 0:
                seconds[name].append(taken)
    result: dict[str, Any] = {"rounds": options.rounds, "seconds": seconds}
    write_json(options.out, {**result, **what_ran(("dvc", *TRAINING))})
    for name, taken in seconds.items():
        print(f"{median(taken):6.2f} s ({min(taken):.2f} to {max(taken):.2f})  {name}")


def run(name: str) -> float:
    """Return the seconds of one command. Raise RuntimeError if it fails, or if `dvc repro` had something to do."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "src"}
    started = time.perf_counter()
    done = subprocess.run(COMMANDS[name], cwd=ROOT, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode or (name.startswith("`dvc repro`") and "Running stage" in done.stdout):
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return taken


if __name__ == "__main__":
    main()
