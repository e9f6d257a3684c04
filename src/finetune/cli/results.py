"""Results: gate, report, chat, merge, verify, findings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune.cli.command import PARAMS, Count, as_report, command, json_option, print_json

if TYPE_CHECKING:
    from finetune.config.params import Config


def show_verdict(config: "Config | None", as_json: bool) -> int:
    """Print the verdict; return its exit code."""
    from finetune.commands.gate import show_decision
    from finetune.files.strict_json import read_json
    from finetune.paths import Paths

    codes: list[int] = []

    def make() -> dict[str, Any]:
        codes.append(show_decision(Paths(), config))
        return read_json(Paths().reports / "decision.json")

    as_report(as_json, make)
    return codes[0]


@command(example="gate", exits={0: "deploy", 10: "iterate", 20: "abort"})
@json_option
def gate(as_json: bool) -> int:
    """Turn the verdict into an exit code, for scripts.

    First checks that the verdict belongs to the files in this folder.
    """
    from finetune.config.params import load_config

    return show_verdict(load_config(PARAMS), as_json)


@command(example="report")
@json_option
def report(as_json: bool) -> None:
    """Print the verdict and where the report is."""
    show_verdict(None, as_json)


@command(needs="run", aliases=("try",), example='chat "message: invalid mode" --agent exception-namer')
@click.argument("prompt", required=False, help="One prompt (default: a session; prompts are read line by line).")
@click.option("--agent", help="The agent whose system prompt is used (default: the first one).")
@click.option(
    "--max-new-tokens", type=Count(), help="Maximum answer length in tokens (default: evaluate.max_new_tokens)."
)
def chat(prompt: str | None, agent: str | None, max_new_tokens: int | None) -> None:
    """Compare the answers of base and candidate to a prompt."""
    from finetune.commands.chat import run
    from finetune.config.params import load_config
    from finetune.paths import Paths

    run(load_config(PARAMS), Paths(), prompt, agent, max_new_tokens)


@command(needs="run", example="merge")
@json_option
def merge(as_json: bool) -> None:
    """Merge base and adapter into one 16-bit model.

    Writes out/merged, and compares it with base and adapter first.
    """
    from finetune.commands.merge import run
    from finetune.config.params import load_config
    from finetune.files.run_lock import pipeline_lock
    from finetune.paths import Paths

    config, paths = load_config(PARAMS), Paths()
    with pipeline_lock(paths.work / "pipeline.lock", "merge"):
        as_report(as_json, lambda: run(config, paths), is_long=True)


@command(needs="run", example="verify --steps 100", exits={3: "the repeated run differs"})
@click.option(
    "--steps", type=Count(), help="Stop at the first checkpoint at or after this step (default: the whole run)."
)
@click.option("--repeats", type=Count(), default=1, show_default=True, help="Number of repetitions.")
@json_option
def verify(steps: int | None, repeats: int, as_json: bool) -> None:
    """Repeat the finished run and compare hashes."""
    from finetune.commands.verify import run

    as_report(as_json, lambda: run(Path(), steps, repeats), is_long=True)


@command(example="findings")
@json_option
def findings(as_json: bool) -> None:
    """Print the reference of all findings (docs/findings.md)."""
    from dataclasses import asdict

    from finetune.validate.codes import all_codes, to_reference

    if as_json:
        print_json({name: asdict(code) for name, code in all_codes().items()})
    else:
        print(to_reference(), end="")
