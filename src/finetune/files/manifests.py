"""Manifests: list the contents of a published folder, and verify them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.files.atomic import write_json
from finetune.files.hashing import files_in, sha256_file
from finetune.files.strict_json import read_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the folder's manifest last: `content`, and size and SHA-256 of every other file in it."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files_in(folder)
        if path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**content, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a published folder after verifying its files. Raise DataError if they differ."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise DataError(f"{folder / MANIFEST}", "lists no files", "run the stage that writes it again")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
            raise DataError(f"{folder / MANIFEST}", f"has no entry for {name!r}", "run the stage that writes it again")
        if not path.is_file():
            raise DataError(
                f"{path}", f"is missing, although {folder / MANIFEST} lists it", "run the stage that writes it again"
            )
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise DataError(path, "differs from the published file (wrong hash)", "run its stage again")
    return manifest
