"""Guards that stop a run say where and why, and warnings appear exactly when they should."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.params import Config, parse_config
from finetune.errors import ConfigError, MachineError
from finetune.train.health import describe_health, find_spikes, require_finite, smaller_micro_batch
from tests.builders.small_run import params


def test_a_non_finite_loss_names_the_examples() -> None:
    """A value that is not finite raises an error with the examples, once; a finite number passes."""
    require_finite("loss", 1.0, 7, 1e-3, ["a"])
    with pytest.raises(ConfigError) as raised:
        require_finite("loss", math.inf, 7, 1e-3, [f"row-{number}" for number in range(10)])
    assert str(raised.value) == (
        "params.yaml: train.learning_rate: the loss after step 7 is inf on the examples row-0, "
        "row-1, row-2, row-3, row-4, row-5, row-6, row-7 and 2 more; that step was not taken, "
        "and earlier checkpoints are kept; use less than 0.001, or check these examples"
    )


@given(micro=st.integers(2, 64), accumulation=st.integers(1, 16))
def test_a_smaller_micro_batch_keeps_the_effective_one(micro: int, accumulation: int) -> None:
    """The effective batch stays the same at any size, and halving ends at one row."""
    sizes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    config = parse_config(
        params(
            **{f"train__{key}": value for key, value in sizes.items()}, train__effective_batch_size=micro * accumulation
        ),
        "params.yaml",
    )
    smaller = smaller_micro_batch(config).train
    assert smaller.per_device_train_batch_size <= micro // 2
    assert smaller.per_device_train_batch_size * smaller.gradient_accumulation_steps == micro * accumulation


def test_halving_the_micro_batch_keeps_the_effective_batch(change: Callable[..., Config]) -> None:
    """16 rows become 8 rows twice; validation batches become no larger than training ones."""
    smaller = smaller_micro_batch(change()).train
    assert (smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps) == (8, 2)
    assert smaller.per_device_eval_batch_size == 8


def test_a_micro_batch_of_one_row_is_not_halved(change: Callable[..., Config]) -> None:
    """A single row cannot be halved: the hardware is insufficient."""
    one: Config = change(**{"train.per_device_train_batch_size": 1, "train.per_device_eval_batch_size": 8})
    assert smaller_micro_batch(one).train.per_device_eval_batch_size == 1  # an evaluation batch may not have fit
    one = change(**{"train.per_device_train_batch_size": 1, "train.per_device_eval_batch_size": 1})
    with pytest.raises(
        MachineError, match=r"the longest row alone does not fit in the memory of this machine; use a smaller"
    ):
        smaller_micro_batch(one)


def test_spikes_are_jumps_above_previous_losses() -> None:
    """A slow rise is not a spike, nor is the noise of the first few losses."""
    calm = [(step, 2.0 - step / 100) for step in range(30)]
    assert find_spikes(calm) == []
    assert find_spikes([(0, 2.0), (1, 9.0)]) == []
    assert [step for step, _, _ in find_spikes([*calm, (30, 4.0), (31, 1.6)])] == [30]


def test_spikes_and_a_lack_of_learning_are_described() -> None:
    """A run with a loss spike and one that learnt nothing are reported; a healthy one yields no message."""
    calm = [(step, 2.0) for step in range(30)]
    assert describe_health(calm, 2.0, 1.0) == []
    assert describe_health(calm, None, 1.0) == []
    assert "no progress: the validation loss is 1.9990, compared with 2.0000" in describe_health(calm, 2.0, 1.999)[0]
    assert "jumped 1 times, most at step 30 (4.000, 2.000 before)" in describe_health([*calm, (30, 4.0)], 2.0, 1.0)[0]
