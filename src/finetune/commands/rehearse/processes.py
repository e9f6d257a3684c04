"""Stages of the rehearsal in processes of their own, which can be killed; the libraries are imported once for all."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.config.params import Config, load_config, params_of
from finetune.errors import FinetuneError
from finetune.files.atomic import write_json
from finetune.paths import Paths

PRELOADED = ("torch", "transformers", "datasets", "peft", "trl", "finetune.train.trainer", "finetune.evaluate.generate")
LOG = "rehearsal.log"
FAILED = 70  # an exit code of no stage: a defect


@dataclass(frozen=True)
class Proof:
    """One thing that was tried: what it is, what was seen, and whether it held."""

    what: str
    seen: str
    held: bool


class Processes:
    """Starts processes that find the heavy libraries already imported where the system can fork them off.

    Made early, it imports them while something else is being done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        source = str(Path(__file__).resolve().parents[3])  # children stand in the rehearsal's folder
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # a killed process leaves a semaphore, and is meant to
        self.context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self.context.set_forkserver_preload(list(PRELOADED))
            from multiprocessing.forkserver import ensure_running

            ensure_running()

    def stages(self, names: Sequence[str], kill_at: int | None = None) -> int:
        """Run stages one after the other in one process; gives its exit code, negative where a signal ended it."""
        return self._run(_run_stages, (str(self.folder), tuple(names), kill_at))

    def prove(self, what: str, function: Callable[[Config, Paths], tuple[str, bool]]) -> Proof:
        """What a function of the rehearsal's config and paths saw, and whether it held; one that fails did not."""
        code = self._run(_run_proof, (str(self.folder), function))
        result = self.folder / f"{function.__name__}.json"
        if code or not result.is_file():
            return Proof(what, self.last_words(), held=False)
        return Proof(what, **json.loads(result.read_text(encoding="utf-8")))

    def last_words(self) -> str:
        """The last line that a process wrote."""
        log = self.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _run(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> int:
        process = self.context.Process(target=target, args=arguments)
        process.start()
        process.join()
        return FAILED if process.exitcode is None else int(process.exitcode)


def _enter(folder: str) -> tuple[Config, Paths]:
    """Stand in the folder, with what is printed going to its log."""
    os.chdir(folder)
    if sys.platform == "linux":  # as in a stage of its own; a forked process would hand its own way to its loaders
        multiprocessing.set_start_method("fork", force=True)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from finetune.console import quiet_libraries

    quiet_libraries()
    return load_config(Path("params.yaml")), Paths()


def _run_stages(folder: str, names: tuple[str, ...], kill_at: int | None) -> None:
    config, paths = _enter(folder)
    if kill_at is not None:
        _die_at(kill_at)
    try:
        for name in names:
            import_module(f"finetune.{name}.stage").run(params_of(name, config), paths)
    except FinetuneError as error:
        print(f"error: {name}: {error}", flush=True)
        raise SystemExit(error.exit_code) from None


def _die_at(step: int) -> None:
    """Let this process be killed after a step, like a machine that is switched off: nothing is written or closed."""
    from finetune.train.curves import CurvesCallback

    def die(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG001
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    CurvesCallback.on_step_end = die  # type: ignore[method-assign]


def _run_proof(folder: str, function: Callable[[Config, Paths], tuple[str, bool]]) -> None:
    config, paths = _enter(folder)
    try:
        seen, held = function(config, paths)
    except FinetuneError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(error.exit_code) from None
    write_json(Path(f"{function.__name__}.json"), {"seen": seen, "held": held})
