"""Stopping from outside: SIGTERM, SIGINT and SIGUSR1 (Slurm, spot machines) end the run at the end of its step."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune.console import say

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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
            say(f"{self.by}: the run is saved at the end of this step and stops (Ctrl-C again: at once)")


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
    before = {number: signal.signal(number, request.ask) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
