"""Micro-batches use every row once per epoch, in an order set by seed and epoch only, on any number of devices."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from finetune.model.tokens import IGNORED
from finetune.train.batches import EpochBatches, count_supervised, longest_first, share, with_blank

LENGTHS = [(7 * number) % 23 + 1 for number in range(101)]


def sampler(strategy: str = "group_by_length", world: int = 1, rank: int = 0, accumulation: int = 4) -> EpochBatches:
    """Return micro-batches of two rows over 101 rows."""
    return EpochBatches(LENGTHS, 2, accumulation, 3, strategy, rank, world)


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_each_epoch_takes_every_example_once(strategy: str) -> None:
    """An order loses and repeats no example, and does not depend on the global random state, which is not restored."""
    batches = sampler(strategy)
    orders = []
    for epoch in (0, 1, 1):
        batches.set_epoch(epoch)
        torch.rand(5)
        orders.append([row for batch in batches for row in batch])
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert orders[1] == orders[2]
    assert (orders[0] == orders[1]) == (strategy == "sequential")


@given(rows=st.integers(1, 60), micro=st.integers(1, 5), world=st.integers(1, 5), accumulation=st.integers(1, 4))
def test_several_processes_take_the_same_steps_as_one(rows: int, micro: int, world: int, accumulation: int) -> None:
    """At each step all processes together hold the rows of one process with proportionally more accumulation."""
    lengths = [row % 7 + 1 for row in range(rows)]
    parts = [
        EpochBatches(lengths, micro, accumulation, 0, "group_by_length", rank, world).batches(0)
        for rank in range(world)
    ]
    alone = EpochBatches(lengths, micro, accumulation * world, 0, "group_by_length", 0, 1).batches(0)
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == len(EpochBatches(lengths, micro, accumulation, 0, "random", 0, world))
    steps = -(-len(parts[0]) // accumulation)
    assert steps == -(-len(alone) // (accumulation * world))
    for step in range(steps):
        mine = [batch for part in parts for batch in part[step * accumulation : (step + 1) * accumulation]]
        together = sorted(row for batch in mine for row in batch if row < rows)
        begin = step * accumulation * world
        assert together == sorted(row for batch in alone[begin : begin + accumulation * world] for row in batch)


def test_blank_rows_fill_missing_micro_batches() -> None:
    """With three micro-batches on two processes, accelerate would train on the first row twice."""
    assert [share(range(5), 2, rank, 2) for rank in (0, 1)] == [[[0, 1], [4]], [[2, 3], [5]]]


def rows(labels: list[list[int]]) -> Dataset:
    """Return a dataset in the form that validate writes."""
    content: dict[str, Any] = {
        "ids": [[f"row-{number}"] for number in range(len(labels))],
        "input_ids": [[5] * len(row) for row in labels],
        "labels": labels,
        "length": [len(row) for row in labels],
    }
    return Dataset.from_dict(content)


@given(st.lists(st.lists(st.sampled_from([IGNORED, 5, 6]), min_size=1, max_size=9), min_size=1, max_size=9))
def test_supervised_tokens_are_counted_per_row(labels: list[list[int]]) -> None:
    """The expected count of each micro-batch is computed by columns; it equals the count by rows."""
    assert count_supervised(rows(labels)).tolist() == [sum(label != IGNORED for label in row) for row in labels]


def test_supervised_tokens_of_a_table_slice_are_counted() -> None:
    """Counting works on a slice of an Arrow table, which keeps the offsets of the full table."""
    part = rows([[5, IGNORED], [5, 5], [IGNORED, IGNORED, 5]]).data.slice(1, 2)
    assert count_supervised(Dataset(part)).tolist() == [2, 1]


def test_blank_row_has_no_supervised_token() -> None:
    """A blank row adds nothing to the loss and leaves every other row unchanged."""
    whole = rows([[IGNORED, 5], [5, 5]])
    blank = with_blank(whole)
    assert len(blank) == 3
    assert blank[2]["labels"] == [IGNORED, IGNORED]
    assert [blank[0], blank[1]] == [whole[0], whole[1]]


def test_an_evaluation_begins_with_the_longest_rows() -> None:
    """Evaluation starts with the longest rows, to detect a lack of memory early; a batch has rows of similar length."""
    assert longest_first([3, 9, 3, 5]) == [1, 3, 0, 2]
