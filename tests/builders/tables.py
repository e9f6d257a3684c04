"""Tables of rows created in memory, for tests of their processing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.prepare.row_table import Table


def table_of(
    prompts: Sequence[int],
    *,
    texts: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    agents: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
) -> Table:
    """Return a table whose rows have these hashes, without texts."""
    count = len(prompts)
    zeros = [0] * count
    return Table(
        source=np.array(zeros if sources is None else sources, np.int64),
        line=np.arange(1, count + 1),
        start=np.zeros(count, np.int64),
        size=np.zeros(count, np.int64),
        agent=np.array(zeros if agents is None else agents, np.int64),
        label=np.array([-1] * count if labels is None else labels, np.int64),
        id=np.arange(count, dtype=np.uint64),
        copy=np.array(range(count) if texts is None else texts, np.uint64),
        spoken=np.arange(count, dtype=np.uint64),
        prompt=np.array(prompts, np.uint64),
        group=np.array(zeros if groups is None else groups, np.uint64),
        reason=np.zeros(count, np.int64),
        like=np.full(count, -1, np.int64),
        agents=["a", "b", "c"],
        labels=["x", "y", "z"],
        openings=np.empty((0, 2), np.uint64),
        folder=Path(),
        bands=0,
    )
