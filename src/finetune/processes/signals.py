"""Stopping from outside: a signal ends the run at the end of its step.

SIGTERM (./finetune stop, spot machines), SIGINT (Ctrl-C), SIGUSR1 (Slurm) and SIGHUP (a lost terminal).
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """Whether a signal has asked the run to stop; the run looks at it when its state can be saved."""

    def __init__(self) -> None:
        self.by: str | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take a signal; the second Ctrl-C stops at once, without a save."""
        if self.by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is None:
            self.by = signal.Signals(number).name
            told = (
                f"{self.by}: saving at the end of this step, then stopping (press Ctrl-C again to stop immediately)\n"
            )
            os.write(sys.stderr.fileno(), told.encode())  # not print, which may be what was interrupted


def leave_signals_to_the_run(worker: int) -> None:  # noqa: ARG001
    """In a data loader's worker: a signal to the whole group is for the run, which ends its workers itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def die_with_parent() -> None:
    """Get SIGTERM when the parent is killed, which could not tell: torchrun then ends its processes, a worker saves.

    Linux alone has this; nothing else has several GPUs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A StopRequest that the signals are wired to; what handled them before is put back."""
    request = StopRequest()
    with signals_to(request.ask):
        yield request


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The signals that ask for a stop go to a handler; what handled them before is put back."""
    # nohup has asked that a lost terminal be ignored
    heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def run_and_forward(
    line: Sequence[str], forward: Callable[["subprocess.Popen[bytes]", int], None], **options: Any
) -> tuple[int, str | None]:
    """Run a program to its end; gives its exit code, and the first signal that reached us.

    Every signal is passed to `forward`; one that comes before there is a process, as soon as there is.
    """
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hear(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        asked.append(number)
        if process is not None:
            forward(process, number)

    with signals_to(hear):
        process = subprocess.Popen(line, preexec_fn=die_with_parent, **options)
        for number in asked[:1]:
            forward(process, number)
        code = process.wait()
    return code, signal.Signals(asked[0]).name if asked else None
