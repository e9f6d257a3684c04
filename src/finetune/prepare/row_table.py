"""All kept rows of all sources as columns, about 120 bytes per row; their text and band hashes are stored on disk.

The text is written once, in the order of the sources, and read again to compare near-duplicates and to write the
splits.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from finetune.prepare.hashing import Keys
from finetune.prepare.rows import ReadRows

Column = npt.NDArray[np.int64]

# Why a row is in no split; the table stores the position in this tuple.
NOT_SAMPLED, EXACT_DUPLICATE, NEAR_DUPLICATE = "not_sampled", "exact_duplicate", "near_duplicate"
IN_VALIDATION, IN_TEST = "stands_in_validation", "stands_in_test"
REASONS = ("", NOT_SAMPLED, EXACT_DUPLICATE, NEAR_DUPLICATE, IN_VALIDATION, IN_TEST)

BANDS_AT_ONCE = 1 << 16  # rows of the band file that are read at once


@dataclass
class Table:
    """One entry per row in every column, in the order of the sources and of their lines."""

    source: Column  # position in data.sources
    line: Column
    start: Column  # offset of the row's JSON in the spool, in bytes
    size: Column
    agent: Column  # position in `agents`
    label: Column  # position in `labels`; -1 without a label
    id: Keys
    copy: Keys  # hash of agent, tools and conversation
    spoken: Keys  # hash of the conversation without the system prompt
    prompt: Keys  # the same without the last turn
    group: Keys  # 0 without a group
    reason: Column  # position in REASONS; 0 if the row is kept
    like: Column  # the row because of which this one was dropped, or -1
    agents: list[str]
    labels: list[str]
    openings: npt.NDArray[np.uint64]  # (openings, 2): a row, and the hash of its turns up to an earlier answer
    folder: Path
    bands: int

    def __len__(self) -> int:
        return len(self.line)

    @property
    def kept(self) -> Column:
        """The rows that were not dropped."""
        return np.flatnonzero(self.reason == 0)

    def drop(self, rows: Column, reason: str, like: Column | None = None) -> None:
        """Drop rows for a reason, and because of other rows if given."""
        self.reason[rows] = REASONS.index(reason)
        if like is not None:
            self.like[rows] = like

    def band(self, at: int) -> Keys:
        """Read one band's hash of every row from disk."""
        with (self.folder / "bands").open("rb") as file:
            pieces = [np.empty(0, np.uint64)]
            while (piece := np.fromfile(file, np.uint64, BANDS_AT_ONCE * self.bands)).size:
                pieces.append(piece.reshape(-1, self.bands)[:, at].copy())
        return np.concatenate(pieces)

    @property
    def file(self) -> Path:
        """The rows' JSON, one after another."""
        return self.folder / "rows"

    def lines(self, rows: Column) -> Iterator[bytes]:
        """Read the JSON lines of these rows from disk."""
        return read_pieces(self.file, self.start[rows].tolist(), self.size[rows].tolist())


def read_pieces(file: Path, starts: Sequence[int], sizes: Sequence[int]) -> Iterator[bytes]:
    """Read pieces of a file, in ascending order."""
    with file.open("rb") as pieces:
        end = 0
        for start, size in zip(starts, sizes, strict=True):
            if start != end:
                pieces.seek(start)
            yield pieces.read(size)
            end = start + size


class Spool:
    """Fills a table: text and band hashes are written to disk, the rest is kept as columns."""

    def __init__(self, folder: Path, rows: BinaryIO, bands: BinaryIO) -> None:
        self.folder, self._rows, self._bands = folder, rows, bands
        self._numbers: list[Column] = []
        self._hashes: list[Keys] = []
        self._agents: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._openings: list[npt.NDArray[np.uint64]] = [np.empty((0, 2), np.uint64)]
        self._count = 0
        self._end = 0
        self._band_count = 0

    def add(self, source: int, batch: ReadRows) -> None:
        """Append a batch's kept rows."""
        sizes = np.fromiter(map(len, batch.json), np.int64, len(batch.json))
        starts = self._end + np.cumsum(sizes) - sizes
        agents = [self._agents.setdefault(name, len(self._agents)) for name in batch.agents]
        labels = [-1 if name is None else self._labels.setdefault(name, len(self._labels)) for name in batch.labels]
        kept = [line for line, reason in zip(batch.lines, batch.reasons, strict=True) if reason is None]
        self._numbers.append(np.array([[source] * len(kept), kept, starts, sizes, agents, labels], np.int64))
        keys = batch.keys
        copies, spoken, prompts = ([getattr(key, name) for key in keys] for name in ("copy", "spoken", "prompt"))
        self._hashes.append(np.array([batch.ids, copies, spoken, prompts, batch.groups], np.uint64))
        openings = [(row, opening) for row, key in enumerate(keys, self._count) for opening in key.openings]
        self._openings.append(np.array(openings, np.uint64).reshape(-1, 2))
        self._count += len(kept)
        self._end += int(sizes.sum())
        self._rows.writelines(batch.json)
        if batch.bands is not None:
            self._band_count = batch.bands.shape[1]
            batch.bands.tofile(self._bands)

    def table(self) -> Table:
        """Return the table of all rows added."""
        self._rows.flush()
        self._bands.flush()
        numbers = np.concatenate([np.empty((6, 0), np.int64), *self._numbers], axis=1)
        hashes = np.concatenate([np.empty((5, 0), np.uint64), *self._hashes], axis=1)
        self._numbers, self._hashes = [], []
        count = numbers.shape[1]
        return Table(
            **dict(zip(("source", "line", "start", "size", "agent", "label"), numbers, strict=True)),
            **dict(zip(("id", "copy", "spoken", "prompt", "group"), hashes, strict=True)),
            reason=np.zeros(count, np.int64),
            like=np.full(count, -1, np.int64),
            agents=list(self._agents),
            labels=list(self._labels),
            openings=np.concatenate(self._openings),
            folder=self.folder,
            bands=self._band_count,
        )


@contextmanager
def open_spool(folder: Path) -> Iterator[Spool]:
    """Yield a spool in a temporary folder; remnants of a killed run are removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with (folder / "rows").open("wb") as rows, (folder / "bands").open("wb") as bands:
            yield Spool(folder, rows, bands)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
