"""During a run: status, stop, detach, join."""

import click

from finetune.cli.command import PARAMS, command, json_option


@command(example="status")
@json_option
def status(as_json: bool) -> int:
    """Show the current run, or how the last one ended."""
    from finetune.paths import Paths
    from finetune.processes.status import show

    return show(Paths(), as_json)


@command(example="stop")
def stop() -> int:
    """Stop the current run; running the same command again resumes it."""
    from finetune.paths import Paths
    from finetune.processes.detach import stop

    return stop(Paths())


@command(example="detach train-h100")
@click.argument("target", help="repro or train-RECIPE.")
def detach(target: str) -> int:
    """Start a make target in the background.

    This is what `make train-h100 DETACH=1` does.
    """
    from finetune.paths import Paths
    from finetune.processes.detach import start

    return start(Paths(), target)


@command(needs="run", example="join")
def join() -> None:
    """Join the training of the first node (see jobs/)."""
    from finetune.config.params import load_config
    from finetune.config.train import TrainParams
    from finetune.paths import Paths
    from finetune.train.launch import join

    join(TrainParams.select_from(load_config(PARAMS)), Paths())
