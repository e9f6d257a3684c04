"""`python -m finetune COMMAND`: the stages and the small commands around them.

A stage is imported only when it is run, so that the light commands answer at once.
"""

import argparse
import importlib
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from finetune.artifacts import pipeline_lock
from finetune.config import load_config
from finetune.console import printable, quiet_libraries
from finetune.errors import FinetuneError, InterruptedRunError, MachineError
from finetune.machine import calm_threads, machine_trouble
from finetune.paths import Paths

STAGES = ("prepare", "validate", "train", "evaluate", "decide")
PARAMS = Path("params.yaml")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage in STAGES:
        commands.add_parser(stage, help=f"run the {stage} stage on params.yaml")
    commands.add_parser("gate", help="exit with the verdict: 0 deploy, 10 iterate, 20 abort")
    commands.add_parser("report", help="tell the verdict and where its report is")
    commands.add_parser("check", help="check params.yaml and say nothing if it is right")
    commands.add_parser("exps", help="compare the experiments")
    commands.add_parser("recipes", help="list the recipes")
    use = commands.add_parser("use", help="put a recipe's sections into params.yaml")
    use.add_argument("recipe")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    options = build_parser().parse_args(arguments)
    calm_threads()
    if not options.debug:
        quiet_libraries()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return run_command(options)
    except FinetuneError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        trouble = machine_trouble(error)
        if options.debug or trouble is None:
            raise
        print(f"error: {options.command}: {trouble}; what was whole before is kept, run it again then", file=sys.stderr)
        return MachineError.exit_code
    except KeyboardInterrupt:
        print(f"error: {options.command} was interrupted; nothing half-done is left, run it again", file=sys.stderr)
        return InterruptedRunError.exit_code


def run_command(options: argparse.Namespace) -> int:
    """Dispatch; gives the exit code."""
    paths = Paths()
    if options.command in STAGES:
        config = load_config(PARAMS)
        stage = importlib.import_module(f"finetune.{options.command}.stage")
        with pipeline_lock(paths.work / "pipeline.lock", options.command):
            stage.run(config, paths)
        return 0
    if options.command in ("gate", "report"):
        from finetune.gate import show_decision

        code = show_decision(paths)
        return code if options.command == "gate" else 0
    if options.command == "check":
        load_config(PARAMS)
        return 0
    if options.command == "exps":
        from finetune import experiments

        experiments.show()
        return 0
    from finetune import recipes

    if options.command == "use":
        recipes.use(Path("recipes"), options.recipe, PARAMS)
    else:
        recipes.show(Path("recipes"), PARAMS)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """SIGTERM unwinds like Ctrl-C, so that partial files are removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
