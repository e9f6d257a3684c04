"""Architecture rules: what may import what, what DVC tracks, and a Makefile that hides nothing."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from finetune.config.loading import read_yaml
from finetune.config.params import STAGE_PARAMS, Config
from finetune.paths import Paths

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "finetune"
STAGES = ("prepare", "validate", "train", "evaluate", "decide")
# The layers: a room may import the rooms below its floor, and neighbours on it unless it is a stage.
FLOORS = (
    {"cli"},
    {"commands"},
    set(STAGES),
    {"plan", "model", "score", "containers"},
    {"history", "pipeline", "hardware", "reports"},
    {"config", "processes"},
    {"records", "answers"},
    {"files"},
    {"errors", "console", "paths", "statistics"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Texts shown to users and file locations, deliberately not in deps: a changed sentence or colour changes no result.
NOT_WATCHED = {PACKAGE / name for name in ("console.py", "errors.py", "paths.py")}
# One room is tracked as a folder: reading, writing and hashing are used everywhere and rarely change.
NEVER_TORCH = ("statistics", "records", "answers", "reports", "files", "config")
PIPELINE = read_yaml(ROOT / "dvc.yaml")["stages"]


def modules() -> list[Path]:
    """Return the package's modules, except its entry point and the packages' docstrings."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


def room_of(path: Path) -> str:
    """Return the room of a module: its folder in the package, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def module_path(name: str) -> Path | None:
    """Return the file of a module of the package, or None."""
    path = SOURCE / name.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, except those under `if TYPE_CHECKING:`, which never run."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        nodes = node.orelse
    else:
        yield node
        nodes = list(ast.iter_child_nodes(node))
    for child in nodes:
        yield from run_nodes(child)


def test_imports_for_types_only_are_ignored() -> None:
    """Imports for types do not run: a stage that only names a class does not need its module."""
    tree = ast.parse("if TYPE_CHECKING:\n    from a import A\nelse:\n    from b import B\nfrom c import C")
    names = [node.module for node in run_nodes(tree) if isinstance(node, ast.ImportFrom)]
    assert names == ["b", "c"]


@cache
def imports(path: Path) -> set[Path]:
    """Return the package's files that a file imports anywhere, also by `python -m`, except for types only."""
    found = set()
    for node in run_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("finetune."):
            names = [node.value]
        found |= {file for name in names if name.startswith("finetune") and (file := module_path(name))}
    return {file for file in found if file.name != "__init__.py"}


def closure(start: Path) -> set[Path]:
    """Return all files of the package that a module needs."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imports(path)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_exactly_the_code_of_a_stage(stage: str) -> None:
    """A file missing in deps would silently leave stale results; a superfluous one would cause needless reruns."""
    watched: set[Path] = set()
    for dependency in PIPELINE[stage]["deps"]:
        path = ROOT / dependency
        if dependency.startswith("src/"):
            assert path.exists(), f"dvc.yaml: {stage}: {dependency} does not exist"
            watched |= set(path.rglob("*.py")) if path.is_dir() else {path}
    needed = closure(PACKAGE / stage / "stage.py") - NOT_WATCHED
    missing = needed - watched
    needless = {path for path in watched - needed if path.name != "__init__.py" and room_of(path) != "files"}
    assert not missing, f"dvc.yaml: {stage}: deps lack {sorted(map(str, missing))}"
    assert not needless, f"dvc.yaml: {stage}: deps name {sorted(map(str, needless))}, which it does not import"


def keys_of(section: type[BaseModel], other: type[BaseModel]) -> set[str]:
    """Return the keys of a stage's params, with `section.key` for parts of a section."""
    keys = set()
    for name, field in section.model_fields.items():
        whole = field.annotation == other.model_fields[name].annotation
        keys |= {name} if whole else {f"{name}.{key}" for key in field.annotation.model_fields}
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_tracks_exactly_the_params_of_a_stage(stage: str) -> None:
    """A stage can read only the fields of its params model, so DVC must track each of them."""
    assert keys_of(STAGE_PARAMS[stage], Config) == set(PIPELINE[stage]["params"])
    annotation = importlib.import_module(f"finetune.{stage}.stage").run.__annotations__["params"]
    assert annotation is STAGE_PARAMS[stage]


