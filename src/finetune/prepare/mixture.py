"""Select how much of each source is used: a fraction, a cap or a weight, with a separate random stream per source.

The choice depends on the seed, the source's name and the rows themselves, so that adding another source or reordering
rows does not change it; a smaller share is always a subset of a larger one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune.config.data import Source
from finetune.prepare.hashing import Keys, shuffled
from finetune.prepare.row_table import NOT_SAMPLED, Table


def sample(table: Table, sources: Sequence[Source], seed: int) -> None:
    """Drop the rows that the sources' fractions, caps and weights exclude."""
    kept = table.kept
    rows = [kept[table.source[kept] == at] for at in range(len(sources))]
    for source, members, size in zip(sources, rows, sizes_taken(sources, list(map(len, rows))), strict=True):
        table.drop(members[left_out(table.id[members], size, seed, source.name)], NOT_SAMPLED)


def sizes_taken(sources: Sequence[Source], kept: Sequence[int]) -> list[int]:
    """Return how many kept rows each source contributes; weighted sources keep their proportions, and all rows of the
    scarcest are used.
    """
    scale = min((n / source.weight for source, n in zip(sources, kept, strict=True) if source.weight), default=0.0)
    return [_size(source, n, scale) for source, n in zip(sources, kept, strict=True)]


def _size(source: Source, kept: int, scale: float) -> int:
    if source.fraction is not None:
        return round(source.fraction * kept)
    if source.cap is not None:
        return min(source.cap, kept)
    if source.weight is not None:
        return min(round(source.weight * scale), kept)
    return kept


def left_out(ids: Keys, size: int, seed: int, name: str) -> npt.NDArray[np.int64]:
    """Return the positions of the rows that are not among the `size` selected ones."""
    if size >= len(ids):
        return np.empty(0, np.int64)
    order = np.argsort(shuffled(ids, seed, f"sample/{name}"), kind="stable")
    return np.sort(order[size:])
