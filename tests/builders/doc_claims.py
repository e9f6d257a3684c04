"""Checks that targets, commands, paths, keys, codes and links on the pages exist.

    make rpero                   make rpero: no such target
    ./finetune plna h100         finetune: no command plna
    `train.warmup_stepz`         no key of params.yaml

Each check takes a page's text and yields a line for each claim that does not hold. Prose is ignored: only code spans,
fenced blocks, links and indented blocks contain claims.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

from finetune.cli.main import all_commands, cli
from finetune.config.loading import read_yaml
from finetune.config.params import Config
from tests.builders.doc_keys import has_key, packages, wrong_codes, wrong_keys
from tests.builders.doc_text import FENCED, ROOT, code_of, indented_of

RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
PLACEHOLDER = {"...", "...`", "name", "x", "RECIPE", "…"}
WORDS = {"make", "dvc", "git", "python", "cd", "ssh", "scp", "rsync", "source", "export", "sbatch", "squeue", "scancel"}
WORDS |= {
    "./finetune",
    "sky",
    "apptainer",
    "pip",
    ".venv/bin/pip",
    ".venv/bin/python",
    ".venv/bin/hf",
}  # the commands of a shell block
START = r"(?:^|&& |\|\|? |[(;] ?|: )(?:[A-Z_]+=\S* )*"  # where a command begins, with its environment variables
# Files that a run writes in addition to those in dvc.yaml.
MADE = r"""out/merged|out/bundle(/.*)?|out|reports|work|data/prepared/(dropped|risks|train|validation|test)\.jsonl
|data/(prepared|validated)/manifest\.json|work/(prepare|evaluate|checkpoints|tensorboard|rehearsal|smollm2-135m-instruct)(/.*)?|work/[\w.<>-]+\.(log|json|lock)
|data/prepared/[*]\.jsonl|\.venv(/.*)?|\.dvc/(config\.local|tmp(/.*)?)|reports/[*]\.(json|tsv)"""
GENERATED = re.compile(MADE.replace("\n", ""))
NO_FILES = re.compile(  # examples of a user's files, and files of other programs
    r"(forum|cards|test|rows|dropped|risks|latency|predictions|train|validation)\.\w+(\.\w+)?|config\.json|tokenizer\.json"
    r"|manifest\.json|adapter_model\.safetensors|finetune-[\w<>-]+\.(tar\.gz|sif)|x\.(tar\.gz|sif)|sbom\.cdx\.json|slurm-<job>\.log"
)


# ---------------------------------------------------------------------------------------------------------- commands


@cache
def targets() -> set[str]:
    """Return the Makefile's targets; train-% is one target per recipe."""
    found = set(re.findall(r"^([a-z][a-z%-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    return (found - {"train-%"}) | {f"train-{name}" for name in (*RECIPES, "...")}


@cache
def variables() -> str:
    """Return the texts that define the variables of make targets."""
    places = (
        "Makefile",
        "requirements/setup.sh",
        "src/finetune/containers/images.py",
        "Dockerfile.cpu",
        "Dockerfile.cuda",
    )
    return "\n".join((ROOT / place).read_text(encoding="utf-8") for place in places)


def wrong_targets(text: str) -> Iterator[str]:
    """Check `make TARGET NAME=value`: the target, the names, and the recipe among the values."""
    command = re.compile(rf"{START}make((?: (?:[A-Z_]+=\S*|[a-z][\w.-]*))*)")
    printed = set(indented_of(text))  # a sentence in output may begin with a command
    for line in code_of(text):
        code, _, comment = re.sub(r'"[^"]*"', "_", line).partition(" #")
        first = [words.split()[:1] for words in command.findall(comment.strip())]
        for words in [found.split()[: 1 if line in printed else None] for found in command.findall(code)] + first:
            for word in words:
                name, given, _ = word.rstrip(",;)").partition("=")
                if not given and name.rstrip(".") not in targets() and name not in targets():
                    yield f"make {name}: no such target"
                if given and not re.search(rf"\b{name}\b", variables()):
                    yield f"make {word}: nothing reads {name}"
    for name in re.findall(r"(?:slurm\.sh |--env RECIPE=)([\w-]+)", text):
        if name not in RECIPES:
            yield f"job of {name}: no such recipe"


Parser = argparse.ArgumentParser | click.Command


def choices(parser: Parser) -> dict[str, Any]:
    """Return a parser's subcommands, of DVC's argparse or of click."""
    if isinstance(parser, click.Group):
        commands = [one for _, found in all_commands() for one in found]
        return {str(name): one for one in commands for name in (one.name, *one.aliases)}
    if isinstance(parser, click.Command):
        return {}
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def options(parser: Parser) -> set[str]:
    """Return a parser's options."""
    if isinstance(parser, click.Command):
        return {name for one in parser.get_params(click.Context(parser)) for name in one.opts}
    return set(parser._option_string_actions)


def wrong_words(words: list[str], parser: Parser, told: str) -> Iterator[str]:
    """Yield the subcommands and options of a command line that the parser does not have."""
    from dvc.cli.parser import get_main_parser

    while words and (words[0].startswith("-") or words[0] in choices(parser)):
        if words[0] == "dvc":
            yield from wrong_words(words[1:], get_main_parser(), told)
            return
        if not words[0].startswith("-"):
            parser = choices(parser)[words[0]]
        elif words[0].partition("=")[0] not in options(parser):
            yield f"{told}: no option {words[0]}"
        words = words[2 if words[0] in ("--runtime", "--image") else 1 :]
    if words and choices(parser) and not re.fullmatch(r"\[?[A-Z]+\]?|\.\.\.|…", words[0]):
        yield f"{told}: no command {words[0]}"
    for word in words[1:]:
        if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options(parser):
            yield f"{told}: no option {word}"


def found_in(line: str, command: str) -> list[tuple[str, ...]]:
    """Return the words after a command wherever it begins in a line, also in a comment or after a colon."""
    code, _, comment = line.partition(" #")
    return [groups for part in (code, *comment.split(": ")[1:]) for groups in re.findall(START + command, part)]


def wrong_commands(text: str) -> Iterator[str]:
    """Check `finetune COMMAND --options` and `dvc COMMAND --options` with their own parsers, -S with params.yaml."""
    from dvc.cli.parser import get_main_parser

    for line in code_of(text):
        for program, rest in found_in(line, r"(?:\./|\.venv/bin/)?(python -m finetune|finetune|dvc) ([^&;|)]+)"):
            words = rest.split(" > ")[0].split()
            if program == "dvc" and words[0].endswith(":"):  # an error of the shell
                continue
            parser: Parser = cli if program != "dvc" else get_main_parser()
            yield from wrong_words(words, parser, f"{program} {' '.join(words)}")
            asked = (
                re.match(r"(?:use|pin|plan|rehearse|check|doctor --recipe) ([\w-]+)", rest)
                if program != "dvc"
                else None
            )
            if asked and not asked[1].startswith("-") and asked[1] not in RECIPES | PLACEHOLDER:
                yield f"{program} {rest.strip()}: no such recipe"
            for key in re.findall(r"-S ([\w.]+)=", rest):
                if not has_key(key.split("."), Config):
                    yield f"-S {key}: no key of params.yaml"


def known_options(file: Path) -> set[str]:
    """Return the options that a script gives its parser."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    words = [word for call in calls if getattr(call.func, "attr", "") == "add_argument" for word in call.args]
    return {"-h", "--help", *(word.value for word in words if isinstance(word, ast.Constant))}


def file_of(module: str) -> Path | None:
    """Return the file of a module of this project that can be run."""
    path = module.replace(".", "/")
    places = [ROOT / folder / f"{path}{end}" for folder in ("", "src") for end in (".py", "/__main__.py")]
    return next((place for place in places if place.is_file()), None)


def wrong_scripts(text: str) -> Iterator[str]:
    """Check `python FILE.py --options` and `python -m MODULE --options`: the module and its options."""
    for line in code_of(text):
        for is_module, name, rest in found_in(line, r"(?:\.venv/bin/)?python3? (-m )?([\w./-]+)([^&;|)]*)"):
            if is_module and name.split(".")[0] not in ("finetune", "tests", "benchmarks"):
                if name.split(".")[0] not in {*sys.stdlib_module_names, *packages(), "pip"}:
                    yield f"python -m {name}: no such module"
                continue
            file = file_of(name) if is_module else ROOT / name
            if is_module and file is None:
                yield f"python -m {name}: no such module"
            if name == "finetune" or file is None or not file.is_file() or file.suffix != ".py":
                continue  # the finetune module has its own parser; a missing file is an error of paths
            for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", rest):
                if option not in known_options(file):
                    yield f"python {is_module}{name}: no option {option}"


def wrong_shell(text: str) -> Iterator[str]:
    """Check blocks without a language as shell blocks: each line begins with a program that the pages use."""
    for language, block in FENCED.findall(text):
        for line in block.splitlines() if not language else []:
            for part in re.split(r" && | \| ", line.split("  #")[0].split(" # ")[0]):
                first = part.split()[0] if part.split() else "make"
                if first not in WORDS:
                    yield f"{part}: {first} is not a program that these pages use"


# ------------------------------------------------------------------------------------------------------------- paths


@cache
def outputs() -> set[str]:
    """Return the outputs of the stages in dvc.yaml."""
    stages = read_yaml(ROOT / "dvc.yaml")["stages"].values()
    return {out for stage in stages for key in ("outs", "metrics") for out in stage.get(key, [])}


@cache
def basenames() -> set[str]:
    """Return the names of all files that a clone has or a run writes."""
    folders = (
        "src",
        "tests",
        "docs",
        "recipes",
        "requirements",
        "jobs",
        "scorers",
        "benchmarks",
        "models",
        "data/raw",
        ".github",
    )
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")] + list(ROOT.glob("*.*"))
    return {path.name for path in files} | {Path(out).name for out in outputs()}


def wrong_paths(text: str) -> Iterator[str]:
    """Check paths of the repository and of a run: those with a known folder, or with the name of a text file."""
    top = "src|tests|docs|data|models|recipes|requirements|scorers|jobs|benchmarks|out|reports|work|\\.github|\\.dvc"
    for line in code_of(text):
        for path in re.findall(rf"(?<![\w./:>@-])((?:{top})/[\w./<>*{{}},-]*[\w>*}}])", line):
            place = path.split("<")[0].split("{")[0]
            made = path.startswith(("out", "reports", "work", "data/prepared", "data/validated"))  # it may be missing
            here = place in outputs() or GENERATED.fullmatch(path) or (not made and any(ROOT.glob(path)))
            if not here:
                yield f"{path}: no such place"
        for name in re.findall(
            r"(?<![\w./*-])([\w.-]+\.(?:py|md|ya?ml|toml|lock|sh|jinja|json|jsonl))(?![\w./])", line
        ):
            if name not in basenames() and not NO_FILES.fullmatch(name):
                yield f"{name}: no such file"


def slug(title: str) -> str:
    """Return a heading's anchor as GitHub forms it."""
    return re.sub(r"[^\w -]", "", title.replace("`", "").lower()).strip().replace(" ", "-")


def wrong_links(text: str, page: Path) -> Iterator[str]:
    """Check links between the pages: the file, and the heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
        place, _, anchor = target.partition("#")
        if place.startswith(("http:", "https:")):
            continue
        file = (page.parent / place).resolve() if place else page
        if not file.exists():
            yield f"({target}): no such file"
        elif anchor and anchor not in {
            slug(title) for title in re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
        }:
            yield f"({target}): no such heading"


CHECKS: list[Callable[[str], Iterator[str]]] = [
    wrong_targets,
    wrong_commands,
    wrong_scripts,
    wrong_shell,
    wrong_paths,
    wrong_keys,
    lambda text: wrong_codes(text, RECIPES | targets()),
]


def complaints(text: str, page: Path) -> list[str]:
    """Return everything that a page names and that does not exist."""
    return [line for check in CHECKS for line in check(text)] + list(wrong_links(text, page))
