"""Compare the outputs of a run with dvc.lock: all files must belong to one finished run.

Reads dvc.lock and the files that it lists.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.config.plain_yaml import read_plain
from finetune.errors import ConfigError, DataError
from finetune.files.hashing import files_in
from finetune.files.nested import dig


def read_lock(root: Path) -> dict[str, Any]:
    """Return the stages in dvc.lock. Raise DataError if nothing was run or the file is malformed."""
    try:
        stages = read_plain(root / "dvc.lock", "dvc.lock")["stages"]
        found = {name: stage for name, stage in stages.items() if stage.get("outs") is not None}
        for stage in found.values():
            for item in [*stage["outs"], *stage.get("deps", [])]:
                str.lower(item["path"]), str.lower(item["md5"])  # TypeError if one is not text
        return found
    except (ConfigError, KeyError, TypeError, AttributeError):
        raise DataError("dvc.lock", "is missing, broken or lists no outputs", "run make repro") from None


def outs_of(stages: dict[str, Any]) -> dict[str, str]:
    """Return every output of these stages with its MD5."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def require_recorded(root: Path, files: Mapping[str, Path]) -> None:
    """Raise DataError if a file or a parameter differs from dvc.lock, and so belongs to another run."""
    stages = read_lock(root)
    named = {
        item["path"]: item["md5"] for stage in stages.values() for item in [*stage["outs"], *stage.get("deps", [])]
    }
    for name, recorded in named.items():
        inside = {file: path for file, path in files.items() if file.startswith(f"{name}/")}
        if name in files:
            found = md5(files[name])
        elif inside and name == "out/adapter":  # the only folder that is bundled completely
            found = md5_of_folder(name, inside)
        else:
            continue
        if found != recorded:
            raise DataError(f"{name}", "differs from dvc.lock", "run make repro, so that all results come from one run")
    params = read_plain(root / "params.yaml", "params.yaml")
    for stage in stages.values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            if dig(params, tuple(key.split("."))) != value:
                raise DataError(
                    "",
                    f"params.yaml: {key} differs from dvc.lock",
                    "run make repro, so that all results come from one run",
                )


def require_outputs(root: Path) -> None:
    """Raise DataError if an output differs from dvc.lock, or a stage ran on others: damaged, or of two runs."""
    stages = read_lock(root)
    for stage, named in stages.items():
        for out in named["outs"]:
            path = root / out["path"]
            inside = {file.relative_to(root).as_posix(): file for file in files_in(path)} if path.is_dir() else {}
            found = md5_of_folder(out["path"], inside) if inside else md5(path) if path.is_file() else None
            if found != out["md5"]:
                what = "is missing" if found is None else "differs from dvc.lock"
                raise DataError(
                    f"{out['path']}",
                    what,
                    f"run make repro; if nothing changes, dvc repro -f -s {stage}",
                )
    made = outs_of(stages)
    for stage, named in stages.items():
        for dependency in named.get("deps", []):
            if made.get(dependency["path"], dependency["md5"]) != dependency["md5"]:
                raise DataError(f"{dependency['path']}", f"was changed after {stage} had used it", "run make repro")


def md5(path: Path) -> str:
    """Return DVC's hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_of_folder(out: str, inside: Mapping[str, Path]) -> str:
    """Return DVC's hash of a folder's content: the MD5 of the list of its files."""
    listed = [{"md5": md5(path), "relpath": name[len(out) + 1 :]} for name, path in inside.items()]
    text = json.dumps(sorted(listed, key=lambda item: item["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"
