"""The order of the examples in each epoch, and its micro-batches, as a function of only seed and epoch.

train reads its rows in this order, so validate can count exactly what it will compute. (The Trainer's own sampler by
length uses the global random state, which differs in a resumed run.)
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Batches:
    """The contents of one epoch's micro-batches, including padding; all rows of one are padded to its longest."""

    positions: int  # all tokens that the device computes
    longest: int  # tokens of the longest row
    largest: int  # positions of the largest micro-batch
    most_supervised: int  # maximum number of supervised tokens in a micro-batch


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, strategy: str, epoch: int) -> list[int]:
    """Return the row indices in the order of one epoch; `batch_size` is one device's micro-batch times accumulation."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if strategy == "sequential":
        return list(range(len(lengths)))
    if strategy == "random":
        return [int(at) for at in torch.randperm(len(lengths), generator=generator).tolist()]
    return [int(at) for at in get_length_grouped_indices(list(lengths), batch_size, generator=generator)]


def measure_batches(
    order: Sequence[int], lengths: Sequence[int], supervised: Sequence[int], micro: int, *, padded: bool = True
) -> Batches:
    """Measure the micro-batches of `micro` rows in this order; packed rows are concatenated, not padded."""
    batches = [order[start : start + micro] for start in range(0, len(order), micro)]
    held = [[lengths[at] for at in batch] for batch in batches]
    sizes = [max(batch) * len(batch) if padded else sum(batch) for batch in held]
    return Batches(
        positions=sum(sizes),
        longest=max(lengths, default=0),
        largest=max(sizes, default=0),
        most_supervised=max((sum(supervised[at] for at in batch) for batch in batches), default=0),
    )
