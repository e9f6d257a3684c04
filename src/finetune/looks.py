"""Which candidates were evaluated on which test set: each look at it uses up a share of the error probability.

`data/looks.json` is in git and maps the test set's hash to the adapters' hashes, in the order of their evaluation.
"""

from pathlib import Path

from finetune.artifacts import read_json, write_json


def count_look(path: Path, test_sha256: str, adapter_sha256: str) -> int:
    """Record the look unless it is there already; gives its number, from 1. The same adapter again is no new look."""
    looks = read_json(path) if path.exists() else {}
    seen = looks.setdefault(test_sha256, [])
    if adapter_sha256 not in seen:
        seen.append(adapter_sha256)
        write_json(path, looks)
    return int(seen.index(adapter_sha256)) + 1
