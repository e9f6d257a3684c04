"""Memory is looked for before the first step, with the largest micro-batch that the whole run will have."""

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
    """The largest micro-batch of the run finds no memory; raised before the first step."""


def require_memory(trainer: "Trainer") -> None:
    """MemoryShortageError unless the largest micro-batch goes forward and backward beside the optimizer's moments.

    Leaves no trace: gradients and random states are as before. Several processes agree on the answer.
    """
    device = trainer.args.device.type
    before, short = random_states(device), False
    try:
        forward_and_backward(trainer, largest_micro_batch(trainer))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        short = True
    trainer.model.zero_grad(set_to_none=True)  # out here nothing holds the pass's own tensors any more
    restore_random_states(device, before)
    if short:
        empty_cache(device)
    if bool(trainer.sum_of_processes(torch.tensor([float(short)]))[0]):
        raise MemoryShortageError


def forward_and_backward(trainer: "Trainer", rows: Sequence[int]) -> None:
    """The pass of a training step over these rows, with as much beside it as the optimizer will hold."""
    trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    moments = [torch.zeros_like(parameter) for parameter in trainable for _ in range(2)]
    columns = trainer._remove_unused_columns(trainer.train_dataset)
    inputs = trainer._prepare_inputs(trainer.data_collator([columns[row] for row in rows]))
    trainer.model.train()
    # as in SFTTrainer.compute_loss, but for its sums over all processes, which one without memory would not reach
    outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
    (-outputs.log_probs.sum()).backward()
    del moments


def empty_cache(device: str) -> None:
    """Give back to the device what nothing holds any more."""
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def forget_peak(environment: Environment) -> None:
    """Count the peak anew: what did not fit is no part of the run that does."""
    gc.collect()
    empty_cache(DEVICES[environment])
    if environment == "cuda":
        torch.cuda.reset_peak_memory_stats()


def largest_micro_batch(trainer: "Trainer") -> list[int]:
    """The rows of the micro-batch with the most positions, of all epochs of this process."""
    sampler, lengths, padded = trainer.batches(), trainer.lengths, not trainer.args.packing
    epochs = range(math.ceil(trainer.args.num_train_epochs))
    every = (batch for epoch in epochs for batch in sampler.batches(epoch))
    return max(every, key=lambda rows: positions([lengths[row] for row in rows], padded=padded))


def positions(lengths: Sequence[int], *, padded: bool) -> int:
    """What a micro-batch of rows of these lengths computes, in tokens with padding."""
    return max(lengths) * len(lengths) if padded else sum(lengths)


def random_states(device: str) -> dict[str, Any]:
    """The random states that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    elif device == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(device: str, states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    if device == "cuda":
        torch.cuda.set_rng_state(states["cuda"])
    elif device == "mps":
        torch.mps.set_rng_state(states["mps"])
