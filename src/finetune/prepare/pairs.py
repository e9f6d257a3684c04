"""Pairs of rows that belong together, and the clusters that they make."""

import numpy as np
import numpy.typing as npt

from finetune.prepare.hashing import Keys

Pairs = npt.NDArray[np.int64]  # (pairs, 2), each the earlier row first


def equal_pairs(keys: Keys) -> Pairs:
    """Positions of equal keys: each with the first one and with the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))]
    with_first = np.stack([first, order], axis=1)[~new]
    with_before = np.stack([order[:-1], order[1:]], axis=1)[~new[1:]]
    return np.concatenate([with_first, with_before])


def clusters(size: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """For each of `size` rows the number of the connected component that the pairs put it into."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    found: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
