"""The rows of each micro-batch, in this process and in all others, as a function of only seed and epoch.

Several processes divide the micro-batches of a step among them in the same order as a single process, so that they
train on the same rows at the same step. If the last step of an epoch has fewer micro-batches than processes, the others
compute a blank row that does not contribute to the loss; accelerate would repeat rows there.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from finetune.model.tokens import IGNORED
from finetune.plan.order import epoch_order


class EpochBatches(Sampler[list[int]]):
    """The micro-batches of one process over the epochs, in the order that validate counted with (plan/order.py)."""

    def __init__(
        self, lengths: Sequence[int], micro: int, accumulation: int, seed: int, strategy: str, rank: int, world: int
    ) -> None:
        self.lengths, self.micro, self.seed, self.strategy = list(lengths), micro, seed, strategy
        self.grouped = micro * accumulation * world  # rows per step
        self.rank, self.world, self.epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the row indices of this process's micro-batches in an epoch."""
        order = epoch_order(self.lengths, self.grouped, self.seed, self.strategy, epoch)
        return share(order, self.micro, self.rank, self.world)

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.lengths) / self.micro) / self.world)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch))


def share(order: Sequence[int], micro: int, rank: int, world: int) -> list[list[int]]:
    """Return every `world`-th micro-batch of `micro` rows, from `rank` on, then the blank row, `len(order)`."""
    cut = [list(order[start : start + micro]) for start in range(0, len(order), micro)]
    cut += [[len(order)]] * (-len(cut) % world)
    return cut[rank::world]


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Return the order of an evaluation: rows of similar length together, the largest batch first, to fail early."""
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def with_blank(rows: Dataset) -> Dataset:
    """Append a blank row: a copy of the first that does not contribute to the loss."""
    first = dict(rows[0])
    first["labels"] = [IGNORED] * len(first["labels"])
    return concatenate_datasets([rows, Dataset.from_list([first], features=rows.features)])


def count_supervised(rows: Dataset) -> Any:
    """Count the supervised tokens of each row, as an array of shape (rows,)."""
    labels = rows.data.column("labels").combine_chunks()
    taken = np.asarray(labels.flatten()) != IGNORED
    ends = np.asarray(labels.offsets) - labels.offsets[0].as_py()
    total = np.concatenate([[0], np.cumsum(taken)])
    return total[ends[1:]] - total[ends[:-1]]
