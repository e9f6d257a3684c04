"""`python -m finetune COMMAND`: the stages and the small commands around them.

A stage is imported only when it is run, so that the light commands answer at once.
"""

import argparse
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from finetune.cli.options import STAGES, build_parser
from finetune.config.params import load_config, params_of
from finetune.config.recipes import read_recipe
from finetune.config.train import TrainParams
from finetune.console import printable, quiet_libraries
from finetune.containers import runtime
from finetune.errors import FinetuneError, InterruptedRunError, MachineError
from finetune.files.run_lock import pipeline_lock
from finetune.hardware.failures import machine_trouble
from finetune.hardware.host import calm_threads
from finetune.paths import Paths
from finetune.processes.signals import SIGNALS

PARAMS, RECIPES = Path("params.yaml"), Path("recipes")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(words)
    calm_threads()
    if not options.debug:
        quiet_libraries()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGUSR1, _terminate)
    if "FINETUNE_STARTED" in os.environ:  # in a container: the caller's umask, and signals are heard from now on
        os.umask(int(os.environ["FINETUNE_UMASK"], 8))
        Path(os.environ["FINETUNE_STARTED"]).touch()
    try:
        code = run_in_container(options, words)
        return run_command(options) if code is None else code
    except FinetuneError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read has heard enough, like head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        trouble = machine_trouble(error)
        if options.debug or trouble is None:
            raise
        print(f"error: {options.command}: {trouble}; what was whole before is kept, run it again then", file=sys.stderr)
        return MachineError.exit_code
    except KeyboardInterrupt:
        print(f"error: {options.command} was interrupted; nothing half-done is left, run it again", file=sys.stderr)
        return InterruptedRunError.exit_code


def run_in_container(options: argparse.Namespace, words: list[str]) -> int | None:
    """Run the same words in a container, where params.yaml says so; gives their exit code, None where they run here."""
    command = "recipes --table" if options.command == "recipes" and options.table else options.command
    if runtime.runs_here(command):
        return None
    config = read_recipe(getattr(options, "recipe", None), Path())
    if command in runtime.ANYWHERE:  # in the image of this machine's runs, whatever machine a recipe is for
        mine = load_config(PARAMS)
        config = config.model_copy(update={"environment": mine.environment, "runtime": mine.runtime})
    engine = runtime.engine_for(command, config)
    if engine is None:
        return None
    if command == "check":  # a container does not see what runs on this machine, nor its git
        _check_host(options.recipe)
    return runtime.run(engine, command, words, config, Path())


def run_command(options: argparse.Namespace) -> int:
    """Run a stage under the working tree's lock, or one of the small commands; gives the exit code."""
    if options.command in STAGES:
        config, paths = load_config(PARAMS), Paths()
        stage = importlib.import_module(f"finetune.{options.command}.stage")
        with pipeline_lock(paths.work / "pipeline.lock", options.command):
            stage.run(params_of(options.command, config), paths)
        return 0
    return SMALL_COMMANDS[options.command](options) or 0


# Each small command is imported only when it is run.


def _gate(options: argparse.Namespace) -> int:
    from finetune.commands.gate import show_decision

    gate = options.command == "gate"
    code = show_decision(Paths(), load_config(PARAMS) if gate else None)
    return code if gate else 0


def _check(options: argparse.Namespace) -> None:
    from finetune.commands.check import check

    if "FINETUNE_STARTED" not in os.environ:  # else the host has looked
        _check_host(options.recipe)
    check(Path(), options.recipe)


def _check_host(recipe: str | None) -> None:
    """ConfigError where a run is under way in this folder, or git could not keep a recipe's run as an experiment."""
    from finetune.pipeline.dvc import require_identity
    from finetune.processes.running import require_idle

    require_idle(Paths())
    if recipe is not None:
        require_identity(Path())


def _status(options: argparse.Namespace) -> int:
    from finetune.processes.status import show

    return show(Paths(), options.json)


def _stop(options: argparse.Namespace) -> int:  # noqa: ARG001
    from finetune.processes.detach import stop

    return stop(Paths())


