"""Measure a training by any tool from inside its process: the same clocks and counts for every side.

    python benchmarks/watched_training.py REPORT MODULE ARGUMENT...

Runs `python -m MODULE ARGUMENT...` (or a script, if MODULE ends in .py) with a clock around methods of its trainer; all
sides use transformers' Trainer. It only needs torch and transformers, so it runs in any side's environment.
"""

import json
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TRAIN = "train"
APART = {"evaluate": "evaluations", "_save_checkpoint": "saves"}  # the parts of train() other than training steps
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "llamafactory", "soup-cli")
LAST_LOGS = 3  # the last logged losses, each over logging_steps


class Watch:
    """Wall-clock and processor seconds by name, and the inputs of the training steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.counts = {"micro_batches": 0, "positions": 0, "supervised_tokens": 0}
        self.trainer: Any = None
        self.open: list[str] = []  # the spans being timed, from the outermost to the innermost

    def time(self, owner: Any, attribute: str, name: str) -> None:
        """Time every call of a method: of train() the outermost, of others those directly within train()."""
        original: Callable[..., Any] = getattr(owner, attribute)
        inside = [] if name == TRAIN else [TRAIN]

        def timed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if self.open != inside:
                return original(trainer, *args, **kwargs)
            self.open.append(name)
            started, cpu = time.perf_counter(), time.process_time()
            try:
                return original(trainer, *args, **kwargs)
            finally:
                self.open.pop()
                self.seconds[name][0] += time.perf_counter() - started
                self.seconds[name][1] += time.process_time() - cpu

        setattr(owner, attribute, timed)

    def wait_for(self, library: Any) -> None:
        """Put the clocks around the class of the first trainer that is created: a side may override methods."""
        original: Callable[..., None] = library.__init__

        def made(trainer: Any, *args: Any, **kwargs: Any) -> None:
            original(trainer, *args, **kwargs)
            if self.trainer is not None:
                raise RuntimeError("a second trainer: its steps and seconds would be mixed with the first one's")
            self.trainer = trainer
            self.count(type(trainer))
            for attribute, name in {"train": TRAIN, **APART}.items():
                self.time(type(trainer), attribute, name)

        library.__init__ = made

    def count(self, owner: Any) -> None:
        """Count every micro-batch; the first token of a row has no context, so it does not contribute to the loss."""
        original: Callable[..., Any] = owner.training_step

        def counted(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.counts["micro_batches"] += 1
            self.counts["positions"] += inputs["input_ids"].numel()
            self.counts["supervised_tokens"] += int((inputs["labels"][:, 1:] != -100).sum())
            return original(trainer, model, inputs, *args, **kwargs)

        owner.training_step = counted

    def to_json(self) -> dict[str, Any]:
        """Return the compared values; `step_seconds` is the time of train() without evaluations and saves."""
        losses = [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]
        found: dict[str, Any] = {"steps": self.trainer.state.global_step, **self.counts}
        for at, kind in enumerate(("", "cpu_")):
            apart = sum(self.seconds[name][at] for name in APART.values())
            found |= {f"train_{kind}seconds": self.seconds[TRAIN][at]}
            found |= {f"step_{kind}seconds": self.seconds[TRAIN][at] - apart}
        found["train_loss"] = sum(losses[-LAST_LOGS:]) / len(losses[-LAST_LOGS:])
        found["learning_rates"] = [
            entry["learning_rate"] for entry in self.trainer.state.log_history if "loss" in entry
        ]
        return found | {"versions": {name: found for name in PACKAGES if (found := installed(name))}}


def installed(name: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def peak_memory_bytes() -> int:
    """Return the peak memory of this process (VmHWM: getrusage's value would start with the parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Run the side, then write the report."""
    report, module, *arguments = sys.argv[1:]
    report = str(Path(report).resolve())
    from transformers import Trainer

    watch = Watch()
    watch.wait_for(Trainer)
    sys.argv = [module, *arguments]
    run = runpy.run_path if module.endswith(".py") else runpy.run_module
    try:
        run(module, run_name="__main__")
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    found = {**watch.to_json(), "peak_memory_bytes": peak_memory_bytes()}
    Path(report).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
