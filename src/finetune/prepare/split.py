"""Assign rows to splits: `exact` shares, stratified, or `stable` ones that rows added later do not change.

Rows of one group (a user, a conversation) stay together; without groups, rows with the same prompt and near-duplicates
do. Rows that would still straddle two splits (a prompt of two users, or one in the user's own test file) are dropped
from the less protected one: test has priority over validation, validation over train.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune.config.data import SplitConfig
from finetune.config.types import SPLITS, Split
from finetune.prepare.hashing import Keys, Pairs, clusters, shuffled
from finetune.prepare.row_table import IN_TEST, IN_VALIDATION, Column, Table

Places = npt.NDArray[np.int8]  # for each row the index of its split in SPLITS; a greater one is better protected


def split_stable(units: Keys, shares: SplitConfig, seed: int) -> Places:
    """Assign each unit by its own hash: added rows never move it, and the shares hold on average."""
    edges = np.cumsum([shares.test, shares.validation])
    where = shuffled(units, seed, "split") / 2.0**64
    # Test first, then validation: a smaller share of train moves no row out of test.
    return np.where(where < edges[0], 2, np.where(where < edges[1], 1, 0)).astype(np.int8)


def split_exact(units: Keys, strata: npt.NDArray[np.int64], shares: SplitConfig, seed: int) -> Places:
    """Assign rows by the shares, in total and (up to one row) in each stratum, as far as indivisible units allow.

    `units` and `strata` have one key per row; a unit belongs to the stratum of its first row.
    """
    _, first, unit, size = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    stratum = strata[first]
    rows = np.bincount(stratum, weights=size).astype(np.int64)
    targets = allocate(rows.tolist(), split_sizes(int(rows.sum()), shares))
    order = shuffled(units[first], seed, "split")
    chosen = np.zeros(len(first), np.int8)
    for at, target in enumerate(targets):
        members = np.flatnonzero(stratum == at)
        chosen[members] = _cut(order[members], size[members], target)
    return chosen[unit]


def _cut(order: Keys, size: Column, target: Sequence[int]) -> Places:
    """Cut the ordered units where the sums of their sizes are closest to the targets.

    Units larger than a held-out split go to train, since one of them would be all of its evidence.
    """
    smallest = min((rows for rows in target[1:] if rows), default=0)
    places = np.zeros(len(order), np.int8)
    rest = np.flatnonzero(size <= smallest) if smallest else np.arange(len(order))
    rest = rest[np.argsort(order[rest], kind="stable")]
    middle = np.cumsum(size[rest]) - size[rest] / 2
    trained_on = max(target[0] - int(size.sum() - size[rest].sum()), 0)
    places[rest] = np.searchsorted(np.cumsum([trained_on, target[1]]), middle, side="right")
    return places


def split_sizes(rows: int, shares: SplitConfig) -> list[int]:
    """Return the rows of train, validation and test: shares rounded down, the rest in the last split with a share.

    That is usually test, where evidence is scarcest (298 rows at 80, 10 and 10% are 238, 29 and 31).
    """
    fractions = [getattr(shares, name) for name in SPLITS]
    sizes = [math.floor(share * rows + 1e-9) for share in fractions]
    last = max(at for at, share in enumerate(fractions) if share)
    sizes[last] += rows - sum(sizes)
    return sizes


def allocate(strata: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Return for each stratum its rows in every split.

    Row sums are `strata`, column sums `sizes`, each cell its proportional share up to rounding (largest remainder,
    split after split).
    """
    left = list(strata)
    columns = []
    for size in sizes[:-1]:
        total = sum(left) or 1
        columns.append(_share_out(size, [rows * size / total for rows in left], left))
        left = [rows - taken for rows, taken in zip(left, columns[-1], strict=True)]
    return [list(row) for row in zip(*columns, left, strict=True)]


