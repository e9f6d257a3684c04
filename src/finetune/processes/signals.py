"""Stop requests by signal: a signal ends the run at the end of its step.

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

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """Whether a signal has requested a stop; the run checks it when its state can be saved."""

    def __init__(self) -> None:
        self.by: str | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Record a signal; the second Ctrl-C stops at once, without saving."""
        if self.by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is None:
            self.by = signal.Signals(number).name
            message = (
                f"{self.by}: saving at the end of this step, then stopping (press Ctrl-C again to stop immediately)\n"
            )
            os.write(sys.stderr.fileno(), message.encode())  # not print, which the signal may have interrupted


def leave_signals_to_the_run(worker: int) -> None:  # noqa: ARG001
    """In a data loader's worker, ignore signals to the process group: the run handles them and ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def die_with_parent() -> None:
    """Request SIGTERM for this process when its parent is killed: torchrun then ends its processes, a worker saves.

    Only Linux supports this; no other system has several GPUs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yield a StopRequest connected to the signals; restore their previous handlers afterwards."""
    request = StopRequest()
    with signals_to(request.ask):
        yield request


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send stop signals to a handler; restore the previous handlers afterwards."""
    # nohup has requested that a lost terminal be ignored
    handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def run_and_forward(
    line: Sequence[str], forward: Callable[["subprocess.Popen[bytes]", int], None], **options: Any
) -> tuple[int, str | None]:
    """Run a program to its end; return its exit code, and the first signal that arrived.

    Every signal is passed to `forward`; one that arrives before the process exists is passed once it does.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hear(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        if process is not None:
            forward(process, number)

    with signals_to(hear):
        process = subprocess.Popen(line, preexec_fn=die_with_parent, **options)
        for number in received[:1]:
            forward(process, number)
        code = process.wait()
    return code, signal.Signals(received[0]).name if received else None
