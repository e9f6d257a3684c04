"""Measure the time of a training by part, in a separate process: the train stage, or the plain script.

    python benchmarks/measured_stage.py SIDE SETTING CHANGES REPORT   # in a folder with params.yaml and data/validated

The sides are unmodified: methods of the libraries and of this package are timed by wrapping them. A span's own time
excludes the spans inside it, so that the own times of all spans add up to the total.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VALIDATION = ("first validation loss", "validation")
BARE = ("forward and backward", "optimizer", "waiting for data", "library's loop")  # of the training itself
LAST_LOGS = 3  # the last logged losses, each over logging_steps


class Clock:
    """Wall-clock and processor seconds of nested spans by name, in total and excluding inner spans."""

    def __init__(self) -> None:
        self.whole: dict[str, float] = defaultdict(float)
        self.own: dict[str, float] = defaultdict(float)
        self.whole_cpu: dict[str, float] = defaultdict(float)
        self.own_cpu: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.stack: list[list[Any]] = []  # name, seconds and processor seconds of the spans inside

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the enclosed code; everything inside a validation is attributed to it."""
        outer = self.stack[-1][0] if self.stack else ""
        name = outer if outer in VALIDATION else name
        self.stack.append([name, 0.0, 0.0])
        started, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._leave(name, time.perf_counter() - started, time.process_time() - cpu)

    def _leave(self, name: str, seconds: float, cpu: float) -> None:
        _, inside, inside_cpu = self.stack.pop()
        self.own[name] += seconds - inside
        self.own_cpu[name] += cpu - inside_cpu
        self.calls[name] += 1
        if all(other[0] != name for other in self.stack):
            self.whole[name] += seconds
            self.whole_cpu[name] += cpu
        if self.stack:
            self.stack[-1][1] += seconds
            self.stack[-1][2] += cpu

    def wrap(self, owner: Any, attribute: str, name: str | Callable[..., str], before: Any = None) -> None:
        """Time every call of a method or function; `before` receives its arguments first."""
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                before(*args, **kwargs)
            with self.span(name if isinstance(name, str) else name(*args)):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)

    def wrap_context(self, owner: Any, attribute: str, name: str) -> None:
        """Time everything inside a context manager."""
        original = getattr(owner, attribute)

        @contextmanager
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with self.span(name), original(*args, **kwargs) as given:
                yield given

        setattr(owner, attribute, timed)

    def to_json(self) -> dict[str, Any]:
        """Return seconds and calls by name."""
        kinds = ("own", "whole", "own_cpu", "whole_cpu", "calls")
        return {name: {kind: getattr(self, kind)[name] for kind in kinds} for name in self.own}