def _share_out(size: int, exact: Sequence[float], room: Sequence[int]) -> list[int]:
    taken = [min(math.floor(share + 1e-9), rows) for share, rows in zip(exact, room, strict=True)]
    order = sorted(range(len(exact)), key=lambda at: (math.floor(exact[at] + 1e-9) - exact[at], at))
    for at in order:
        if sum(taken) == size:
            break
        taken[at] += taken[at] < room[at]
    return taken


def place_rows(
    table: Table, links: Pairs, fixed: Sequence[Split | None], settings: SplitConfig, seed: int
) -> tuple[Places, Column]:
    """Return the split of every row in the table (undefined for dropped rows), and its cluster.

    `fixed` is the split of each source that has one, `links` are pairs of rows that belong together. Rows that would
    straddle two splits are dropped from the less protected one.
    """
    cluster = clusters(len(table), links)
    places = np.array([0 if name is None else SPLITS.index(name) for name in fixed], np.int8)[table.source]
    held_out = np.array([name in ("validation", "test") for name in fixed])[table.source]
    drop_repeated(table, places, held_out, links)  # the user's own files must not affect the shares
    keep_groups_apart(table, places)
    kept = table.kept
    free = kept[np.array([name is None for name in fixed])[table.source[kept]]]
    if settings.method == "stable":
        places[free] = split_stable(np.where(table.group == 0, table.prompt, table.group)[free], settings, seed)
    else:
        units = np.where(table.group == 0, smallest(table.prompt, cluster), table.group)[free]
        places[free] = split_exact(units, strata(table, settings)[free], settings, seed)
    ours = kept[~held_out[kept]]
    drop_straddling(table, places, ours, cluster[ours])
    keep_groups_apart(table, places)
    return places, cluster


def drop_repeated(table: Table, places: Places, held_out: npt.NDArray[np.bool_], links: Pairs) -> None:
    """Drop the rows that repeat one of the user's own files: those linked to it directly, not through a third row."""
    kept = table.kept
    own = kept[held_out[kept]]
    order = own[np.lexsort((-places[own], table.prompt[own]))]
    at = np.searchsorted(table.prompt[order], table.prompt[kept])
    known = at < len(order)
    known[known] = table.prompt[order[at[known]]] == table.prompt[kept[known]]
    pairs = np.concatenate([links, links[:, ::-1], np.stack([order[at[known]], kept[known]], axis=1)])
    first, other = pairs.T
    pairs = pairs[held_out[first] & (places[first] > places[other]) & (table.reason[other] == 0)]
    for place, reason in ((1, IN_VALIDATION), (2, IN_TEST)):
        found = pairs[places[pairs[:, 0]] == place]
        table.drop(found[:, 1], reason, like=found[:, 0])


def keep_groups_apart(table: Table, places: Places) -> None:
    """Drop rows until no group is in two splits."""
    grouped = table.kept[table.group[table.kept] != 0]
    drop_straddling(table, places, grouped, np.unique(table.group[grouped], return_inverse=True)[1])


def strata(table: Table, settings: SplitConfig) -> Column:
    """Return the number of each row's stratum."""
    if settings.stratify_by is None:
        return np.zeros(len(table), np.int64)
    column: Column = getattr(table, settings.stratify_by).copy()
    column -= column.min(initial=0)
    return column


def smallest(keys: Keys, cluster: Column) -> Keys:
    """Return for each row the smallest key of its cluster, which identifies it regardless of the order of the rows."""
    found = np.full(int(cluster.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(found, cluster, keys)
    return found[cluster]


def drop_straddling(table: Table, places: Places, rows: Column, unit: Column) -> None:
    """Of rows that share a unit, keep those in the best protected split among theirs."""
    best = np.full(int(unit.max(initial=-1)) + 1, -1, np.int8)
    np.maximum.at(best, unit, places[rows])
    for place, reason in ((1, IN_VALIDATION), (2, IN_TEST)):
        table.drop(rows[(best[unit] == place) & (places[rows] < place)], reason)
