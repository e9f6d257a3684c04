"""The lock that prevents two runs in one working tree, its holder, and the record of how its newest holder ended.

`work/pipeline.holder` exists while a stage runs: `{"stage": "train", "process": 4321}`. `work/pipeline.record.json` is
read by `finetune status` and `finetune stop`:

    {"stage": "prepare", "outcome": "interrupted", "problem": null, "at": 1764516000.1}
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from finetune.errors import ConfigError, FinetuneError, InterruptedRunError, Problem
from finetune.files.atomic import write_json
from finetune.files.strict_json import read_json

Outcome = Literal["running", "done", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """How a stage ended; one that is not alive and still "running" was killed."""

    stage: str
    outcome: Outcome
    problem: Problem | None  # of a failure, if known
    at: float  # Unix seconds of the last change


def record_path(lock: Path) -> Path:
    """Return the path of the record of a lock's holders."""
    return lock.with_suffix(".record.json")


def write_record(lock: Path, stage: str, outcome: Outcome, problem: Problem | None = None) -> None:
    """Replace the record. Failures are ignored, because a full disk must not hide the error that is recorded."""
    with suppress(OSError):
        content = asdict(StageRecord(stage, outcome, problem, time.time()))
        write_json(record_path(lock), content, durable=False)


def read_record(lock: Path) -> StageRecord | None:
    """Return the record of the newest holder; None if there is none or its file is malformed."""
    try:
        content: dict[str, Any] = read_json(record_path(lock))
        problem = content.pop("problem")
        record = StageRecord(**content, problem=Problem(**problem) if problem else None)
    except (FinetuneError, OSError, AttributeError, KeyError, TypeError):
        return None
    return record if isinstance(record.at, int | float) else None


@dataclass(frozen=True, slots=True)
class Holder:
    """The stage that holds the lock, and its process; for a container, the process on the host that waits for it."""

    stage: str
    process: int


def read_holder(lock: Path) -> Holder | None:
    """Return the last recorded holder of the lock; None if there is none or the file is malformed."""
    try:
        holder = Holder(**read_json(lock.with_suffix(".holder")))
    except (FinetuneError, OSError, TypeError):
        return None
    return holder if isinstance(holder.stage, str) and isinstance(holder.process, int) else None


@contextmanager
def pipeline_lock(path: Path, stage: str) -> Iterator[None]:
    """Lock the working tree for one stage. Raise ConfigError at once if another process holds the lock.

    An `fcntl` lock: the kernel releases it when the process dies, and an orphan of a killed DVC keeps it while it
    lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    holder = path.with_suffix(".holder")
    try:
        lock.acquire()
    except filelock.Timeout:
        other = read_holder(path)
        who = f"stage {other.stage} (process {other.process})" if other else "another process"
        raise ConfigError(
            f"{path}", f"{who} is running in this folder", "wait for it or stop it, then try again"
        ) from None
    try:
        process = int(os.environ.get("FINETUNE_PROCESS") or os.getpid())
        write_json(holder, asdict(Holder(stage, process)), durable=False)
        write_record(path, stage, "running")
        yield
        write_record(path, stage, "done")
    except (KeyboardInterrupt, InterruptedRunError):
        write_record(path, stage, "interrupted")
        raise
    except BaseException as error:
        write_record(path, stage, "failed", error.problem if isinstance(error, FinetuneError) else None)
        raise
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