class Tally:
    """The inputs of the training steps."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.tokens = self.supervised = self.positions = self.micro_batches = 0

    def see_trainer(self, trainer: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Keep the trainer whose train() begins."""
        self.trainer = trainer

    def see_batch(self, trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Count a micro-batch; the first token of a row has no context, so it does not contribute to the loss."""
        mask = inputs.get("attention_mask")
        self.positions += inputs["input_ids"].numel()
        self.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        self.supervised += int((inputs["labels"][:, 1:] != -100).sum())
        self.micro_batches += 1


def run_measured_stage(side: str, setting: str, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train in a fresh process in a prepared folder. Raise RuntimeError with its output if it fails."""
    for name in ("out", "work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), side, setting, json.dumps(changes), "report.json"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-3000:])
    return {"process_seconds": wall, **json.loads((folder / "report.json").read_text(encoding="utf-8"))}


def evaluation_name(trainer: Any, *args: Any) -> str:  # noqa: ARG001
    """Distinguish the evaluation before the first step from the scheduled ones."""
    return VALIDATION[trainer.state.global_step > 0]


def watch_library(clock: Clock, tally: Tally) -> None:
    """Time what all sides have: micro-batches, optimizer, waiting for data."""
    import torch
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler
    from torch.utils.data.dataloader import _BaseDataLoaderIter
    from trl import SFTTrainer

    clock.wrap(SFTTrainer, "training_step", "forward and backward", tally.see_batch)
    for owner, attribute in (
        (AcceleratedOptimizer, "step"),
        (AcceleratedScheduler, "step"),
        (Accelerator, "clip_grad_norm_"),
        (torch.nn.Module, "zero_grad"),
    ):
        clock.wrap(owner, attribute, "optimizer")
    clock.wrap(_BaseDataLoaderIter, "__next__", "waiting for data")


def watch_trainer(clock: Clock, tally: Tally, trainer: Any) -> None:
    """Time the trainer's class: train() in total, evaluations, checkpoints."""
    clock.wrap(trainer, "train", "library's loop", tally.see_trainer)
    clock.wrap(trainer, "evaluate", evaluation_name)
    clock.wrap(trainer, "_save_checkpoint", "checkpoints")


def watch_stage(clock: Clock) -> None:
    """Time this package's work around the trainer, by part."""
    from finetune.train import callbacks, publish, run, trainer
    from finetune.train.curves import CurvesCallback

    for owner, attributes, name in (
        (run, ("find_run",), "hashes of base, data and code"),
        (run, ("load_tokenizer",), "tokenizer"),
        (run, ("build_model",), "loading the model"),
        (run, ("build_trainer", "check_rows"), "building the trainer"),
        (callbacks, ("require_memory",), "probe for memory"),
        (trainer, ("hash_state",), "hashes of checkpoints"),
        (trainer.Trainer, ("training_step", "_get_grad_norm", "_require_finite"), "micro-batch checks"),
        (trainer.Trainer, ("log",), "logging"),
        (trainer.Trainer, ("_load_best_model",), "taking the best adapter back"),
        (
            callbacks.Steps,
            ("on_train_begin", "on_epoch_begin", "on_step_end", "on_save"),
            "micro-batch checks",
        ),
        (CurvesCallback, ("on_train_begin", "on_step_end", "on_log", "close"), "curves and status"),
        (publish, ("summarize", "write_json", "show"), "publishing"),
    ):
        for attribute in attributes:
            clock.wrap(owner, attribute, name)
    clock.wrap_context(publish, "publish_directory", "publishing")


def train_ours(changes: dict[str, Any], clock: Clock, tally: Tally) -> None:
    """Run the train stage as `finetune train` does."""
    from train_workloads import changed

    from finetune.config.loading import read_yaml
    from finetune.config.params import params_of, parse_config
    from finetune.console import quiet_libraries
    from finetune.hardware.devices import set_device_environment
    from finetune.hardware.host import calm_threads
    from finetune.paths import Paths
    from finetune.train import stage

    calm_threads()
    quiet_libraries()
    config = parse_config(changed(read_yaml(Path("params.yaml")), changes), "params.yaml")
    set_device_environment(config.environment, 1, deterministic=config.train.deterministic)
    from finetune.train.trainer import Trainer  # the imports, before the stage's time begins

    watch_library(clock, tally)
    watch_trainer(clock, tally, Trainer)
    watch_stage(clock)
    with clock.span("rest of the stage"):
        stage.run(params_of("train", config), Paths())


def train_plain(setting: str, clock: Clock, tally: Tally) -> None:
    """Run the plain script."""
    import plain_train
    from trl import SFTTrainer

    watch_library(clock, tally)
    watch_trainer(clock, tally, SFTTrainer)
    params = json.loads(Path("params.yaml").read_text(encoding="utf-8"))
    trainer = plain_train.build_trainer(params, Path("data/validated"), Path("out"), setting)
    trainer.train()
    trainer.save_model("out/adapter")


def results(clock: Clock, tally: Tally) -> dict[str, Any]:
    """Return the compared values; seconds of train(), and of its steps without evaluations, checkpoints and probe."""
    from finetune.hardware.devices import peak_memory_bytes

    trainer = tally.trainer
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    apart = (*VALIDATION, "checkpoints", "probe for memory")
    seconds: dict[str, float] = {}
    for kind, spent in (("", clock.whole), ("cpu_", clock.whole_cpu)):
        whole = spent["library's loop"]
        seconds |= {f"train_{kind}seconds": whole, f"step_{kind}seconds": whole - sum(spent[name] for name in apart)}
    return {
        **seconds,
        "steps": trainer.state.global_step,
        "tokens": tally.tokens,
        "supervised_tokens": tally.supervised,
        "positions": tally.positions,
        "train_loss": sum(losses[-LAST_LOGS:]) / len(losses[-LAST_LOGS:]),
        "peak_memory_bytes": peak_memory_bytes("cuda" if trainer.args.device.type == "cuda" else "cpu"),
        "spans": clock.to_json(),
    }


def main() -> None:
    """Train one side in this folder."""
    side, setting, changes, report = sys.argv[1:]
    clock, tally = Clock(), Tally()
    if side == "ours":
        train_ours(json.loads(changes), clock, tally)
    else:
        train_plain(setting, clock, tally)
    Path(report).write_text(json.dumps(results(clock, tally)), encoding="utf-8")


if __name__ == "__main__":
    main()