def _detach(options: argparse.Namespace) -> int:
    from finetune.processes.detach import start

    return start(Paths(), options.target)


def _exps(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.commands.experiments.listing import show

    show(PARAMS)


def _compare(options: argparse.Namespace) -> None:
    from finetune.commands.experiments.compare import run

    run(Path(), options.a, options.b, as_json=options.json, as_markdown=options.markdown)


def _seed_runs(options: argparse.Namespace) -> None:
    from finetune.commands.experiments.seed_sweep import run

    run(Path(), options.count, options.seeds, force=options.force)


def _try(options: argparse.Namespace) -> None:
    from finetune.commands.chat import given_prompt, run

    prompt = given_prompt() if options.prompt is None else options.prompt
    run(load_config(PARAMS), Paths(), prompt, options.agent, options.max_new_tokens)


def _recipes(options: argparse.Namespace) -> None:
    from finetune.config import recipes

    if options.command == "recipes" and options.table:
        from finetune.commands.plan import recipe_table

        print("\n".join(recipe_table(Path())))
    elif options.command == "recipes":
        recipes.show(RECIPES, PARAMS)
    elif options.command == "use":
        recipes.use(RECIPES, options.recipe, PARAMS)
    else:
        recipes.pin(RECIPES, options.recipe, PARAMS)


def _plan(options: argparse.Namespace) -> int:
    from finetune.commands.plan import run

    return run(Path(), options.recipe, options.examples, options.length, options.price, probe=options.probe)


def _rehearse(options: argparse.Namespace) -> int:
    from finetune.commands.rehearse.command import run

    return run(Path(), options.recipe)


def _doctor(options: argparse.Namespace) -> int:
    from finetune.commands.doctor.command import run

    return run(Path(), options.recipe, options.json, options.quick)


def _merge(options: argparse.Namespace) -> None:
    from finetune.commands.merge import run

    config, paths = load_config(PARAMS), Paths()
    with pipeline_lock(paths.work / "pipeline.lock", options.command):
        run(config, paths)


def _verify(options: argparse.Namespace) -> None:
    from finetune.commands.verify import run

    run(Path(), options.steps, options.repeats)


def _join(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.train.launch import join

    join(TrainParams.select_from(load_config(PARAMS)), Paths())


def _findings(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.validate.codes import to_reference

    print(to_reference(), end="")


def _image(options: argparse.Namespace) -> None:
    from finetune.containers.images import run

    run(Path(), options.environment, runtime.runtime_of(load_config(PARAMS)))


def _push(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.commands.sharing.remote import push

    push(Path())


def _pull(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.commands.sharing.remote import pull

    pull(Path())


def _bundle(options: argparse.Namespace) -> None:
    from finetune.commands.sharing.bundle import run

    run(Path(), options.sign, options.output)


def _check_bundle(options: argparse.Namespace) -> None:
    from finetune.commands.sharing.check_bundle import run

    run(options.bundle, options.signers, options.identity)


SMALL_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "gate": _gate,
    "report": _gate,
    "check": _check,
    "status": _status,
    "stop": _stop,
    "detach": _detach,
    "exps": _exps,
    "compare": _compare,
    "seeds": _seed_runs,
    "try": _try,
    "recipes": _recipes,
    "use": _recipes,
    "pin": _recipes,
    "plan": _plan,
    "rehearse": _rehearse,
    "doctor": _doctor,
    "merge": _merge,
    "verify": _verify,
    "join": _join,
    "findings": _findings,
    "image": _image,
    "push": _push,
    "pull": _pull,
    "bundle": _bundle,
    "check-bundle": _check_bundle,
}


UNWINDING_SECONDS = 10.0
_unwinding_since = -UNWINDING_SECONDS


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """SIGTERM and SIGUSR1 unwind like Ctrl-C, so that partial files are removed; another one does not disturb that."""
    global _unwinding_since
    now = time.monotonic()
    if now - _unwinding_since > UNWINDING_SECONDS:
        _unwinding_since = now
        raise KeyboardInterrupt


def run_and_exit() -> NoReturn:
    """What `python -m finetune` does: a signal that comes when all is done must not end the exit in a traceback."""
    code = main()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
