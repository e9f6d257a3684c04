"""Find what runs in this folder: the stage that holds the pipeline's lock, and the newest detached start above it.

Reads `work/pipeline.lock` and `work/pipeline.holder`, which a stage holds while it runs (finetune.files.run_lock),
`work/detached.json`, which `make ... DETACH=1` writes (detach.py), and `work/detached_end.json`, which its first
process writes when make has ended. Files alone are not trusted: the process must be alive, in this folder, and running
the command in the file.
"""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import filelock
import psutil

from finetune.errors import ConfigError
from finetune.files.run_lock import read_holder
from finetune.paths import Paths

Record = TypeVar("Record")
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError)
# sh stays above make to record how it ended: its exit code, and whether a signal requested it, which the code does not
# show (make ends by the signal, or with "No child processes"). The trap lets sh survive the signal.
SCRIPT = """stopped=false
trap 'stopped=true' HUP INT TERM
printf '\\n== make %s, started %s\\n' "$1" "$(date)"
make "$1"
code=$?
printf '== make %s ended with exit code %s\\n' "$1" "$code"
printf '{"pid": %s, "exit_code": %s, "stopped": %s}\\n' "$$" "$code" "$stopped" > work/.detached_end.partial
mv work/.detached_end.partial work/detached_end.json
exit $code
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that holds the lock; `process` is None if it cannot be reached from here, for the reason `why_not`."""

    name: str
    pid: int | None
    process: Any | None  # psutil.Process
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Detached:
    """The newest detached start: make target, first process of its session, log, time (Unix seconds) and place."""

    target: str
    pid: int
    log: str
    started: float
    host: str


@dataclass(frozen=True, slots=True)
class DetachedEnd:
    """The end of a detached start: its process, make's exit code, and whether a signal had requested the end."""

    pid: int
    exit_code: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Run:
    """What runs here: a stage, a detached start between two stages, or a stage of a detached start."""

    stage: Stage | None
    detached: Detached | None

    def sentence(self) -> str:
        """Describe in a few words what runs."""
        if self.stage is None:
            assert self.detached is not None
            return f"make {self.detached.target} (process {self.detached.pid}) is between two stages"
        where = f"process {self.stage.pid}" + (f" of make {self.detached.target}" if self.detached else "")
        return f"stage {self.stage.name} ({where}) is running"


def command_of(target: str) -> list[str]:
    """Return the command line of a detached start's first process, which identifies it."""
    return ["/bin/sh", "-c", SCRIPT, "sh", target]


def find_run(paths: Paths) -> Run | None:
    """Return what runs in this folder, or None. A foreground run between two stages is not detected."""
    stage, detached = find_stage(paths), read_detached(paths)
    if detached is not None and not is_alive(detached, paths):
        detached = None
    return Run(stage, detached) if stage or detached else None


def require_idle(paths: Paths) -> None:
    """Raise ConfigError if a run is in progress in this folder, unless this process is part of it."""
    run = find_run(paths)
    if run is not None and not (run.detached and run.detached.pid == os.getsid(0)):
        raise ConfigError(
            paths.work, f"{run.sentence()} in this folder", "./finetune status shows it, ./finetune stop ends it"
        )


def find_stage(paths: Paths) -> Stage | None:
    """Return the stage that holds the lock, or None, regardless of files that a killed stage left."""
    lock = paths.work / "pipeline.lock"
    if not lock.with_suffix(".holder").exists():
        return None  # so the lock is tried, and held for a moment, only if a stage may have died
    holder = read_holder(lock)
    name, pid = (holder.stage, holder.process) if holder else ("unknown", None)
    process, why_not = find_process(name, pid, paths)
    if process is None and not is_locked(lock):
        return None
    return Stage(name, pid, process, why_not)


def find_process(name: str, pid: int | None, paths: Paths) -> tuple[Any | None, str]:
    """Return (the process that runs this stage in this folder, ''), or (None, why it cannot be reached from here)."""
    elsewhere = "its process is not visible here: it runs in a container or on another machine"
    if pid is None:
        return None, elsewhere
    try:
        process = psutil.Process(pid)
        if os.getuid() not in (0, process.uids().real):
            return None, f"process {pid} belongs to the user {process.username()}"
        return (process, "") if runs_stage(process, name, paths.root) else (None, elsewhere)
    except GONE:
        return None, elsewhere
    except psutil.AccessDenied:
        return None, f"the operating system provides no information about process {pid}"


def runs_stage(process: Any, name: str, root: Path) -> bool:
    """Return whether a process is a Python that runs this stage in this folder: its number may have been reused."""
    words = process.cmdline()
    ours = [at for at in range(1, len(words)) if words[at - 1 : at + 1] == ["-m", "finetune"]]
    if len(words) > 1 and Path(words[1]).name == "finetune":  # a script of that name, as installed by pip
        ours.append(1)
    if "python" not in Path(words[0] if words else "").name.lower() or not any(name in words[at + 1 :] for at in ours):
        return False
    return is_in(process, root)


def is_in(process: Any, folder: Path) -> bool:
    """Return whether a process was started in a folder."""
    return Path(process.cwd()).resolve() == folder.resolve()


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock; if none does, it is acquired and released again."""
    if not path.exists():
        return False
    try:
        filelock.FileLock(path, timeout=0).acquire().lock.release()
    except (filelock.Timeout, PermissionError):
        return True
    return False


def read_detached(paths: Paths) -> Detached | None:
    """Return the newest detached start, running or not; None if there was none or its file is malformed."""
    return read_as(Detached, paths.work / "detached.json")


def read_end(detached: Detached, paths: Paths) -> DetachedEnd | None:
    """Return how a detached start ended; None if its first process was killed before it could record that."""
    end = read_as(DetachedEnd, paths.work / "detached_end.json")
    return end if end is not None and end.pid == detached.pid else None


def is_alive(detached: Detached, paths: Paths) -> bool:
    """Return whether a detached start still runs, on this machine and in this folder."""
    if detached.host != platform.node():
        return False
    try:
        process = psutil.Process(detached.pid)
        return is_in(process, paths.root) and bool(process.cmdline()[1:] == command_of(detached.target)[1:])
    except (*GONE, psutil.AccessDenied):
        return False


def read_as(kind: type[Record], path: Path) -> Record | None:
    """Read a record of this kind; None if its file is missing or malformed."""
    try:
        return kind(**read_object(path) or {})
    except TypeError:
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a small JSON object that another process may be replacing; None if it is missing or malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
