"""Distribute work over this machine's cores: results in the order of the work, with only a few items in memory."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Protocol, TypeVar

from finetune.errors import MachineError
from finetune.hardware.host import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_A_POOL = 16_000_000  # bytes of input: starting processes takes a second, enough to read about as much


class Workers(Protocol):
    """Applies a function to items and yields results in the items' order."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]: ...


@contextmanager
def open_workers(work_bytes: int) -> Iterator[Workers]:
    """Start one process per core for this amount of work; small amounts are processed in this process."""
    count = usable_cores()
    if work_bytes < WORTH_A_POOL or count == 1:
        yield lambda function, items: map(function, items)
        return
    # Spawned, not forked: this process has threads (Arrow's), and a fork with threads can hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start)
    try:
        yield lambda function, items: _in_order(executor, count, function, items)
    finally:
        executor.shutdown(cancel_futures=True)


def _in_order(
    executor: ProcessPoolExecutor, count: int, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        what = "a worker process was killed, most likely because memory ran out"
        raise MachineError("prepare", what, "free memory, or lower data.max_row_size") from None


def _start() -> None:
    """Leave interrupts to the parent, and end this worker if its parent is killed instead of waiting forever."""
    gc.disable()  # rows contain no cycles, and searching for some takes a third of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