def test_every_package_has_a_level() -> None:
    """A new folder must be assigned to a floor, which determines its imports."""
    assert {room_of(path) for path in modules()} == set(FLOOR_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_package_imports_only_lower_packages(path: Path) -> None:
    """Commands use stages, stages use shared rooms, these the ground floor; stages communicate only through files."""
    room, floor = room_of(path), FLOOR_OF[room_of(path)]
    for other in imports(path):
        beside = floor == FLOOR_OF[room_of(other)] and (room not in STAGES or room == room_of(other))
        assert FLOOR_OF[room_of(other)] > floor or beside, f"{path} imports {other}"


def test_the_picture_shows_the_imports() -> None:
    """docs/architecture.svg is drawn from the imports and is up to date."""
    from tests.house.draw_architecture import PICTURE, draw

    remedy = "PYTHONPATH=src:. python -m tests.house.draw_architecture draws it"
    assert PICTURE.read_text(encoding="utf-8") == draw(), remedy


def test_commands_never_import_commands() -> None:
    """Code shared by two commands belongs in a lower room, so that each command can be changed or deleted alone."""
    for path in (PACKAGE / "commands").rglob("*.py"):
        mine = path.relative_to(PACKAGE).parts[1]
        for other in imports(path):
            assert room_of(other) != "commands" or other.relative_to(PACKAGE).parts[1] == mine, f"{path}: {other}"


def test_imports_have_no_cycle() -> None:
    """Modules in an import cycle are in fact one module."""
    for path in PACKAGE.rglob("*.py"):
        assert all(path not in closure(other) for other in imports(path)), path


@pytest.mark.parametrize("command", ["--help", "recipes", "exps", "status", "check"])
def test_light_commands_import_nothing_heavy(command: str) -> None:
    """torch, transformers and trl take ten seconds to import, too long for a command that prints a table."""
    code = (
        "import sys; sys.path.insert(0, 'src'); from finetune.cli.main import main\n"
        f"try: main([{command!r}])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("room", NEVER_TORCH)
def test_basic_rooms_never_import_torch(room: str) -> None:
    """Rows, params and statistics must be usable without torch."""
    names = [path.relative_to(SOURCE).with_suffix("") for path in modules() if room_of(path) == room]
    code = f"import sys; sys.path.insert(0, 'src'); import {', '.join('.'.join(name.parts) for name in names)}\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_dvc_and_paths_agree() -> None:
    """The outputs in dvc.yaml are where the stages write."""
    outs = {out for stage in PIPELINE.values() for key in ("outs", "metrics") for out in stage.get(key, [])}
    paths = Paths()
    for place in (paths.prepared, paths.validated, paths.adapter, paths.predictions, paths.latency, paths.model_card):
        assert place.as_posix() in outs
    assert {Path(out).parent.as_posix() for out in outs} == {"data", "out", "reports"}


def test_commands_are_the_same_on_every_machine() -> None:
    """A changed command line reruns its stage, so it contains no recipe, device or runtime."""
    assert [stage["cmd"] for stage in PIPELINE.values()] == [f"finetune {name}" for name in STAGES]


def makefile_targets() -> dict[str, tuple[str, list[str]]]:
    """Return help and lines of each target."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        target = re.match(r"^([a-z][a-z%-]*):[^=]*?(?:## (.*))?$", line)
        if target:
            name = target[1]
            found[name] = (target[2] or "", [])
        elif line.startswith("\t"):
            found[name][1].append(line.strip())
    return found


def test_the_makefile_has_the_developers_targets() -> None:
    """The Makefile has targets for developers only; users have the command with its help and errors."""
    kept = "help setup setup-dev repro train-% test test-fast test-end-to-end test-images test-real lint check"
    assert [*makefile_targets()] == f"{kept} image-cpu image-cuda chaos bench bench-quick lock clean".split()


def test_every_target_is_short_and_has_help() -> None:
    """A target has a help text and at most three lines."""
    for name, (help_text, lines) in makefile_targets().items():
        assert len(lines) <= 3, name
        assert help_text or name == "setup-dev", name


def test_no_target_hides_a_failure() -> None:
    """`-command`, `|| true` and `; true` would turn an error into a success."""
    for name, (_, lines) in makefile_targets().items():
        for line in lines:
            assert not re.match(r"^@?-", line), name
            assert "||" not in line, name
            assert "; true" not in line, name
