"""Detect training problems: non-finite numbers, lack of memory, a jump of the loss, or no learning."""

import math
from collections.abc import Sequence
from statistics import median

from finetune.config.train import TrainParams
from finetune.console import say, short
from finetune.errors import ConfigError, MachineError

NAMED = 8  # example ids in an error
WINDOW, JUMP = 20, 1.5  # a spike is a logged loss above 1.5 times the median of the previous 20
LEAST_GAIN = 0.01  # of the validation loss before the first step; a smaller reduction is reported as no learning


def require_finite(what: str, value: float, step: int, learning_rate: float, ids: Sequence[str]) -> None:
    """Raise ConfigError, naming the examples, if a number on which the next step depends is not finite."""
    if math.isfinite(value):
        return
    named = ", ".join(short(name, 40) for name in ids[:NAMED]) + (f" and {len(ids) - NAMED} more" * (len(ids) > NAMED))
    of = f" on the examples {named}" if ids else ""
    raise ConfigError(
        "params.yaml: train.learning_rate",
        f"the {what} after step {step} is {value}{of}; that step was not taken, and earlier checkpoints are kept",
        f"use less than {learning_rate:g}, or check these examples",
    )


def smaller_micro_batch(params: TrainParams) -> TrainParams:
    """Return the same run with a smaller micro-batch and more accumulation, so the effective batch size is unchanged.

    The size is halved if it is even, and otherwise reduced to its largest divisor; evaluations use no more rows at
    once. Raises MachineError if both are already 1.
    """
    train = params.train
    micro, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if micro == 1 and train.per_device_eval_batch_size == 1:
        raise MachineError(
            "params.yaml: train.per_device_train_batch_size",
            "the longest row alone does not fit in the memory of this machine",
            "use a smaller train.max_length, activation_checkpointing, quantization: nf4 or a "
            "smaller base (./finetune plan shows the memory of each)",
        )
    less = next((size for size in range(micro // 2, 0, -1) if micro % size == 0), 1)
    sizes = {
        "per_device_train_batch_size": less,
        "gradient_accumulation_steps": accumulation * micro // less,
        "per_device_eval_batch_size": min(train.per_device_eval_batch_size, less),
    }
    return params.model_copy(update={"train": train.model_copy(update=sizes)})


def warn_of_smaller_batch(params: TrainParams) -> None:
    """Print what a lack of memory has changed and what it has not."""
    train = params.train
    say(
        "warning: the largest micro-batch does not fit in memory, so it is reduced to "
        f"{train.per_device_train_batch_size} "
        f"rows, accumulated {train.gradient_accumulation_steps} times, the same effective batch size of "
        f"{train.effective_batch_size}"
    )


def find_spikes(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float, float]]:
    """Return the logged steps whose loss jumped: (step, loss, median of the previous losses)."""
    found = []
    for at, (step, loss) in enumerate(losses):
        before = [value for _, value in losses[max(at - WINDOW, 0) : at]]
        if len(before) >= WINDOW // 2 and loss > JUMP * median(before):
            found.append((step, loss, median(before)))
    return found


def describe_health(losses: Sequence[tuple[int, float]], first: float | None, best: float) -> list[str]:
    """Describe problems of a finished run in sentences; empty if there are none.

    `losses` are (step, training loss) as logged; `first` is the validation loss before the first step, `best` that of
    the kept checkpoint.
    """
    sentences = []
    spikes = find_spikes(losses)
    if spikes:
        step, loss, usual = max(spikes, key=lambda spike: spike[1] / spike[2])
        sentences.append(
            f"the training loss jumped {len(spikes)} times, most at step {step} ({loss:.3f}, {usual:.3f} before); "
            "try a smaller learning rate or max_grad_norm, and check the rows of these steps"
        )
    if first is not None and best > first * (1 - LEAST_GAIN):
        sentences.append(
            f"no progress: the validation loss is {best:.4f}, compared with {first:.4f} before the first step; "
            "raise train.learning_rate or adapter.r, or check whether the answers follow from the prompts"
        )
    return sentences
