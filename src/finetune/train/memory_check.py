"""Check memory before the first step with the largest micro-batch of the complete run."""

import gc
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from finetune.config.model import Environment
from finetune.hardware.devices import DEVICES
from finetune.hardware.failures import is_out_of_memory

if TYPE_CHECKING:
    from finetune.train.trainer import Trainer


class MemoryShortageError(Exception):
    """The largest micro-batch of the run does not fit into memory; raised before the first step."""


def require_memory(trainer: "Trainer") -> None:
    """Raise MemoryShortageError unless the largest micro-batch fits forward and backward beside the optimizer's
    moments.

    Restores gradients and random states. All processes agree on the result.
    """
    device = trainer.args.device.type
    before, short = random_states(device), False
    try:
        forward_and_backward(trainer, largest_micro_batch(trainer))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        short = True
    trainer.model.zero_grad(set_to_none=True)  # here, nothing holds the tensors of the pass any more
    restore_random_states(device, before)
    if short:
        empty_cache(device)
    if bool(trainer.sum_of_processes(torch.tensor([float(short)]))[0]):
        raise MemoryShortageError


def forward_and_backward(trainer: "Trainer", rows: Sequence[int]) -> None:
    """Run the pass of a training step over these rows, beside as much memory as the optimizer will use."""
    trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    moments = [torch.zeros_like(parameter) for parameter in trainable for _ in range(2)]
    columns = trainer._remove_unused_columns(trainer.train_dataset)
    inputs = trainer._prepare_inputs(trainer.data_collator([columns[row] for row in rows]))
    trainer.model.train()
    # as in SFTTrainer.compute_loss, but without its sums over all processes, which a process out of memory would not
    # reach
    outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
    (-outputs.log_probs.sum()).backward()
    del moments


def empty_cache(device: str) -> None:
    """Return unused memory to the device."""
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def forget_peak(environment: Environment) -> None:
    """Reset the peak: a failed attempt must not count towards the run that fits."""
    gc.collect()
    empty_cache(DEVICES[environment])
    if environment == "cuda":
        torch.cuda.reset_peak_memory_stats()


def largest_micro_batch(trainer: "Trainer") -> list[int]:
    """Return the rows of this process's micro-batch with the most positions over all epochs."""
    sampler, lengths, padded = trainer.batches(), trainer.lengths, not trainer.args.packing
    epochs = range(math.ceil(trainer.args.num_train_epochs))
    every = (batch for epoch in epochs for batch in sampler.batches(epoch))
    return max(every, key=lambda rows: positions([lengths[row] for row in rows], padded=padded))


def positions(lengths: Sequence[int], *, padded: bool) -> int:
    """Return the number of positions, including padding, of a micro-batch with rows of these lengths."""
    return max(lengths) * len(lengths) if padded else sum(lengths)


def random_states(device: str) -> dict[str, Any]:
    """Return the random states that dropout uses."""
    states = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    elif device == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(device: str, states: dict[str, Any]) -> None:
    """Restore the states that `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device == "cuda":
        torch.cuda.set_rng_state(states["cuda"])
    elif device == "mps":
        torch.mps.set_rng_state(states["mps"])
