"""Rows, and the batches in which they travel: at most about 2 MB or 2,000 rows.

The main process cuts batches out of a file, which is cheap; `rows()` turns one into rows, in whichever process it was
sent to.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

BATCH_BYTES, BATCH_ROWS = 2_000_000, 2_000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what identifies it in its file, and its fields.

    `line` is the line of the file where it starts, or its number (from 1) where lines don't tell rows apart: in JSON
    arrays, whose elements may all stand on one line, and in Parquet, Arrow and `datasets`, which have no lines.
    """

    line: int
    fields: dict[str, Any]
    starts_at: int | None = None  # the line where the element of a JSON array starts


@dataclass(frozen=True, slots=True)
class BadRow:
    """A place that holds no row, and why."""

    line: int  # as of a Row
    why: str


class Batch(Protocol):
    """A piece of a source, small enough to be sent to another process."""

    @property
    def read_bytes(self) -> int:
        """How many bytes of the source on disk were read up to the end of this batch."""

    def rows(self) -> list[Row | BadRow]:
        """The rows in order; this is the heavy work."""


def grouped(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The items in groups, each as small as a batch must be."""
    held: list[Item] = []
    total = 0
    for item in items:
        held.append(item)
        total += size(item)
        if total >= BATCH_BYTES or len(held) >= BATCH_ROWS:
            yield held
            held, total = [], 0
    if held:
        yield held


def too_large(max_row_bytes: int) -> str:
    """What is wrong with a row of more bytes than these."""
    return f"larger than data.max_row_size: {max_row_bytes / 10**6:g} MB"
