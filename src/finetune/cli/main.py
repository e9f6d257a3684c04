"""`finetune COMMAND`: find the command in the files of this folder, run it, and turn errors into exit codes.

A command is a function that imports what it needs when it is called, so that light commands start quickly.
"""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from finetune import VERSION
from finetune.cli.command import Command, print_json
from finetune.errors import ConfigError, FinetuneError, InterruptedRunError, MachineError
from finetune.hardware.host import calm_threads
from finetune.processes.signals import SIGNALS

# The files with commands, in the order in which a user needs them; each file's docstring begins with its heading.
FILES = ("recipes", "planning", "stages", "runs", "results", "comparisons", "sharing", "reference")
COMPLETION = "_FINETUNE_COMPLETE"  # set by the shell while it completes a command line
EXIT_CODES = {
    0: "done",
    1: "a bug in finetune",
    2: "usage or configuration error",
    3: "invalid data or evidence",
    4: "the hardware or the system does not support it",
    5: "interrupted; run the same command again to resume",
}


@cache
def load(file: str) -> ModuleType:
    """Return the module of a file with commands."""
    return importlib.import_module(f"finetune.cli.{file}")


def commands_in(file: str) -> list[Command]:
    """Return the commands of a file, in their order."""
    module = load(file)
    found = [value for value in vars(module).values() if isinstance(value, Command)]
    return [one for one in found if one.callback and one.callback.__module__ == module.__name__]


def all_commands() -> Iterator[tuple[str, list[Command]]]:
    """Yield each file's heading and commands."""
    for file in FILES:
        yield str(load(file).__doc__).split(":")[0], commands_in(file)


class Finetune(click.Group):
    """The commands of all files; a file is imported when it is searched."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return all names, in the order of the help."""
        return [str(one.name) for _, commands in all_commands() for one in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command with this name or alias."""
        for file in FILES:
            for one in commands_in(file):
                if cmd_name in (one.name, *one.aliases):
                    return one
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with; a usage error suggests the nearest one."""
        found = self.get_command(ctx, args[0])
        if found is None and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=self.list_commands(ctx), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under the headings of their files."""
        width = max(len(name) for name in self.list_commands(ctx))
        for heading, commands in all_commands():
            with formatter.section(heading):
                rows = [(str(one.name).ljust(width), one.get_short_help_str(100)) for one in commands if not one.hidden]
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write an example and the meaning of the exit codes."""
        with formatter.section("Example"):
            formatter.write_text("finetune plan h100 --examples 15000")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


@click.group(cls=Finetune, context_settings={"max_content_width": 100, "show_default": True})
@click.version_option(VERSION, message="finetune %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' own messages.")
@click.option(
    "--runtime", metavar="NAME", help="Where stages run: native, docker or podman (default: runtime in params.yaml)."
)
@click.option("--image", metavar="NAME", help="The image to run stages in (default: the one built from requirements/).")
def cli(debug: bool, runtime: str | None, image: str | None) -> None:
    """Fine-tune a language model with LoRA, from raw rows to a verdict: deploy, iterate or abort.

    finetune COMMAND --help shows a command's options, their defaults and an example.
    """
    for name, value in (("FINETUNE_RUNTIME", runtime), ("FINETUNE_IMAGE_NAME", image)):
        if value is not None:
            os.environ[name] = value
    if not debug:
        from finetune.console import quiet_libraries

        quiet_libraries()


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if COMPLETION in os.environ:
        return shell_complete(cli, {}, "finetune", COMPLETION, os.environ[COMPLETION])
    calm_threads()
    find_own_programs()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGUSR1, _terminate)
    if "FINETUNE_STARTED" in os.environ:  # in a container: set the caller's umask; signals are handled from now on
        os.umask(int(os.environ["FINETUNE_UMASK"], 8))
        Path(os.environ["FINETUNE_STARTED"]).touch()
    options, name = split_words(words)
    try:
        with cli.make_context("finetune", list(words), obj=list(words)) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code
    except click.ClickException as error:
        return _print_usage_error(error)
    except BrokenPipeError:  # the reader has closed the pipe, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        print(f"error: {name} was interrupted; run it again", file=sys.stderr)
        return InterruptedRunError.exit_code
    except (FinetuneError, OSError, MemoryError, RuntimeError) as error:
        return _print_error(error, name, debug="--debug" in options, as_json="--json" in words)


def find_own_programs() -> None:
    """Put this environment's programs on the PATH: DVC starts the stages with one of them."""
    own, paths = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath).split(os.pathsep)
    if own not in paths:
        os.environ["PATH"] = os.pathsep.join([own, *paths])


def split_words(words: list[str]) -> tuple[list[str], str]:
    """Return (the options before the command, the command)."""
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            return options, word
        options.append(word)
        if word in ("--runtime", "--image"):  # their value is the next word
            next(rest, None)
    return options, "finetune"


def _print_usage_error(error: click.ClickException) -> int:
    """Print the problem of the command line and the help command in one line; return the exit code."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "finetune"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message())
        return ConfigError.exit_code
    told = _usage_message(error)
    print(f"error: {path}: {told}{' See' if told.endswith('?') else '; see'} {path} --help", file=sys.stderr)
    return ConfigError.exit_code


def _usage_message(error: click.ClickException) -> str:
    """Return the message of a usage error, with the nearest valid name."""
    if isinstance(error, click.exceptions.NoSuchCommand):
        near = get_close_matches(error.command_name, cli.list_commands(click.Context(cli)), n=1)
        return f"no such command: {error.command_name}" + (f"; did you mean {near[0]}?" if near else "")
    if isinstance(error, click.NoSuchOption):
        near = (error.possibilities or [])[:1]
        return f"no such option: {error.option_name}" + (f"; did you mean {near[0]}?" if near else "")
    text = " ".join(error.format_message().split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _print_error(error: Exception, command: str, *, debug: bool, as_json: bool) -> int:
    """Print an error on standard error and, with --json, as JSON on standard output; return its exit code.

    An error caused by neither the user nor the machine is raised again.
    """
    from finetune.console import printable
    from finetune.hardware.failures import find_machine_problem

    if not isinstance(error, FinetuneError):
        trouble = find_machine_problem(error)
        if debug or trouble is None:
            raise error
        error = MachineError(command, trouble, "earlier complete files are kept; run the command again")
    if debug:
        traceback.print_exc()
    print(f"error: {printable(str(error))}", file=sys.stderr)
    if as_json:
        print_json({"exit_code": error.exit_code, "problems": [problem.to_json() for problem in error.problems]})
    return error.exit_code


UNWINDING_SECONDS = 10.0
_unwinding_since = -UNWINDING_SECONDS


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Unwind on SIGTERM and SIGUSR1 as on Ctrl-C, which removes partial files; ignore repeated signals meanwhile."""
    global _unwinding_since
    now = time.monotonic()
    if now - _unwinding_since > UNWINDING_SECONDS:
        _unwinding_since = now
        raise KeyboardInterrupt


def run_and_exit() -> NoReturn:
    """Run the command `finetune`; a signal that arrives after its end must not cause a traceback."""
    code = main()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
