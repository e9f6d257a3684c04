"""The candidates that were evaluated on each test set: each look at it uses a share of the error probability.

`data/looks.json` is in git and maps the test set's hash to the candidates, in the order of their evaluation. Checking
out an earlier commit or experiment also restores an earlier file, but must not undo the looks: this clone's looks are
recorded beside git's own files as well, and both lists are merged.
"""

from pathlib import Path

import filelock

from finetune.console import short
from finetune.errors import DataError
from finetune.files.atomic import write_json
from finetune.files.strict_json import read_json

COPIES = (".dvc", "tmp", "exps")  # where DVC keeps the copies that queued experiments run in
MEMORY = Path("finetune")  # in git's folder, which no checkout changes


def count_look(path: Path, test_sha256: str, candidate: str) -> int:
    """Record the look unless it is already there; return its number, from 1. A repeated candidate is not a new look.

    A queued experiment is recorded in the working tree that queued it: if each copy were counted separately, a sweep of
    fifty would consist of fifty first looks.
    """
    path = in_owning_tree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = beside_git(path)
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=60):
        looks = read_looks(path)
        seen = looks.get(test_sha256, [])
        remembered = (
            read_looks(memory, "remove it: the looks in data/looks.json still count") if memory is not None else {}
        )
        known = list(dict.fromkeys([*remembered.get(test_sha256, []), *seen, candidate]))
        if known != seen:
            write_json(path, looks | {test_sha256: known})
        if memory is not None and known != remembered.get(test_sha256):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, remembered | {test_sha256: known})
        return known.index(candidate) + 1


def read_looks(path: Path, remedy: str = "restore the file from git") -> dict[str, list[str]]:
    """Return the candidates by test set; empty without a file. Raise DataError with the remedy if it is unreadable."""
    try:
        looks: dict[str, list[str]] = read_json(path) if path.exists() else {}
    except DataError as error:
        raise DataError(path, error.problem.message, remedy) from None
    for key, seen in looks.items():
        if not isinstance(seen, list) or not all(isinstance(candidate, str) for candidate in seen):
            raise DataError(path, f"{short(key)}: is not a list of candidates", remedy)
    return looks


def beside_git(path: Path) -> Path | None:
    """Return this clone's own copy of the file, in git's folder, which worktrees share; None outside of git."""
    for parent in path.absolute().parents:
        git = parent / ".git"
        if git.is_dir():
            return git / MEMORY / path.name
        if git.is_file():  # of a worktree: `gitdir: …`, and there the path of the common folder
            own = parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
            common = own / "commondir"
            shared = own / common.read_text(encoding="utf-8").strip() if common.is_file() else own
            return shared.resolve() / MEMORY / path.name
    return None


def in_owning_tree(path: Path) -> Path:
    """Return the same file in the working tree that owns a DVC copy; elsewhere the unchanged path."""
    owner = owning_tree(path)
    return owner / path if owner is not None else path


def owning_tree(path: Path) -> Path | None:
    """Return the working tree for which DVC made the copy that contains a path; None elsewhere."""
    parts = path.absolute().parts
    for at in range(len(parts) - len(COPIES)):
        if parts[at : at + len(COPIES)] == COPIES:
            return Path(*parts[:at])
    return None
