"""Which candidates were evaluated on which test set: each look at it uses up a share of the error probability.

`data/looks.json` is in git and maps the test set's hash to the adapters' hashes, in the order of their evaluation.
"""

from pathlib import Path

import filelock

from finetune.artifacts import read_json, write_json

COPIES = (".dvc", "tmp", "exps")  # where DVC keeps the copies in which queued experiments run


def count_look(path: Path, test_sha256: str, adapter_sha256: str) -> int:
    """Record the look unless it is there already; gives its number, from 1. The same adapter again is no new look.

    A queued experiment counts in the working tree that queued it: were each copy to count for itself, a sweep of fifty
    would be fifty first looks.
    """
    path = in_owning_tree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=60):
        looks = read_json(path) if path.exists() else {}
        seen = looks.setdefault(test_sha256, [])
        if adapter_sha256 not in seen:
            seen.append(adapter_sha256)
            write_json(path, looks)
        return int(seen.index(adapter_sha256)) + 1


def in_owning_tree(path: Path) -> Path:
    """The same file in the working tree that a copy of DVC's belongs to; elsewhere the path as it is."""
    parts = path.absolute().parts
    for at in range(len(parts) - len(COPIES)):
        if parts[at : at + len(COPIES)] == COPIES:
            return Path(*parts[:at]) / path
    return path
