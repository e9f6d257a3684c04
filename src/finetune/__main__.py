"""`python -m finetune COMMAND`: the stages and the small commands around them.

A stage is imported only when it is run, so that the light commands answer at once.
"""

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from finetune import runtime
from finetune.artifacts import pipeline_lock
from finetune.config import load_config
from finetune.console import printable, quiet_libraries
from finetune.errors import FinetuneError, InterruptedRunError, MachineError
from finetune.machine import calm_threads, machine_trouble
from finetune.paths import Paths
from finetune.recipes import read_recipe

STAGES = ("prepare", "validate", "train", "evaluate", "decide")
PARAMS, RECIPES = Path("params.yaml"), Path("recipes")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage in STAGES:
        commands.add_parser(stage, help=f"run the {stage} stage on params.yaml")
    commands.add_parser("gate", help="exit with the verdict: 0 deploy, 10 iterate, 20 abort")
    commands.add_parser("report", help="tell the verdict and where its report is")
    check = commands.add_parser("check", help="say nothing if params.yaml, or a recipe with it, can run here and now")
    check.add_argument("recipe", nargs="?", help="params.yaml as it is where none is named")
    status = commands.add_parser("status", help="what runs in this folder and how far it is, or how the last run ended")
    status.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser("stop", help="end what runs in this folder; the same command goes on")
    detach = commands.add_parser("detach", help="start a make target in the background: make train-cpu DETACH=1")
    detach.add_argument("target", help="repro or train-RECIPE")
    commands.add_parser("exps", help="the experiments, the best by the gate's first measure first")
    compare = commands.add_parser("compare", help="two runs' answers, cost and params, side by side")
    for name in ("a", "b"):
        compare.add_argument(name, help="an experiment, a git revision, or workspace")
    compare.add_argument("--json", action="store_true", help="as JSON")
    compare.add_argument("--markdown", action="store_true", help="as Markdown")
    seeds = commands.add_parser("seeds", help="run params.yaml under several seeds, and tell how far they lie apart")
    seeds.add_argument("--count", type=_count, help="so many, from the present seed on; 5 where nothing is said")
    seeds.add_argument("--seeds", type=_seeds, help="these, like 1,2,3")
    seeds.add_argument("--force", action="store_true", help="also past the declared looks at the test set")
    attempt = commands.add_parser("try", help="ask base and candidate; a session where no prompt is given")
    attempt.add_argument("prompt", nargs="?", help="what make puts into the environment where it is left out")
    attempt.add_argument("--agent", help="whose system prompt; the first one's where it is left out")
    attempt.add_argument("--max-new-tokens", type=_count, help="evaluate.max_new_tokens where it is left out")
    listed = commands.add_parser("recipes", help="list the recipes")
    listed.add_argument("--table", action="store_true", help="the table of recipes/README.md, with what is predicted")
    for name, text in (("use", "put a recipe's sections into params.yaml"), ("pin", "pin a recipe's base to a commit")):
        commands.add_parser(name, help=text).add_argument("recipe")
    plan = commands.add_parser("plan", help="what a recipe will do and need")
    plan.add_argument("recipe", nargs="?", help="params.yaml where none is named")
    plan.add_argument("--examples", type=_count, help="plan for so many training examples as long as max_length")
    plan.add_argument("--length", type=_count, help="of these examples, in tokens; max_length where it is left out")
    plan.add_argument("--price", type=_price, help="of one device and hour, to tell the cost")
    plan.add_argument("--probe", action="store_true", help="measure this machine for the time")
    rehearse = commands.add_parser("rehearse", help="run every stage of a recipe on a shrunken base")
    rehearse.add_argument("recipe", nargs="?", help="params.yaml where none is named")
    doctor = commands.add_parser("doctor", help="what this machine has, what it lacks, and the recipe that fits best")
    doctor.add_argument("--recipe", help="params.yaml where none is named")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.add_argument("--quick", action="store_true", help="only what needs no torch")
    commands.add_parser("merge", help="write the published adapter and its base as one model, and what that changes")
    verify = commands.add_parser("verify", help="repeat the finished run in a fresh folder and compare hashes")
    verify.add_argument("--steps", type=_count, help="up to the first checkpoint at or after this step; else all")
    verify.add_argument("--repeats", type=_count, default=1, help="how often; the spread is told where bits differ")
    commands.add_parser("join", help="on a node that is not the first: train along with it (see jobs/)")
    commands.add_parser("findings", help="the reference of validate's findings, as docs/findings.md")
    add_sharing(commands)
    return parser


