"""Fast starts of pipeline processes: they are forked from a process that has already imported torch and DVC.

`folder/bin` has small programs `python`, `finetune` and `dvc` that request a fork from this process. The fork runs the
same command with the same arguments, directory, environment, limits, open files and process group, so that DVC, a kill
and a terminal find an ordinary stage. All other commands are passed to the real Python."""

import array
import atexit
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finetune.commands.rehearse.processes import PRELOADED
from tests.builders.small_run import ROOT

ALSO = ("dvc.cli", "dvc.commands.repro", "dvc.commands.checkout", "dvc.repo", "dvc.repo.reproduce", "dvc.stage.cache")
STAGE_MODULES = tuple(f"finetune.{name}.stage" for name in ("prepare", "validate", "train", "evaluate", "decide"))
FSIZE = resource.RLIMIT_FSIZE
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")

ASKING = """#!{python} -IS
import array, json, os, resource, signal, socket, struct, sys
words = sys.argv[1:] if {dvc!r} == "" else ["-m", {dvc!r}, *sys.argv[1:]]
if words[:1] != ["-m"] or words[1] not in ("finetune", "finetune.evaluate.memory_probe", "dvc"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
for name in {signals!r}:  # they are for the command, which stands in the same process group
    signal.signal(getattr(signal, name), signal.SIG_IGN)
link = socket.socket(socket.AF_UNIX)
link.connect({socket!r})
asked = {{"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "group": os.getpgrp(),
         "limit": resource.getrlimit(resource.RLIMIT_FSIZE)}}
body = json.dumps(asked).encode()
files = array.array("i", [0, 1, 2])
link.sendmsg([struct.pack("!I", len(body))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
link.sendall(body)
told = link.recv(4)
code = struct.unpack("!i", told)[0] if len(told) == 4 else 70
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class Preloaded:
    """The process to fork from, and the folder of its client programs; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.socket = folder / "bin", str(folder / "ask")
        self.bin.mkdir(parents=True)
        for name, module in (("python", ""), ("dvc", "dvc"), ("finetune", "finetune")):
            text = ASKING.format(python=sys.executable, dvc=module, socket=self.socket, signals=SIGNALS)
            (self.bin / name).write_text(text, encoding="utf-8")
            (self.bin / name).chmod(0o755)
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environment = {**os.environ, **quiet(folder), "PYTHONPATH": paths}
        command = [sys.executable, "-m", "tests.chaos.preloaded", self.socket, str(self.bin / "python")]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 180
        try:
            while not Path(self.socket).exists():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the process to fork from did not start")
                time.sleep(0.05)
        except BaseException:  # the exit method is not called if the enter method fails
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait()

    def environment(self) -> dict[str, str]:
        """Return an environment in which commands use these programs."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
        return {**kept, **quiet(self.bin.parent), "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}


def quiet(folder: Path) -> dict[str, str]:
    """Return an environment without network, with one thread, and with all caches in one folder."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": "1000",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def serve(place: str, executable: str) -> None:
    """Import the slow modules, then fork a process for each request."""
    from finetune.console import quiet_libraries

    quiet_libraries()
    for name in (*PRELOADED, *STAGE_MODULES, *ALSO):
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}.new")
    listener.listen(64)
    Path(f"{place}.new").rename(place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(link, executable)
            os._exit(0)
        link.close()
        while wait_for_any():
            pass


def wait_for_any() -> bool:
    """Reap one child that has ended; return False if there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def answer(link: socket.socket, executable: str) -> None:
    """Fork the requested command and send its exit code; a signal is a negative number."""
    head, extra, _, _ = link.recvmsg(4, socket.CMSG_SPACE(3 * 4))
    files = array.array("i", extra[0][2][:12]).tolist()
    size, body = int.from_bytes(head, "big"), b""
    while len(body) < size:
        body += link.recv(size - len(body))
    child = os.fork()
    if child == 0:
        link.close()
        os._exit(become(json.loads(body), files, executable))
    for file in files:
        os.close(file)
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):  # the requesting process was killed
        link.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def become(asked: dict[str, Any], files: Sequence[int], executable: str) -> int:
    """Take over the requesting process's context and run its command; return the exit code."""
    try:
        os.setpgid(0, asked["group"])
    except PermissionError:
        return 70  # its group was killed meanwhile
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    if place := os.environ.pop("CHAOS_PROCESS", None):  # for the command only, not for its children
        Path(place).write_text(str(os.getpid()), encoding="ascii")
    resource.setrlimit(FSIZE, tuple(asked["limit"]))
    multiprocessing.set_start_method("fork", force=True)
    module, *words = asked["words"][1:]
    sys.executable, sys.argv = executable, [module, *words]
    if "CHAOS_CLOCK" in os.environ:
        shift_clock(float(os.environ["CHAOS_CLOCK"]))
    code = ended(lambda: COMMANDS[module](words))
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def ended(command: Callable[[], int | None]) -> int:
    """Return the exit code that Python would give, and print uncaught exceptions."""
    try:
        return command() or 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def shift_clock(seconds: float) -> None:
    """Shift the clock by this number of seconds, forward and back at alternate readings."""
    true, reads = time.time, [0]

    def wrong() -> float:
        reads[0] += 1
        return true() + seconds * (1 if reads[0] % 2 else -1)

    time.time = wrong


def _finetune(words: list[str]) -> int:
    import torch

    from finetune.cli.main import run_and_exit

    torch.set_num_threads(1)
    run_and_exit()


def _memory_probe(words: list[str]) -> None:
    import_module("finetune.evaluate.memory_probe").main()


def _dvc(words: list[str]) -> int:
    return int(import_module("dvc.cli").main(words))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "finetune": _finetune,
    "finetune.evaluate.memory_probe": _memory_probe,
    "dvc": _dvc,
}

if __name__ == "__main__":
    serve(*sys.argv[1:])
