"""`make ... DETACH=1` and `finetune stop`: start a run that outlives its terminal, and stop one without data loss.

Writes `work/detached.json`, the record of the newest detached start (running.py), and its log `work/<target>.log`, to
which later starts append. The record of its end is `work/detached_end.json`.
"""

import os
import platform
import re
import signal
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import filelock
import psutil

from finetune.console import printable, say
from finetune.errors import ConfigError, MachineError
from finetune.files.atomic import write_json
from finetune.paths import Paths
from finetune.processes.running import GONE, Detached, Run, Stage, command_of, find_run, require_idle
from finetune.processes.status import how_it_ended, how_training_ended, read_status, what_is_kept

TARGETS = re.compile(r"repro|train-[A-Za-z0-9][\w.-]*")
MAKES_OWN = ("DETACH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")  # of the make that calls us
GRACE = 2.0  # seconds in which an invalid start fails
LAST_LINES = 15
PATIENCE = 20.0  # seconds for DVC and make to end by themselves after their stage has ended
PROGRESS = 10.0  # seconds between two progress lines of a stop


def start(paths: Paths, target: str) -> int:
    """Start `make <target>` in a new session and return. Raise ConfigError if a run is in progress already."""
    if not TARGETS.fullmatch(target):
        raise ConfigError("detach", f"make {target} can't be started in the background", "repro and train-RECIPE can")
    paths.work.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(paths.work / "detached.lock", timeout=0):
            require_idle(paths)
            detached, process = launch(paths, target)
            code = process.wait(timeout=GRACE)
    except filelock.Timeout:
        remedy = "./finetune status shows its progress"
        raise ConfigError(paths.work, "another background start is in progress", remedy) from None
    except subprocess.TimeoutExpired:
        say(f"make {target} runs in the background (process {detached.pid}) and continues if this terminal is closed")
        say("  ./finetune status   show the progress")
        say("  ./finetune stop     stop it; run the same command again to resume")
        say(f"  tail -f {detached.log}")
        return 0
    if code:
        print_failure(paths, detached)
    say(f"make {target} has ended already; see {detached.log}")
    return 0


def launch(paths: Paths, target: str) -> tuple[Detached, subprocess.Popen[bytes]]:
    """Start it with its output redirected to the log, and record the start."""
    log, started = paths.work / f"{target}.log", time.time()
    environment = {key: value for key, value in os.environ.items() if key not in MAKES_OWN}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a script's background; `interrupt` must reach it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command_of(target),
            cwd=paths.root,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    detached = Detached(target, process.pid, log.relative_to(paths.root).as_posix(), started, platform.node())
    write_json(paths.work / "detached.json", asdict(detached))
    return detached, process


def print_failure(paths: Paths, detached: Detached) -> NoReturn:
    """Print the last lines of a start that failed at once, and raise ConfigError."""
    log = paths.root / detached.log
    text = log.read_text(encoding="utf-8", errors="replace").rsplit(f"== make {detached.target}, started ", 1)[-1]
    for line in text.splitlines()[1:][-LAST_LINES:]:
        say(f"  {printable(line)}")
    what = f"make {detached.target} failed immediately; its output is above"
    raise ConfigError("", what, f"nothing is running ({detached.log})")


def stop(paths: Paths) -> int:
    """Stop the run of this folder as a scheduler would, wait for its end, and print what is kept; return 0.

    Raises MachineError if its process belongs to another user or runs on another machine.
    """
    run, began = find_run(paths), time.time()
    if run is None:
        say("nothing is running in this folder")
        return 0
    say(f"{run.sentence()}; stopping it")
    say(closing_line(paths, run, wait_for_end(paths, run), began))
    return 0


def wait_for_end(paths: Paths, run: Run) -> list[Stage]:
    """Ask every stage to end, also later ones, and wait until nothing is left; return these stages."""
    parent = find_dvc(run)
    signalled: list[Stage] = []
    began = quiet_since = next_line = time.monotonic()
    next_line += PROGRESS
    now: Run | None = run
    while now is not None or is_running(parent):
        moment = time.monotonic()
        if now is not None and now.stage is not None:
            quiet_since = moment
            if now.stage.pid not in [stage.pid for stage in signalled]:
                ask_to_end(now.stage)
                signalled.append(now.stage)
        elif now is not None and now.detached and (not signalled or moment - quiet_since > PATIENCE):
            interrupt(now.detached, signal.SIGTERM if moment - began > 2 * PATIENCE else signal.SIGINT)
        if moment >= next_line:
            what = now.sentence() if now else "waiting for its parent process (dvc)"
            say(f"  {moment - began:.0f} s: {what}")
            next_line = moment + PROGRESS
        time.sleep(0.2)
        now = find_run(paths)
    return signalled


def ask_to_end(stage: Stage) -> None:
    """Send SIGTERM: train saves at its step's end, other stages discard unfinished output. Both end with code 5."""
    advice = "stop it on the machine where it runs (scancel, sky jobs cancel, docker stop), or ask its owner"
    if stage.process is None:
        raise MachineError(f"stage {stage.name} can't be stopped from here", stage.why_not, advice)
    try:
        stage.process.terminate()
    except GONE:
        return
    except psutil.AccessDenied:
        what = f"process {stage.pid} of stage {stage.name} belongs to another user"
        raise MachineError("", what, advice) from None


def interrupt(detached: Detached, number: signal.Signals) -> None:
    """Signal make, DVC and all their descendants, for a detached start between two stages."""
    try:
        os.killpg(detached.pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise MachineError("", f"process {detached.pid} belongs to another user", "ask its owner to stop it") from None


def find_dvc(run: Run) -> Any | None:
    """Return the DVC process above a stage, which ends if its stage fails; None if the stage was started by hand."""
    try:
        above = run.stage.process.parents() if run.stage and run.stage.process else []
        # `dvc repro` by its script, or `python -m dvc`
        return next((one for one in above if any(Path(word).name == "dvc" for word in one.cmdline()[:3])), None)
    except (*GONE, psutil.AccessDenied):
        return None


def is_running(process: Any | None) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except (*GONE, psutil.AccessDenied):
        return False


def closing_line(paths: Paths, run: Run, stopped: list[Stage], began: float) -> str:
    """State what is kept and how to resume; `began` is the time of the request, in Unix seconds."""
    if run.detached is not None:
        return how_it_ended(paths)[0]
    name = stopped[-1].name if stopped else "it"
    if name != "train":
        return f"{name} has stopped; completed stages are kept; run the same command again to resume"
    progress = read_status(paths)
    if progress is not None and progress["updated"] >= began - 1:
        return how_training_ended(progress, paths)
    return f"train has stopped; {what_is_kept(paths)}; run the same command again to resume"
