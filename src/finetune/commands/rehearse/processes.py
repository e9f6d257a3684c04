"""Run the rehearsal's stages in separate processes, which can be killed; heavy libraries are imported once for all."""

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
FAILED = 70  # an exit code that no stage uses: an unexpected error


@dataclass(frozen=True)
class Proof:
    """The result of one check: its name, the observation, and whether it held."""

    what: str
    seen: str
    held: bool


class Processes:
    """Start processes that have the heavy libraries already imported, on systems that support forking.

    The imports start in the background when this object is created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        source = str(Path(__file__).resolve().parents[3])  # the working folder of the children is the rehearsal's
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # a killed process leaves a semaphore behind, as intended
        self.context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self.context.set_forkserver_preload(list(PRELOADED))
            from multiprocessing.forkserver import ensure_running

            ensure_running()

    def stages(self, names: Sequence[str], kill_at: int | None = None) -> int:
        """Run stages one after another in one process; return its exit code, negative if a signal ended it."""
        return self._run(_run_stages, (str(self.folder), tuple(names), kill_at))

    def prove(self, what: str, function: Callable[[Config, Paths], tuple[str, bool]]) -> Proof:
        """Run a function on the rehearsal's config and paths and return its proof; an exception counts as not held."""
        code = self._run(_run_proof, (str(self.folder), function))
        result = self.folder / f"{function.__name__}.json"
        if code or not result.is_file():
            return Proof(what, self.last_words(), held=False)
        return Proof(what, **json.loads(result.read_text(encoding="utf-8")))

    def last_words(self) -> str:
        """Return the last line that a process wrote."""
        log = self.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _run(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> int:
        process = self.context.Process(target=target, args=arguments)
        process.start()
        process.join()
        return FAILED if process.exitcode is None else int(process.exitcode)


def _enter(folder: str) -> tuple[Config, Paths]:
    """Change to the folder and redirect output to its log."""
    os.chdir(folder)
    if sys.platform == "linux":  # as in a separate stage; a fork would pass on its start method
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
    """Kill this process after a step, like a power failure: nothing is written or closed."""
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
