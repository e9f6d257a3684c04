"""Memory is looked for before the first step, with the largest micro-batch that the whole run will have."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from finetune.machine import machine_trouble


class MemoryShortageError(Exception):
    """The largest micro-batch of the run finds no memory; raised before the first step."""


def require_memory(trainer: Any) -> None:
    """MemoryShortageError unless the largest micro-batch goes forward and backward beside the optimizer's moments.

    Leaves no trace: gradients and random states are as before. Several processes agree on the answer.
    """
    rows = largest_micro_batch(trainer)
    device = trainer.args.device.type
    before = random_states(device)
    short = False
    try:
        trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        moments = [torch.zeros_like(parameter) for parameter in trainable for _ in range(2)]
        columns = trainer._remove_unused_columns(trainer.train_dataset)
        inputs = trainer._prepare_inputs(trainer.data_collator([columns[row] for row in rows]))
        trainer.model.train()
        # as in SFTTrainer.compute_loss, but for its sums over all processes, which one without memory would not reach
        outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
        (-outputs.log_probs.sum()).backward()
        del outputs, inputs, moments
    except (RuntimeError, MemoryError) as error:
        if machine_trouble(error) is None:
            raise
        short = True
    trainer.model.zero_grad(set_to_none=True)
    restore_random_states(device, before)
    if short and device == "cuda":
        torch.cuda.empty_cache()
    if bool(trainer.sum_of_processes(torch.tensor([float(short)]))[0]):
        raise MemoryShortageError


def largest_micro_batch(trainer: Any) -> list[int]:
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
