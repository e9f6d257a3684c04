"""The run's arithmetic, computed by hand; tests of the trainer compare it with transformers."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune.config.params import Config
from finetune.plan.schedule import plan_schedule
from finetune.reports.validation import Schedule


@pytest.fixture
def plan(change: Callable[..., Config]) -> Callable[..., Schedule]:
    """`plan(238, warmup_steps=50)`: return the schedule of 2 x 8 examples per step, 3 epochs, with keys changed."""

    def planned(examples: int, devices: int = 1, **changed: Any) -> Schedule:
        keys = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "num_train_epochs": 3,
            "warmup_steps": 0,
            "logging_steps": 10,
            "eval_steps": 20,
            "save_steps": 50,
        }
        return plan_schedule(
            change(**{f"train.{key}": value for key, value in (keys | changed).items()}).train, examples, devices
        )

    return planned


def test_the_cpu_recipe_has_45_steps(plan: Callable[..., Schedule]) -> None:
    """238 examples are 119 batches of 2, 15 steps of 8 batches (the last of 7), 45 steps in 3 epochs; no save at 50."""
    assert plan(238) == Schedule(
        examples=238,
        effective_batch_size=16,
        steps_per_epoch=15,
        steps=45,
        warmup_steps=0,
        evaluations=3,
        saves=1,
        logs=4,
    )
    assert plan(238).to_json()["steps"] == 45


@pytest.mark.parametrize(
    ("examples", "per_epoch"), [(1, 1), (2, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3), (238, 15), (240, 15)]
)
def test_a_partial_step_counts_as_a_step(plan: Callable[..., Schedule], examples: int, per_epoch: int) -> None:
    """The rest of an epoch is not carried over: one more example can add a step to each epoch."""
    assert plan(examples).steps_per_epoch == per_epoch
    assert plan(examples).steps == 3 * per_epoch


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.5, 8), (1, 15), (1.5, 23), (2.01, 31), (3.0, 45)])
def test_a_part_of_an_epoch_is_rounded_up(plan: Callable[..., Schedule], epochs: float, steps: int) -> None:
    """With 15 steps per epoch, half an epoch is 7.5 and becomes 8; any part is at least one step."""
    assert plan(238, num_train_epochs=epochs).steps == steps


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.01, 1), (0.03, 2), (0.1, 5), (0.2, 9), (0.99, 45), (1, 1), (1.0, 1), (50, 50)]
)
def test_a_warmup_below_one_is_a_share_rounded_up(plan: Callable[..., Schedule], warmup: float, steps: int) -> None:
    """3% of 45 steps is 1.35 and becomes 2; from 1 on, the value is a number of steps, even beyond the run."""
    assert plan(238, warmup_steps=warmup).warmup_steps == steps


@pytest.mark.parametrize(("devices", "effective", "per_epoch"), [(1, 16, 938), (4, 64, 235)])
def test_devices_split_the_batches(plan: Callable[..., Schedule], devices: int, effective: int, per_epoch: int) -> None:
    """15,000 examples on four devices: 1,875 batches of 8, 235 steps of 8 batches (the last of 3)."""
    found = plan(15_000, devices)
    assert (found.effective_batch_size, found.steps_per_epoch) == (effective, per_epoch)


@pytest.mark.parametrize(("interval", "times"), [(1, 45), (15, 3), (30, 1), (45, 1), (46, 0)])
def test_an_event_happens_at_every_multiple(plan: Callable[..., Schedule], interval: int, times: int) -> None:
    """An interval as long as the run gives one event; the last step is always evaluated and saved."""
    found = plan(238, logging_steps=interval, eval_steps=interval, save_steps=interval)
    last = bool(45 % interval)
    assert (found.logs, found.evaluations, found.saves) == (times, times + last, times + last)