def add_sharing(commands: Any) -> None:
    """The commands that build images and hand runs on."""
    image = commands.add_parser("image", help="build the image that the stages of an environment run in")
    image.add_argument("environment", choices=("cpu", "cuda"))
    commands.add_parser("push", help="upload the run's data, adapter and cache to DVC's remote, checked first")
    commands.add_parser("pull", help="restore the run of this commit from DVC's remote, and check it")
    bundle = commands.add_parser("bundle", help="one archive to hand on: adapter, report, params, bill of materials")
    bundle.add_argument("--sign", type=Path, metavar="KEY", help="an SSH key to sign it with")
    bundle.add_argument("--output", type=Path, help="where to; out/bundle where it is left out")
    check = commands.add_parser("check-bundle", help="whether a bundle is whole, and what it carries")
    check.add_argument("bundle", type=Path)
    check.add_argument("--signers", type=Path, help="whose signatures you trust, as ssh-keygen has it")
    check.add_argument("--identity", help="whose signature it must be; any of them where it is left out")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _seeds(text: str) -> list[int]:
    names = text.replace(",", " ").split()
    if not names or not all(name.isdigit() for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds, like 1,2,3")
    return [int(name) for name in names]


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = 0.0
    if not 0 < price < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no price")
    return price


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(words)
    calm_threads()
    if not options.debug:
        quiet_libraries()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGUSR1, _terminate)
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
    config = read_recipe(options.recipe if command == "check" else None, Path())
    engine = runtime.engine_for(command, config)
    if engine is None:
        return None
    if command == "check":  # a container does not see what runs on this machine
        from finetune.background.running import require_idle

        require_idle(Paths())
    return runtime.run(engine, command, words, config, Path())


def run_command(options: argparse.Namespace) -> int:
    """Run a stage under the working tree's lock, or one of the small commands; gives the exit code."""
    if options.command in STAGES:
        config, paths = load_config(PARAMS), Paths()
        stage = importlib.import_module(f"finetune.{options.command}.stage")
        with pipeline_lock(paths.work / "pipeline.lock", options.command):
            stage.run(config, paths)
        return 0
    return SMALL_COMMANDS[options.command](options) or 0


# Each small command is imported only when it is run.


def _gate(options: argparse.Namespace) -> int:
    from finetune.gate import show_decision

    gate = options.command == "gate"
    code = show_decision(Paths(), load_config(PARAMS) if gate else None)
    return code if gate else 0


def _check(options: argparse.Namespace) -> None:
    from finetune.ready import check

    check(Path(), options.recipe)


def _status(options: argparse.Namespace) -> int:
    from finetune.background.status import show

    return show(Paths(), options.json)


def _stop(options: argparse.Namespace) -> int:  # noqa: ARG001
    from finetune.background.command import stop

    return stop(Paths())


def _detach(options: argparse.Namespace) -> int:
    from finetune.background.command import start

    return start(Paths(), options.target)


def _exps(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.experiments.table import show

    show(PARAMS)


def _compare(options: argparse.Namespace) -> None:
    from finetune.experiments.compare import run

    run(Path(), options.a, options.b, as_json=options.json, as_markdown=options.markdown)


def _seed_runs(options: argparse.Namespace) -> None:
    from finetune.experiments.seeds import run

    run(Path(), options.count, options.seeds, force=options.force)


def _try(options: argparse.Namespace) -> None:
    from finetune.attempt import given_prompt, run

    prompt = given_prompt() if options.prompt is None else options.prompt
    run(load_config(PARAMS), Paths(), prompt, options.agent, options.max_new_tokens)


def _recipes(options: argparse.Namespace) -> None:
    from finetune import recipes

    if options.command == "recipes" and options.table:
        from finetune.planner import recipe_table

        print("\n".join(recipe_table(Path())))
    elif options.command == "recipes":
        recipes.show(RECIPES, PARAMS)
    elif options.command == "use":
        recipes.use(RECIPES, options.recipe, PARAMS)
    else:
        recipes.pin(RECIPES, options.recipe, PARAMS)


def _plan(options: argparse.Namespace) -> int:
    from finetune.planner import run

    return run(Path(), options.recipe, options.examples, options.length, options.price, probe=options.probe)


def _rehearse(options: argparse.Namespace) -> int:
    from finetune.rehearse.command import run

    return run(Path(), options.recipe)


def _doctor(options: argparse.Namespace) -> int:
    from finetune.doctor.command import run

    return run(Path(), options.recipe, options.json, options.quick)


def _merge(options: argparse.Namespace) -> None:
    from finetune.merge import run

    config, paths = load_config(PARAMS), Paths()
    with pipeline_lock(paths.work / "pipeline.lock", options.command):
        run(config, paths)


def _verify(options: argparse.Namespace) -> None:
    from finetune.verify import run

    run(Path(), options.steps, options.repeats)


def _join(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.train.launch import join

    join(load_config(PARAMS), Paths())


def _findings(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.validate.codes import to_reference

    print(to_reference(), end="")


def _image(options: argparse.Namespace) -> None:
    from finetune.images import run

    run(Path(), options.environment)


def _push(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.sharing.remote import push

    push(Path())


def _pull(options: argparse.Namespace) -> None:  # noqa: ARG001
    from finetune.sharing.remote import pull

    pull(Path())


def _bundle(options: argparse.Namespace) -> None:
    from finetune.sharing.bundle import run

    run(Path(), options.sign, options.output)


def _check_bundle(options: argparse.Namespace) -> None:
    from finetune.sharing.check_bundle import run

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


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """SIGTERM and SIGUSR1 unwind like Ctrl-C, so that partial files are removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
