"""Recipes: recipes, use, pin."""

from pathlib import Path

import click

from finetune.cli.command import (
    PARAMS,
    RECIPES,
    as_report,
    command,
    complete_recipe,
    json_option,
    run_in_container,
)

named_recipe = click.argument("recipe", shell_complete=complete_recipe, help="A recipe in recipes/.")


@command(example="recipes")
@click.option("--table", is_flag=True, help="Print the table of recipes/README.md, with predicted memory and time.")
@json_option
@click.pass_context
def recipes(context: click.Context, table: bool, as_json: bool) -> int | None:
    """List the recipes, and how params.yaml differs from its recipe."""
    if not table:
        from finetune.config.recipes import show

        as_report(as_json, lambda: show(RECIPES, PARAMS))
        return None
    code = run_in_container(context, "ahead")
    if code is None:
        from finetune.commands.plan import recipe_table

        print("\n".join(recipe_table(Path())))
    return code


@command(example="use tiny")
@named_recipe
def use(recipe: str) -> None:
    """Write a recipe to params.yaml.

    Your data, evaluation and criteria do not change.
    """
    from finetune.config.recipes import use

    use(RECIPES, recipe, PARAMS)


@command(example="pin h100")
@named_recipe
def pin(recipe: str) -> None:
    """Pin a recipe's base model and kernel to their latest commits."""
    from finetune.config.pins import pin

    pin(RECIPES, recipe, PARAMS)
