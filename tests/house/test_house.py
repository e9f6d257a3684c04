"""The rules of the house: what may import what, what DVC watches, and a front door that hides nothing."""

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
# What stands on what: a room may import the rooms below its own floor, and its neighbours on it unless it is a stage.
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
# What a person sees and where files are, left out of deps on purpose: a changed sentence or colour changes no result.
NOT_WATCHED = {PACKAGE / name for name in ("console.py", "errors.py", "paths.py")}
# One room is watched as a whole: reading, writing and hashing are under everything, and change rarely.
NEVER_TORCH = ("statistics", "records", "answers", "reports", "files", "config")
PIPELINE = read_yaml(ROOT / "dvc.yaml")["stages"]


def modules() -> list[Path]:
    """The package's modules, its front door and the packages' docstrings apart."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


def room_of(path: Path) -> str:
    """The room that a module is in: its folder in the package, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def module_path(name: str) -> Path | None:
    """The file of a module of the package, or None."""
    path = SOURCE / name.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree but for those under `if TYPE_CHECKING:`, which are never run."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        nodes = node.orelse
    else:
        yield node
        nodes = list(ast.iter_child_nodes(node))
    for child in nodes:
        yield from run_nodes(child)


def test_imports_for_types_alone_are_not_counted() -> None:
    """They don't run: a stage that names a class is not one that needs its module."""
    tree = ast.parse("if TYPE_CHECKING:\n    from a import A\nelse:\n    from b import B\nfrom c import C")
    names = [node.module for node in run_nodes(tree) if isinstance(node, ast.ImportFrom)]
    assert names == ["b", "c"]


@cache
def imports(path: Path) -> set[Path]:
    """The package's files that a file imports, anywhere in it, also by `python -m`; not for types alone."""
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
    """All files of the package that a module needs."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imports(path)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_exactly_the_code_that_a_stage_runs(stage: str) -> None:
    """A file that is missing in deps leaves stale results in silence; one too many re-runs a night for nothing."""
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
    """The keys that a stage's params have, a section that it is given in part as `section.key`."""
    keys = set()
    for name, field in section.model_fields.items():
        whole = field.annotation == other.model_fields[name].annotation
        keys |= {name} if whole else {f"{name}.{key}" for key in field.annotation.model_fields}
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_exactly_the_params_that_a_stage_is_given(stage: str) -> None:
    """A stage can read only the fields of its params model; a field that DVC does not watch could change unnoticed."""
    assert keys_of(STAGE_PARAMS[stage], Config) == set(PIPELINE[stage]["params"])
    annotation = importlib.import_module(f"finetune.{stage}.stage").run.__annotations__["params"]
    assert annotation is STAGE_PARAMS[stage]


def test_every_room_has_a_floor() -> None:
    """A new folder says what it may stand on, or nobody knows."""
    assert {room_of(path) for path in modules()} == set(FLOOR_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_what_is_below_it(path: Path) -> None:
    """Commands stand on stages, stages on shared rooms, those on the ground; and stages meet through files alone."""
    room, floor = room_of(path), FLOOR_OF[room_of(path)]
    for other in imports(path):
        beside = floor == FLOOR_OF[room_of(other)] and (room not in STAGES or room == room_of(other))
        assert FLOOR_OF[room_of(other)] > floor or beside, f"{path} imports {other}"


def test_the_picture_shows_the_imports() -> None:
    """docs/architecture.svg is drawn from them, so it is drawn again when they change."""
    from tests.house.draw_architecture import PICTURE, draw

    told = "PYTHONPATH=src:. python -m tests.house.draw_architecture draws it"
    assert PICTURE.read_text(encoding="utf-8") == draw(), told


def test_commands_never_import_commands() -> None:
    """What two commands share belongs lower: a command can then be read, changed and deleted by itself."""
    for path in (PACKAGE / "commands").rglob("*.py"):
        mine = path.relative_to(PACKAGE).parts[1]
        for other in imports(path):
            assert room_of(other) != "commands" or other.relative_to(PACKAGE).parts[1] == mine, f"{path}: {other}"


def test_imports_have_no_circle() -> None:
    """A circle is one module that was cut in two."""
    for path in PACKAGE.rglob("*.py"):
        assert all(path not in closure(other) for other in imports(path)), path


@pytest.mark.parametrize("command", ["--help", "recipes", "exps", "status", "check"])
def test_light_commands_import_nothing_heavy(command: str) -> None:
    """torch, transformers and trl take ten seconds to import, which nobody waits for to see a table."""
    code = (
        "import sys; sys.path.insert(0, 'src'); from finetune.cli.main import main\n"
        f"try: main([{command!r}])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("room", NEVER_TORCH)
def test_the_ground_never_imports_torch(room: str) -> None:
    """Rows, params and statistics must be at hand where no torch is."""
    names = [path.relative_to(SOURCE).with_suffix("") for path in modules() if room_of(path) == room]
    code = f"import sys; sys.path.insert(0, 'src'); import {', '.join('.'.join(name.parts) for name in names)}\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_dvc_and_paths_name_the_same_places() -> None:
    """What dvc.yaml calls an output is where the stages write."""
    outs = {out for stage in PIPELINE.values() for key in ("outs", "metrics") for out in stage.get(key, [])}
    paths = Paths()
    for place in (paths.prepared, paths.validated, paths.adapter, paths.predictions, paths.latency, paths.model_card):
        assert place.as_posix() in outs
    assert {Path(out).parent.as_posix() for out in outs} == {"data", "out", "reports"}


def test_commands_are_the_same_on_every_machine() -> None:
    """A changed command text re-runs its stage, so it holds no recipe, device or runtime."""
    assert [stage["cmd"] for stage in PIPELINE.values()] == [f"finetune {name}" for name in STAGES]


def makefile_targets() -> dict[str, tuple[str, list[str]]]:
    """Each target's help and lines."""
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


def test_the_makefile_has_what_developers_type() -> None:
    """Everything else is the command, which has a help for its options and errors for wrong ones."""
    kept = (
        "help setup setup-dev repro train-% test test-fast test-end-to-end test-images lint check image-cpu image-cuda"
    )
    assert [*makefile_targets()] == f"{kept} chaos bench bench-quick lock clean".split()


def test_every_target_is_short_and_helpful() -> None:
    """The front door tells what it does, and does it in three lines at most."""
    for name, (help_text, lines) in makefile_targets().items():
        assert len(lines) <= 3, name
        assert help_text or name == "setup-dev", name


def test_no_target_hides_a_failure() -> None:
    """`-command`, `|| true` and `; true` turn an error into a green light."""
    for name, (_, lines) in makefile_targets().items():
        for line in lines:
            assert not re.match(r"^@?-", line), name
            assert "||" not in line, name
            assert "; true" not in line, name
