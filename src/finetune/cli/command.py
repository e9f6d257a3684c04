"""Shared code of the commands: their help, value types, `--json`, and running in a container."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

PARAMS, RECIPES = Path("params.yaml"), Path("recipes")
# Commands that need the packages of the stages: `run` commands run where the stages run, which may be a container;
# `ahead` commands run wherever the packages are installed.
Needs = Literal["run", "ahead"]
Value = TypeVar("Value")


class Command(click.Command):
    """A command whose help ends with an example and its own exit codes."""

    def __init__(
        self,
        *arguments: Any,
        example: str = "",
        exits: Mapping[int, str] | None = None,
        needs: Needs | None = None,
        aliases: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.example, self.exits, self.needs, self.aliases = example, exits or {}, needs, aliases

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command here, or in a container if params.yaml requires it; return the exit code (None for 0)."""
        if self.needs is None:
            return super().invoke(ctx)
        code = run_in_container(ctx, self.needs)
        return super().invoke(ctx) if code is None else code

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the example, the aliases, and the exit codes of this command."""
        with formatter.section("Example"):
            formatter.write_text(f"finetune {self.example}")
        if self.aliases:
            formatter.write_paragraph()
            formatter.write_text(f"Also called: {', '.join(self.aliases)}")
        if self.exits:
            with formatter.section("Exit codes"):
                formatter.write_dl([(str(code), meaning) for code, meaning in self.exits.items()])


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Turn a function into a command: `example` is its usage after `finetune`, `exits` its own exit codes."""
    return click.command(name, cls=Command, **settings)


def run_in_container(context: click.Context, needs: Needs) -> int | None:
    """Run the same command in a container if params.yaml requires it; return its exit code, or None to run it here."""
    from finetune.config.params import load_config
    from finetune.config.recipes import read_recipe
    from finetune.containers import runtime

    if needs == "ahead" and runtime.has_packages():
        return None
    name, recipe = str(context.command.name), context.params.get("recipe")
    config = read_recipe(recipe, Path())
    if needs == "ahead":  # in this machine's image, whatever machine the recipe is for
        mine = load_config(PARAMS)
        config = config.model_copy(update={"environment": mine.environment, "runtime": mine.runtime})
    engine = runtime.engine_for(name, config)
    if engine is None:
        return None
    if name == "check":  # a container has no access to this machine's processes and git settings
        check_host(recipe)
    return runtime.run(engine, name, context.obj, config, Path())


def check_host(recipe: str | None) -> None:
    """Raise ConfigError if a run is in progress in this folder, or if git has no author for a recipe's experiment."""
    from finetune.paths import Paths
    from finetune.pipeline.dvc import require_identity
    from finetune.processes.running import require_idle

    require_idle(Paths())
    if recipe is not None:
        require_identity(Path())


# ------------------------------------------------------------------------------------------------- options and values


class Count(click.ParamType[int]):
    """A positive integer."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; anything else is a usage error."""
        if isinstance(value, int):
            return value
        if not value.isdigit() or int(value) < 1:
            self.fail(f"{value!r} is not a positive integer", param, ctx)
        return int(value)


class Price(click.ParamType[float]):
    """An amount of money above 0."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; anything else is a usage error."""
        try:
            price = float(value)
        except ValueError:
            price = 0.0
        if not 0 < price < 1e6:
            self.fail(f"{value!r} is not a valid price", param, ctx)
        return price


class Seeds(click.ParamType[list[int]]):
    """A list of seeds, like 1,2,3."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the seeds; anything else is a usage error."""
        names = value.replace(",", " ").split()
        if not names or not all(name.isdigit() for name in names):
            self.fail(f"{value!r} is not a list of seeds, like 1,2,3", param, ctx)
        return [int(name) for name in names]


def complete_recipe(context: click.Context, parameter: click.Parameter, start: str) -> list[str]:  # noqa: ARG001
    """Return the recipes that begin with the typed text, for shell completion."""
    return sorted(path.stem for path in RECIPES.glob(f"{start}*.yaml"))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
recipe_argument = click.argument(
    "recipe", required=False, shell_complete=complete_recipe, help="A recipe (default: params.yaml as it is)."
)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def as_report(as_json: bool, make: Callable[[], Value], *, is_long: bool = False) -> Value:
    """Run a command; with `as_json`, print its result as JSON, and drop its text or print that on standard error."""
    if not as_json:
        return make()
    with redirect_stdout(sys.stderr if is_long else StringIO()):
        value = make()
    print_json(value)
    return value
