"""Find copies among the rows of the table: exact ones by hash, near ones proposed by their bands and then measured.

Of copies, the first row in the order of the sources is kept. Rows of the user's own validation and test files are never
dropped here; rows that repeat them are removed when the splits are made.
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
    """Of these rows, drop those that repeat an earlier one of the same agent, ignoring white space."""
    found = copies(table.copy[rows])
    table.drop(rows[found[:, 1]], EXACT_DUPLICATE, like=rows[found[:, 0]])


def find_near(table: Table, settings: DuplicateConfig, workers: Workers) -> Pairs:
    """Return all pairs of rows in the table that are near-duplicates of each other, each once."""
    pairs = propose_pairs(table.band, table.bands, table.kept)
    same = list(workers(measure, _chunks(table, pairs, settings)))
    found: Pairs = pairs[np.concatenate([np.empty(0, bool), *same])]
    return found


def drop_near(table: Table, pairs: Pairs, may_go: npt.NDArray[np.bool_]) -> None:
    """Drop every row that is similar to an earlier one of the same agent that is kept.

    Two agents may process the same text differently, so their rows are not copies of each other.
    """
    same_agent = table.agent[pairs[:, 0]] == table.agent[pairs[:, 1]]
    found = near_copies(pairs[may_go[pairs].all(axis=1) & same_agent])
    table.drop(found[:, 1], NEAR_DUPLICATE, like=found[:, 0])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some pairs, and the location of their rows' text."""

    file: Path
    starts: list[int]
    sizes: list[int]
    pairs: list[list[int]]  # positions in `starts`
    settings: DuplicateConfig


def _chunks(table: Table, pairs: Pairs, settings: DuplicateConfig) -> Iterator[Chunk]:
    """Yield pairs in their order, in chunks whose rows take a few MB, or that consist of a single pair."""
    end = np.cumsum(table.size[pairs].sum(axis=1)) // BYTES_AT_ONCE
    for piece in np.split(pairs, np.flatnonzero(np.diff(end)) + 1) if len(pairs) else ():
        rows, where = np.unique(piece, return_inverse=True)
        starts, sizes = table.start[rows].tolist(), table.size[rows].tolist()
        yield Chunk(table.file, starts, sizes, where.reshape(-1, 2).tolist(), settings)


def measure(chunk: Chunk) -> npt.NDArray[np.bool_]:
    """Return which of the pairs are near-duplicates, computed exactly."""
    sets = []
    for line in read_pieces(chunk.file, chunk.starts, chunk.sizes):
        messages = [to_message(message) for message in orjson.loads(line)["messages"]]
        sets.append(set(shingles(spoken_text(messages), chunk.settings.shingle_words)))
    threshold = chunk.settings.threshold
    return np.array([similarity(sets[one], sets[other]) >= threshold for one, other in chunk.pairs], bool)


def propose_pairs(band: Callable[[int], Keys], bands: int, rows: npt.NDArray[np.int64]) -> Pairs:
    """Return the pairs among `rows` that share a band, each once.

    Every row is paired with the first and the previous one of its bucket, so that a bucket of a thousand rows gives two
    thousand pairs instead of half a million. This loses almost nothing if the rows of a bucket are alike. If most rows
    follow one long template, its words fill the buckets with unlike rows, which no index can separate without comparing
    all pairs: some pairs are missed.
    """
    found = [np.empty((0, 2), np.int64)]
    for at in range(bands):
        pairs = equal_pairs(band(at)[rows])
        found.append(np.unique(rows[pairs], axis=0))
    return np.unique(np.concatenate(found), axis=0)


def copies(keys: Keys) -> Pairs:
    """Return (survivor, copy) for every row that repeats an earlier one's key."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    survivor = first[which]
    copy = np.flatnonzero(survivor != np.arange(len(keys)))
    return np.stack([survivor[copy], copy], axis=1)


def continued_pairs(table: Table) -> Pairs:
    """Return (row, continuation) for every kept row whose conversation begins a longer one.

    Logs that are written after every answer contain such rows. In two splits, the shorter one's answer would be in both
    training and test data.
    """
    kept = table.kept
    order = kept[np.argsort(table.spoken[kept], kind="stable")]
    rows, openings = table.openings[:, 0].astype(np.int64), table.openings[:, 1]
    at = np.searchsorted(table.spoken[order], openings)
    there = (at < len(order)) & (table.reason[rows] == 0)
    there[there] = table.spoken[order[at[there]]] == openings[there]
    return np.stack([order[at[there]], rows[there]], axis=1)


def near_copies(pairs: Pairs) -> Pairs:
    """Return (survivor, copy) for every row that is similar to an earlier one that is kept."""
    dropped: dict[int, int] = {}
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for one, other in pairs[order].tolist():
        if one not in dropped and other not in dropped:
            dropped[other] = one
    return np.array([(one, other) for other, one in dropped.items()], np.int64).reshape(-1, 2)
