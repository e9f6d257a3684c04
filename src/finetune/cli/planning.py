"""Before a run: check, plan, rehearse, doctor."""

import os
from pathlib import Path

import click

from finetune.cli.command import (
    Count,
    Price,
    as_report,
    check_host,
    command,
    complete_recipe,
    json_option,
    print_json,
    recipe_argument,
)


@command(needs="run", example="check h100")
@recipe_argument
@json_option
def check(recipe: str | None, as_json: bool) -> None:
    """Check that the configuration can run on this machine.

    Prints nothing if it can.
    """
    from finetune.commands.check import check

    if "FINETUNE_STARTED" not in os.environ:  # else the host was checked before this container was started
        check_host(recipe)
    check(Path(), recipe)
    if as_json:
        print_json({"ready": True})


@command(needs="ahead", example="plan h100 --examples 15000 --price 2.5", exits={2: "a finding would stop the run"})
@recipe_argument
@click.option("--examples", type=Count(), help="Number of training examples (default: the rows in data/prepared).")
@click.option("--length", type=Count(), help="Length of those examples in tokens (default: train.max_length).")
@click.option("--price", type=Price(), help="Price of one device per hour, to print the cost of the training steps.")
@click.option("--probe", is_flag=True, help="Measure the speed of this machine on two layers with random weights.")
@json_option
def plan(
    recipe: str | None, examples: int | None, length: int | None, price: float | None, probe: bool, as_json: bool
) -> int:
    """Predict steps, memory, time and cost; find mistakes."""
    from finetune.commands.plan import run

    return run(Path(), recipe, examples, length, price, probe=probe, as_json=as_json)


@command(needs="ahead", example="rehearse h100", exits={2: "a check failed"})
@recipe_argument
@json_option
def rehearse(recipe: str | None, as_json: bool) -> None:
    """Run every stage on a base shrunken to two layers.

    Uses your own rows, kills the training and resumes it.
    """
    from finetune.commands.rehearse.command import run

    as_report(as_json, lambda: run(Path(), recipe), is_long=True)


@command(example="doctor --recipe h100", exits={4: "this machine does not support the recipe"})
@click.option("--recipe", shell_complete=complete_recipe, help="A recipe (default: params.yaml as it is).")
@click.option("--quick", is_flag=True, help="Skip checks that need torch: no memory prediction, no suggested recipe.")
@json_option
def doctor(recipe: str | None, quick: bool, as_json: bool) -> int:
    """Check this machine and show which recipe fits it."""
    from finetune.commands.doctor.command import run

    return run(Path(), recipe, as_json, quick)
