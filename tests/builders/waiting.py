"""Waiting for another process until an event, never for a fixed time.

The deadline matters only in case of a failure, so it is long enough for a busy machine."""

import time
from collections.abc import Callable
from subprocess import Popen
from typing import Any

PATIENCE = 300.0  # seconds


def wait_for(happened: Callable[[], Any], running: "Popen[Any] | None" = None, what: str = "it happened") -> Any:
    """Return a function's value as soon as it is true; fail if a process ends first."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        if running is not None and running.poll() is not None:
            if found := happened():  # in its last moment
                break
            raise AssertionError(f"the process ended before {what}")
        assert time.monotonic() < deadline, f"{PATIENCE:.0f} s have passed before {what}"
        time.sleep(0.005)
    return found
