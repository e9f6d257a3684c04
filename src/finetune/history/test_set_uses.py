"""Which candidates were evaluated on which test set: each look at it uses up a share of the error probability.

`data/looks.json` is in git and maps the test set's hash to the candidates, in the order of their evaluation. Going back
to an earlier commit or experiment takes the file back too, and must not take back the looks: what this clone has seen
stands beside git's own files as well, and the two are one list.
"""

from pathlib import Path

import filelock

from finetune.console import short
from finetune.errors import DataError
from finetune.files.atomic import write_json
from finetune.files.strict_json import read_json

COPIES = (".dvc", "tmp", "exps")  # where DVC keeps the copies in which queued experiments run
MEMORY = Path("finetune")  # in git's folder, which no checkout touches


def count_look(path: Path, test_sha256: str, candidate: str) -> int:
    """Record the look unless it is there already; gives its number, from 1. The same candidate again is no new look.

    A queued experiment counts in the working tree that queued it: were each copy to count for itself, a sweep of fifty
    would be fifty first looks.
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
    """The candidates by test set; none where there is not a file, DataError with the remedy where it can't be read."""
    try:
        looks: dict[str, list[str]] = read_json(path) if path.exists() else {}
    except DataError as error:
        raise DataError(path, error.problem.message, remedy) from None
    for key, seen in looks.items():
        if not isinstance(seen, list) or not all(isinstance(candidate, str) for candidate in seen):
            raise DataError(path, f"{short(key)}: is not a list of candidates", remedy)
    return looks


def beside_git(path: Path) -> Path | None:
    """Where this clone remembers what the file held: in git's folder, which worktrees share; None outside of git."""
    for parent in path.absolute().parents:
        git = parent / ".git"
        if git.is_dir():
            return git / MEMORY / path.name
        if git.is_file():  # of a worktree: `gitdir: …`, and there the way to the common folder
            own = parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
            common = own / "commondir"
            shared = own / common.read_text(encoding="utf-8").strip() if common.is_file() else own
            return shared.resolve() / MEMORY / path.name
    return None


def in_owning_tree(path: Path) -> Path:
    """The same file in the working tree that a copy of DVC's belongs to; elsewhere the path as it is."""
    owner = owning_tree(path)
    return owner / path if owner is not None else path


def owning_tree(path: Path) -> Path | None:
    """The working tree whose copy, made by DVC for a queued experiment, a path lies in; None elsewhere."""
    parts = path.absolute().parts
    for at in range(len(parts) - len(COPIES)):
        if parts[at : at + len(COPIES)] == COPIES:
            return Path(*parts[:at])
    return None
