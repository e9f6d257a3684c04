"""Help: help, as a page too."""

from collections.abc import Iterator

import click

from finetune.cli.command import Command, command
from finetune.console import markdown_table

INTRODUCTION = """# The command finetune

`./finetune COMMAND` at the top of the repository sets up `.venv` if needed and runs the command in it. After
`source .venv/bin/activate` plain `finetune COMMAND` does the same without the check. This page is what
`./finetune help --markdown` prints.

DVC runs the stages through this command, so it must be on the PATH: activate `.venv`, use the make targets, or run
`./finetune dvc repro`, which needs no activation.

## Options of all commands

They come before the command, as in `./finetune --debug train`. Every command also has `--help`.
"""
COMPLETION = """## Shell completion

To complete commands, options and recipe names, add one of these lines to your shell's start-up file:

```bash
eval "$(_FINETUNE_COMPLETE=bash_source ./finetune)"   # bash 4.4 or later, in ~/.bashrc
eval "$(_FINETUNE_COMPLETE=zsh_source ./finetune)"    # zsh, in ~/.zshrc
_FINETUNE_COMPLETE=fish_source ./finetune | source    # fish, in ~/.config/fish/config.fish
```

Use the full path of `finetune` there. Completion works for `finetune` and for `./finetune`.
"""


@command("help", example="help plan")
@click.argument("name", metavar="COMMAND", required=False, help="A command (default: all of them, in one line each).")
@click.option("--markdown", is_flag=True, help="Print docs/cli.md.")
@click.pass_context
def show_help(context: click.Context, name: str | None, markdown: bool) -> None:
    """Show the help of a command."""
    from finetune.cli.main import cli

    parent = context.parent or context
    if markdown:
        print(to_markdown(), end="")
    elif name is None:
        print(cli.get_help(parent))
    else:
        _, found, _ = cli.resolve_command(parent, [name])
        assert found is not None
        print(found.get_help(click.Context(found, info_name=found.name, parent=parent)))


def to_markdown() -> str:
    """The page of all commands."""
    from finetune.cli.main import EXIT_CODES, all_commands, cli

    lines = [INTRODUCTION, *option_rows(cli, click.Context(cli, info_name="finetune"))]
    codes = [[str(code), text] for code, text in EXIT_CODES.items()]
    lines += ["", *markdown_table(["exit code", "meaning"], codes)]
    lines += ["", COMPLETION.rstrip("\n")]
    for heading, commands in all_commands():
        lines += ["", f"## {heading}"]
        for one in commands:
            lines += ["", *section_of(one)]
    return "\n".join(lines) + "\n"


def section_of(one: Command) -> Iterator[str]:
    """A command's part of the page."""
    parent = click.Context(click.Group(), info_name="finetune")
    context = click.Context(one, info_name=str(one.name), parent=parent)
    yield f"### finetune {one.name}"
    yield from ("", " ".join((one.help or "").split()), "")
    yield f"`{' '.join(['finetune', str(one.name), *one.collect_usage_pieces(context)])}`"
    rows = option_rows(one, context)
    yield from ("", *rows, "") if rows else ("",)
    yield f"Example: `./finetune {one.example}`"
    if one.aliases:
        yield from ("", f"Also called: {', '.join(f'`{name}`' for name in one.aliases)}")
    if one.exits:
        codes = ", ".join(f"{code} {meaning}" for code, meaning in one.exits.items())
        yield from ("", f"Exit codes: {codes}.")


def option_rows(one: click.Command, context: click.Context) -> list[str]:
    """The arguments and options as a table; empty if there are none but `--help`."""
    records = [parameter.get_help_record(context) for parameter in one.params]
    rows = [[f"`{record[0]}`", record[1]] for record in records if record is not None]
    return markdown_table(["argument or option", "what it does"], rows) if rows else []
