"""Rows, and the batches in which they are passed on: at most about 2 MB or 2,000 rows.

The main process cuts batches out of a file, which is cheap; `rows()` parses them in whichever process receives them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

BATCH_BYTES, BATCH_ROWS = 2_000_000, 2_000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what identifies it in its file, and its fields.

    `line` is the line of the file where it starts. It is the row's number (from 1) where lines do not identify rows: in
    JSON arrays, whose elements may share a line, and in Parquet, Arrow and `datasets`, which have no lines.
    """

    line: int
    fields: dict[str, Any]
    starts_at: int | None = None  # the line where the element of a JSON array starts


@dataclass(frozen=True, slots=True)
class BadRow:
    """A position without a valid row, and the reason."""

    line: int  # as in a Row
    why: str


class Batch(Protocol):
    """A piece of a source, small enough to be sent to another process."""

    @property
    def read_bytes(self) -> int:
        """The bytes of the source on disk read up to the end of this batch."""

    def rows(self) -> list[Row | BadRow]:
        """Return the rows in order; this is the expensive part."""


def grouped(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield the items in groups of the size of a batch."""
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
    """Describe the problem of a row with more bytes than this."""
    return f"larger than data.max_row_size: {max_row_bytes / 10**6:g} MB"
