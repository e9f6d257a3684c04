"""The results of the same run with other seeds: `data/seeds.json`, in git.

For a hash of the params (everything that could change a result except the seed), the outcome of each seed:

    {"5f0c…": {"43": {"adapter_sha256": "9a…", "test_sha256": "50…", "makings_sha256": "1c…", "policy": "interval",
                      "confidence": 0.99, "verdict": "iterate",
                      "criteria": {"exact_match at least 0.5": {"status": "pass", "estimate": 0.61}}, …}}}

`finetune seeds` writes it (finetune.commands.experiments.seed_sweep), and the gate may require several seeds to pass.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from finetune.errors import DataError
from finetune.files.atomic import write_json
from finetune.files.hashing import sha256_json
from finetune.files.strict_json import read_json
from finetune.history.test_set_uses import in_owning_tree

# The seed varies; the other sections judge, describe or place a run without changing its answers.
LEFT_OUT = frozenset({"seed", "decide", "machine", "findings", "runtime"})


def seeds_key(params: Mapping[str, Any]) -> str:
    """Return the hash shared by runs that differ only in their seed.

    `params` is `Config.model_dump(mode="json", by_alias=True)`, not the file's content, so that it includes optional
    keys that the file omits.
    """
    return sha256_json({name: value for name, value in params.items() if name not in LEFT_OUT})


def adapter_inputs_hash(manifest: Mapping[str, Any]) -> str:
    """Return a hash of an adapter's inputs except its params: data, base and library versions, from its manifest."""
    return sha256_json({name: manifest.get(name) for name in ("data_sha256", "base", "versions")})


def record_seed(path: Path, key: str, seed: int, result: Mapping[str, Any]) -> None:
    """Record one seed's outcome, replacing an earlier one; for a queued experiment, in the tree that queued it."""
    path = in_owning_tree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=60):
        content = read_json(path) if path.exists() else {}
        seeds = seeds_in(content, key, path) | {str(seed): dict(result)}
        write_json(path, content | {key: dict(sorted(seeds.items(), key=lambda item: int(item[0])))})


def read_seeds(path: Path, key: str) -> dict[str, Any]:
    """Return the recorded outcomes by seed, as text, in ascending order; empty if the file does not exist."""
    path = in_owning_tree(path)
    return seeds_in(read_json(path), key, path) if path.exists() else {}


def seeds_in(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return the outcomes by seed under a key. Raise DataError if they are malformed."""
    outcomes = content.get(key, {})
    if not isinstance(outcomes, dict) or not all(
        seed.removeprefix("-").isdecimal() and isinstance(outcome, dict) for seed, outcome in outcomes.items()
    ):
        raise DataError(path, f"{key[:16]}: has no outcomes by seed", "restore the file from git")
    return outcomes
