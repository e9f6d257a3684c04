"""Experiments: exps, compare, seeds, sweep."""

from pathlib import Path

import click

from finetune.cli.command import PARAMS, Count, Seeds, as_report, check_host, command, json_option


@command(example="exps")
@json_option
def exps(as_json: bool) -> None:
    """List the experiments, the best first.

    They are sorted by the metric of the gate's first criterion.
    """
    from finetune.commands.experiments.listing import show

    as_report(as_json, lambda: show(PARAMS))


@command(example="compare main workspace")
@click.argument("a", help="An experiment, a git revision, or workspace.")
@click.argument("b", default="workspace", help="Another one.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@json_option
def compare(a: str, b: str, markdown: bool, as_json: bool) -> None:
    """Compare two runs: paired differences, cost, params."""
    from finetune.commands.experiments.compare import run

    run(Path(), a, b, as_json=as_json, as_markdown=markdown)


@command(example="seeds --count 5")
@click.option("--count", type=Count(), help="Number of seeds to run, starting with the current one (default: 5).")
@click.option("--seeds", "named", type=Seeds(), help="Run these seeds, like 1,2,3.")
@click.option("--force", is_flag=True, help="Continue beyond the declared looks at the test set (decide.looks).")
@json_option
def seeds(count: int | None, named: list[int] | None, force: bool, as_json: bool) -> None:
    """Run several seeds and report their spread."""
    from finetune.commands.experiments.seed_sweep import run

    check_host(None)
    as_report(as_json, lambda: run(Path(), count, named, force=force), is_long=True)


@command(example="sweep")
def sweep() -> None:
    """Example of a search: four runs over learning rate and rank."""
    from finetune.commands.experiments.listing import show
    from finetune.errors import DataError
    from finetune.pipeline.dvc import run_dvc

    grid = ["-S", "train.learning_rate=1.0e-3,2.0e-3", "-S", "adapter.r=8,16"]
    for words in (["exp", "run", "--queue", *grid], ["exp", "run", "--run-all"]):
        if run_dvc(Path(), words):
            raise DataError("sweep", f"dvc {' '.join(words[:3])} failed; the reason is printed above")
    show(PARAMS)
