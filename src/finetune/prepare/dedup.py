"""Copies among the rows of the table: exact ones by hash, near ones proposed by their bands and then measured.

Of copies the first row in the order of the sources survives. Rows of the user's own validation and test files are never
dropped here; what repeats them leaves when the splits are made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from finetune.config.data import DuplicateConfig
from finetune.prepare.hashing import Keys, Pairs, equal_pairs
from finetune.prepare.row_table import EXACT_DUPLICATE, NEAR_DUPLICATE, Column, Table, read_pieces
from finetune.prepare.workers import Workers
from finetune.records.examples import to_message
from finetune.records.near_duplicates import shingles, similarity, spoken_text

BYTES_AT_ONCE = 4_000_000  # of rows that one worker holds to measure their pairs


def drop_exact(table: Table, rows: Column) -> None:
    """Of these rows, drop those that repeat an earlier one of the same agent up to white space."""
    found = copies(table.copy[rows])
    table.drop(rows[found[:, 1]], EXACT_DUPLICATE, like=rows[found[:, 0]])


def find_near(table: Table, settings: DuplicateConfig, workers: Workers) -> Pairs:
    """All pairs of rows in the table that are near-duplicates of each other, each once."""
    pairs = propose_pairs(table.band, table.bands, table.kept)
    same = list(workers(measure, _chunks(table, pairs, settings)))
    found: Pairs = pairs[np.concatenate([np.empty(0, bool), *same])]
    return found


def drop_near(table: Table, pairs: Pairs, may_go: npt.NDArray[np.bool_]) -> None:
    """Drop every row that is similar to an earlier one of the same agent which itself survives.

    Two agents may do different things with one text, so their rows are no copies of each other.
    """
    same_agent = table.agent[pairs[:, 0]] == table.agent[pairs[:, 1]]
    found = near_copies(pairs[may_go[pairs].all(axis=1) & same_agent])
    table.drop(found[:, 1], NEAR_DUPLICATE, like=found[:, 0])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some pairs, and where their rows' text lies."""

    file: Path
    starts: list[int]
    sizes: list[int]
    pairs: list[list[int]]  # positions in `starts`
    settings: DuplicateConfig


def _chunks(table: Table, pairs: Pairs, settings: DuplicateConfig) -> Iterator[Chunk]:
    """Pairs in their order, cut so that the rows of a chunk take some MB, or are the two of one pair."""
    end = np.cumsum(table.size[pairs].sum(axis=1)) // BYTES_AT_ONCE
    for piece in np.split(pairs, np.flatnonzero(np.diff(end)) + 1) if len(pairs) else ():
        rows, where = np.unique(piece, return_inverse=True)
        starts, sizes = table.start[rows].tolist(), table.size[rows].tolist()
        yield Chunk(table.file, starts, sizes, where.reshape(-1, 2).tolist(), settings)


def measure(chunk: Chunk) -> npt.NDArray[np.bool_]:
    """Which of the pairs are near-duplicates, counted exactly."""
    sets = []
    for line in read_pieces(chunk.file, chunk.starts, chunk.sizes):
        messages = [to_message(message) for message in orjson.loads(line)["messages"]]
        sets.append(set(shingles(spoken_text(messages), chunk.settings.shingle_words)))
    threshold = chunk.settings.threshold
    return np.array([similarity(sets[one], sets[other]) >= threshold for one, other in chunk.pairs], bool)


def propose_pairs(band: Callable[[int], Keys], bands: int, rows: npt.NDArray[np.int64]) -> Pairs:
    """The pairs among `rows` that share a band, each once: every row with the first of its bucket and with the one
    before it, so that a bucket of a thousand rows gives two thousand pairs and no million.

    That is all but lossless while a bucket holds like rows. Where most rows are one long template, its words fill the
    buckets with unlike ones, and no index short of comparing all pairs can tell them apart: some pairs are missed.
    """
    found = [np.empty((0, 2), np.int64)]
    for at in range(bands):
        pairs = equal_pairs(band(at)[rows])
        found.append(np.unique(rows[pairs], axis=0))
    return np.unique(np.concatenate(found), axis=0)


def copies(keys: Keys) -> Pairs:
    """(survivor, copy) for every row that repeats an earlier one's key."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    survivor = first[which]
    copy = np.flatnonzero(survivor != np.arange(len(keys)))
    return np.stack([survivor[copy], copy], axis=1)


def continued_pairs(table: Table) -> Pairs:
    """(row, row that goes on with it) for every kept row whose conversation opens a longer one, as in logs that are
    written after every answer: in two splits, the shorter one's answer would be trained on and tested."""
    kept = table.kept
    order = kept[np.argsort(table.spoken[kept], kind="stable")]
    rows, openings = table.openings[:, 0].astype(np.int64), table.openings[:, 1]
    at = np.searchsorted(table.spoken[order], openings)
    there = (at < len(order)) & (table.reason[rows] == 0)
    there[there] = table.spoken[order[at[there]]] == openings[there]
    return np.stack([order[at[there]], rows[there]], axis=1)


def near_copies(pairs: Pairs) -> Pairs:
    """(survivor, copy) for every row that is similar to an earlier one which itself survives."""
    dropped: dict[int, int] = {}
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for one, other in pairs[order].tolist():
        if one not in dropped and other not in dropped:
            dropped[other] = one
    return np.array([(one, other) for other, one in dropped.items()], np.int64).reshape(-1, 2)
