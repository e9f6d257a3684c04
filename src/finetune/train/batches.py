"""Which rows make each micro-batch, in this process and on every other one: a function of seed and epoch alone.

Several processes share the micro-batches of a step that one process would have, in the same order, so that they train
on the same rows at the same step. Where the last step of an epoch has fewer micro-batches than processes, the others
compute a blank row, on which no loss is taken; accelerate's own way would repeat rows there.
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
    """The micro-batches of one process, epoch after epoch, in the order that validate counted with (plan/order.py)."""

    def __init__(
        self, lengths: Sequence[int], micro: int, accumulation: int, seed: int, strategy: str, rank: int, world: int
    ) -> None:
        self.lengths, self.micro, self.seed, self.strategy = list(lengths), micro, seed, strategy
        self.grouped = micro * accumulation * world  # rows of a step
        self.rank, self.world, self.epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows' numbers of this process's micro-batches in an epoch."""
        order = epoch_order(self.lengths, self.grouped, self.seed, self.strategy, epoch)
        return share(order, self.micro, self.rank, self.world)

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.lengths) / self.micro) / self.world)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch))


def share(order: Sequence[int], micro: int, rank: int, world: int) -> list[list[int]]:
    """Every `world`-th micro-batch of `micro` rows, from `rank` on; where none is left, the blank row, `len(order)`."""
    cut = [list(order[start : start + micro]) for start in range(0, len(order), micro)]
    cut += [[len(order)]] * (-len(cut) % world)
    return cut[rank::world]


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The order of an evaluation: rows of like length together, the largest batch first, so that it fails early."""
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def with_blank(rows: Dataset) -> Dataset:
    """The rows and one more, a copy of the first that no loss is taken on."""
    first = dict(rows[0])
    first["labels"] = [IGNORED] * len(first["labels"])
    return concatenate_datasets([rows, Dataset.from_list([first], features=rows.features)])


def count_supervised(rows: Dataset) -> Any:
    """Supervised tokens of each row, as an array of shape (rows,)."""
    labels = rows.data.column("labels").combine_chunks()
    taken = np.asarray(labels.flatten()) != IGNORED
    ends = np.asarray(labels.offsets) - labels.offsets[0].as_py()
    total = np.concatenate([[0], np.cumsum(taken)])
    return total[ends[1:]] - total[ends[:-1]]
