"""Atomic writes of files and folders: either the old content or the complete new one exists.

Every stage writes beside its target, syncs, then renames, so that a killed stage leaves the old output or the new one.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.files.hashing import files_in


def write_lines(path: Path, lines: Iterable[str], *, durable: bool = True) -> None:
    """Write a text file atomically, line by line; files that may be lost in a crash need not be `durable`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_directory(folder: Path) -> None:
    """Make the names in a folder durable: a rename is on disk only once its folder is synced."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_files(folder: Path) -> None:
    """Make the contents and names of all files below a folder durable."""
    for path in files_in(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write indented JSON atomically. Raise ValueError for NaN or infinity, which JSON does not allow."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_lines(path, [text], durable=durable)


@contextmanager
def publish_directory(target: Path) -> Iterator[Path]:
    """Yield a new sibling folder to write into; on success it is synced and replaces the target.

    A kill between the two renames leaves the old folder under its `.replaced` name; the next call restores it first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (target.with_name(f".{target.name}.{state}") for state in ("partial", "replaced"))
    if replaced.exists() and not target.exists():
        replaced.replace(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_files(partial)
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.replace(replaced)
        partial.replace(target)
        sync_directory(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
