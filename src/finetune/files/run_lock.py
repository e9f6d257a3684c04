"""The lock that keeps a second run out of a working tree."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from finetune.errors import ConfigError


@contextmanager
def pipeline_lock(path: Path, stage: str) -> Iterator[None]:
    """Hold the working tree for one stage; ConfigError at once where another process holds it.

    An `fcntl` lock: the kernel drops it when the process dies, and an orphan of a killed DVC keeps it while it lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    holder = path.with_suffix(".holder")
    try:
        lock.acquire()
    except filelock.Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise ConfigError(
            f"{path}", f"{who} is running in this folder", "wait for it or stop it, then start again"
        ) from None
    try:
        # in a container, the process on the host that waits for it and passes signals on
        process = os.environ.get("FINETUNE_PROCESS") or os.getpid()
        holder.write_text(f"stage {stage} (process {process})", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
