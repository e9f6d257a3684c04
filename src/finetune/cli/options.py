"""The command line of `python -m finetune`: the commands with their options and help, by what they are for."""

import argparse
from pathlib import Path
from typing import Any

STAGES = ("prepare", "validate", "train", "evaluate", "decide")  # in their order


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    about = "the stages, and the small commands around them"
    parser = argparse.ArgumentParser(prog="python -m finetune", description=about)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_stages, add_preparations, add_background, add_comparisons, add_proofs, add_sharing):
        add(commands)
    return parser


def add_stages(commands: Any) -> None:
    """The five stages, and the verdict that they end in."""
    for stage in STAGES:
        commands.add_parser(stage, help=f"run the {stage} stage on params.yaml")
    commands.add_parser("gate", help="exit with the verdict: 0 deploy, 10 iterate, 20 abort")
    commands.add_parser("report", help="tell the verdict and where its report is")
    commands.add_parser("findings", help="the reference of validate's findings, as docs/findings.md")


def add_preparations(commands: Any) -> None:
    """What is done before a run: recipes, plan, rehearsal, doctor."""
    listed = commands.add_parser("recipes", help="list the recipes")
    listed.add_argument("--table", action="store_true", help="the table of recipes/README.md, with what is predicted")
    for name, text in (("use", "put a recipe's sections into params.yaml"), ("pin", "pin a recipe's base to a commit")):
        commands.add_parser(name, help=text).add_argument("recipe")
    check = commands.add_parser("check", help="say nothing if params.yaml, or a recipe with it, can run here and now")
    check.add_argument("recipe", nargs="?", help="params.yaml as it is where none is named")
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


def add_background(commands: Any) -> None:
    """A run that goes on by itself, and on several nodes."""
    status = commands.add_parser("status", help="what runs in this folder and how far it is, or how the last run ended")
    status.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser("stop", help="end what runs in this folder; the same command goes on")
    detach = commands.add_parser("detach", help="start a make target in the background: make train-cpu DETACH=1")
    detach.add_argument("target", help="repro or train-RECIPE")
    commands.add_parser("join", help="on a node that is not the first: train along with it (see jobs/)")


def add_comparisons(commands: Any) -> None:
    """Runs beside each other."""
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


def add_proofs(commands: Any) -> None:
    """What can be done with a finished run."""
    attempt = commands.add_parser("try", help="ask base and candidate; a session where no prompt is given")
    attempt.add_argument("prompt", nargs="?", help="what make puts into the environment where it is left out")
    attempt.add_argument("--agent", help="whose system prompt; the first one's where it is left out")
    attempt.add_argument("--max-new-tokens", type=_count, help="evaluate.max_new_tokens where it is left out")
    commands.add_parser("merge", help="write the published adapter and its base as one model, and what that changes")
    verify = commands.add_parser("verify", help="repeat the finished run in a fresh folder and compare hashes")
    verify.add_argument("--steps", type=_count, help="up to the first checkpoint at or after this step; else all")
    verify.add_argument("--repeats", type=_count, default=1, help="how often; the spread is told where bits differ")


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
