"""The five stages, and DVC, which runs them: prepare, validate, train, evaluate, decide, dvc."""

import importlib
import os
import sys
from typing import NoReturn

import click

from finetune.cli.command import PARAMS, command


def run_stage(name: str) -> None:
    """Run a stage on params.yaml, under the working tree's lock."""
    from finetune.config.params import load_config, params_of
    from finetune.files.run_lock import pipeline_lock
    from finetune.paths import Paths

    config, paths = load_config(PARAMS), Paths()
    stage = importlib.import_module(f"finetune.{name}.stage")
    with pipeline_lock(paths.work / "pipeline.lock", name):
        stage.run(params_of(name, config), paths)


@command(needs="run", example="prepare")
def prepare() -> None:
    """Make three splits of the data sources.

    Every row is accounted for in reports/prepare.md.
    """
    run_stage("prepare")


@command(needs="run", example="validate")
def validate() -> None:
    """Tokenize the splits and find mistakes before training."""
    run_stage("validate")


@command(needs="run", example="train", exits={5: "stopped by a signal; run it again to resume from its checkpoint"})
def train() -> None:
    """Train the adapter, or resume from the newest checkpoint."""
    run_stage("train")


@command(needs="run", example="evaluate", exits={5: "stopped by a signal; run it again to resume"})
def evaluate() -> None:
    """Score baseline and candidate on the test split.

    Also measures latency and memory.
    """
    run_stage("evaluate")


@command(needs="run", example="decide")
def decide() -> None:
    """Judge the criteria and write verdict and report."""
    run_stage("decide")


@command(
    example="dvc repro",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, help="DVC's own command and options.")
def dvc(words: tuple[str, ...]) -> NoReturn:
    """Run DVC in this environment, like `dvc repro`.

    This puts the command finetune, with which DVC runs each stage, on the PATH, like `source
    .venv/bin/activate`. The exit code is DVC's.
    """
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    os.execv(sys.executable, [sys.executable, "-m", "dvc", *words])  # noqa: S606 - the user's own command line
