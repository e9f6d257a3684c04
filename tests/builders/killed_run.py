"""Trainings that are killed at an exact place: the train command in its own process, forked with torch imported.

Each start gets a number n and leaves in its folder `order-n.jsonl` (one line per micro-batch: its step, its examples,
and a hash of the model's input tokens), `history.json` (the complete log at full precision) if it ran to its end, and
`run-n.log`. A place is a word, with a step and a count if needed:

    step 7            after the optimizer's step, before anything is logged, evaluated or saved
    micro 7 2         after the 2nd micro-batch of the step after step 7
    evaluation 6      in the second batch of the evaluation after step 6
    write 6           in the checkpoint of step 6: the optimizer is written, nothing is renamed
    rename 6          right after the checkpoint of step 6 was renamed to its final name
    saved 6           after the checkpoint of step 6, the removal of older ones and the decision on early stopping
    epoch 10          at the end of the epoch that ends with step 10
    publish           after the last save, before the adapter is written
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.commands.rehearse.processes import PRELOADED
from tests.builders.small_run import ROOT

Act = Callable[[], object]


class Starts:
    """Starts the train command in a folder repeatedly; returns exit codes, negative if a signal ended it."""

    def __init__(self) -> None:
        sources = [str(ROOT / "src"), str(ROOT)]
        os.environ["PYTHONPATH"] = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # the test kills processes, which then leave semaphores
        self.context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self.context.set_forkserver_preload(list(PRELOADED))
        self.counts: dict[Path, int] = {}

    def __call__(self, folder: Path, die: str = "", *, send: str = "SIGKILL", trouble: str = "") -> int:
        """Train in a folder; at the place `die` the process sends itself signals. `trouble` is one of TROUBLES."""
        number = self.counts.get(folder, 0) + 1
        self.counts[folder] = number
        process = self.context.Process(target=_train, args=(str(folder), number, die, send, trouble))
        process.start()
        process.join(600)
        if process.is_alive():
            process.kill()
            process.join()
        return int(process.exitcode)

    def output(self, folder: Path) -> str:
        """Return the output of the newest start in a folder."""
        return (folder / f"run-{self.counts[folder]}.log").read_text(encoding="utf-8")


def _train(folder: str, number: int, die: str, send: str, trouble: str) -> None:
    os.chdir(folder)
    if sys.platform == "linux":  # as in a stage; otherwise data loaders would inherit this process's start method
        multiprocessing.set_start_method("fork", force=True)
    log = os.open(f"run-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from finetune.cli.main import main

    torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy core
    keep_order(Path(f"order-{number}.jsonl"))
    keep_history(Path("history.json"))
    if die:
        word, *numbers = die.split()
        step, count = [*(int(number) for number in numbers), 0, 0][:2]
        PLACES[word](step, count, lambda: [os.kill(os.getpid(), signal.Signals[name]) for name in send.split()])
    if trouble:
        word, *numbers = trouble.split()
        TROUBLES[word](*(int(number) for number in numbers))
    code = main(["train"])
    sys.stdout.flush()
    raise SystemExit(code)


# ------------------------------------------------------------------------------------------------- recorded results


def keep_order(path: Path) -> None:
    """Record each micro-batch after it is computed."""
    from finetune.train.trainer import Trainer

    file, whole = path.open("w", encoding="utf-8"), Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        before = len(self.rows)
        tokens = hashlib.sha256(inputs["input_ids"].cpu().numpy().tobytes()).hexdigest()
        loss = whole(self, model, inputs, *args, **kwargs)
        ids = [self.train_dataset[row]["ids"] for row in self.rows[before:]]
        file.write(json.dumps({"step": self.state.global_step, "ids": ids, "tokens": tokens}) + "\n")
        file.flush()
        return loss

    Trainer.training_step = training_step  # type: ignore[method-assign]


def keep_history(path: Path) -> None:
    """Record what the Trainer logged, after the training."""
    from finetune.train import publish

    whole = publish.summarize

    def summarize(trainer: Any) -> dict[str, Any]:
        path.write_text(json.dumps(trainer.state.log_history), encoding="utf-8")
        return whole(trainer)

    publish.summarize = summarize


# ----------------------------------------------------------------------------------------------------------- places


def after(owner: Any, name: str, act: Act, when: Callable[..., bool]) -> None:
    """Let a method act after its work if `when(*its positional arguments)` is true."""
    whole = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        given = whole(*args, **kwargs)
        if when(*args):
            act()
        return given

    setattr(owner, name, method)


def at_step(step: int, count: int, act: Act) -> None:
    """Act after the optimizer's step; the curves' callback runs before the one that checks for signals."""
    from finetune.train.curves import CurvesCallback

    after(CurvesCallback, "on_step_end", act, lambda curves, args, state, control: state.global_step == step)


def at_micro_batch(step: int, count: int, act: Act) -> None:
    """Act between two micro-batches of a step."""
    from finetune.train.trainer import Trainer

    done: list[int] = []

    def when(trainer: Any, *others: Any) -> bool:
        done.append(trainer.state.global_step)
        return done[-1] == step and done.count(step) == count

    after(Trainer, "training_step", act, when)


def in_evaluation(step: int, count: int, act: Act) -> None:
    """Act between two batches of an evaluation; signals are checked before the next batch."""
    from finetune.train.trainer import Trainer

    done: list[int] = []

    def when(trainer: Any, *others: Any) -> bool:
        if not trainer.model.training:
            done.append(trainer.state.global_step)
        return not trainer.model.training and done[-1] == step and done.count(step) == 2

    after(Trainer, "compute_loss", act, when)


def in_write(step: int, count: int, act: Act) -> None:
    """Act when the optimizer is written to the unfinished checkpoint."""
    from finetune.train.trainer import Trainer

    after(Trainer, "_save_optimizer_and_scheduler", act, lambda trainer, *others: trainer.state.global_step == step)


def after_rename(step: int, count: int, act: Act) -> None:
    """Act when the checkpoint has its final name, before older ones are removed."""
    from finetune.train import checkpoints

    after(checkpoints, "sync_directory", act, lambda folder: (folder / f"checkpoint-{step}").exists())


def after_save(step: int, count: int, act: Act) -> None:
    """Act when the checkpoint is saved, before the Trainer continues or stops."""
    from finetune.train.trainer import Trainer

    after(Trainer, "_save_checkpoint", act, lambda trainer, *others: trainer.state.global_step == step)


def at_epoch_end(step: int, count: int, act: Act) -> None:
    """Act between two epochs."""
    from finetune.train.curves import CurvesCallback

    after(CurvesCallback, "on_epoch_end", act, lambda curves, args, state, control: state.global_step == step)


def before_publishing(step: int, count: int, act: Act) -> None:
    """Act when the best weights are loaded into the model, before anything is written."""
    from finetune.train import publish

    publish.save_adapter = lambda *args: act()


PLACES: dict[str, Callable[[int, int, Act], None]] = {
    "step": at_step,
    "micro": at_micro_batch,
    "evaluation": in_evaluation,
    "write": in_write,
    "rename": after_rename,
    "saved": after_save,
    "epoch": at_epoch_end,
    "publish": before_publishing,
}


# ---------------------------------------------------------------------------------------------------------- troubles


def no_memory(rows: int, own_error: int = 1) -> None:
    """Raise an out-of-memory error of a GPU or a CPU for more than this number of rows at once."""
    import torch

    from finetune.train.trainer import Trainer

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > rows:
            if own_error:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    whole = Trainer.__init__

    def __init__(self: Any, **kwargs: Any) -> None:
        whole(self, **kwargs)
        self.model.register_forward_pre_hook(refuse, with_kwargs=True)

    Trainer.__init__ = __init__  # type: ignore[method-assign]


def full_disk(step: int) -> None:
    """Report a full disk when the checkpoint of this step is started."""
    import shutil
    from collections import namedtuple

    from finetune.train.trainer import Trainer

    whole, save, usage = shutil.disk_usage, Trainer._save_checkpoint, namedtuple("usage", "total used free")

    def _save_checkpoint(self: Any, *args: Any) -> None:
        full = self.state.global_step == step
        shutil.disk_usage = (lambda _: usage(10**9, 10**9, 0)) if full else whole  # type: ignore[assignment]
        save(self, *args)

    Trainer._save_checkpoint = _save_checkpoint  # type: ignore[method-assign]


def failing_writes(step: int, kilobytes: int) -> None:
    """Limit the size of files from the checkpoint of this step on."""
    import resource

    from finetune.train.trainer import Trainer

    save = Trainer._save_checkpoint

    def _save_checkpoint(self: Any, *args: Any) -> None:
        if self.state.global_step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
        save(self, *args)

    Trainer._save_checkpoint = _save_checkpoint  # type: ignore[method-assign]


TROUBLES: dict[str, Callable[..., None]] = {
    "memory": no_memory,
    "disk": full_disk,
    "writes": failing_writes,
}
