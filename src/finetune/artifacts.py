"""Files that are whole or not there: atomic writes, published folders, hashes, manifests and the pipeline's lock.

Every stage writes beside its target, syncs, then renames, so that a killed stage leaves the old output or the new one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from finetune.errors import ConfigError, DataError
from finetune.records import parse_json

MANIFEST = "manifest.json"


def write_lines(path: Path, lines: Iterable[str], *, durable: bool = True) -> None:
    """Write a text file atomically, line by line; what may be lost with the machine need not be `durable`."""
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
    """Make the names in a folder durable: a rename is on the disk only when its folder is."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_files(folder: Path) -> None:
    """Make the contents of all files below a folder durable, and their names."""
    for path in files_in(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write indented JSON atomically; ValueError for NaN or infinity, which are no JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_lines(path, [text], durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """A report of an earlier stage; DataError where it is missing or broken."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that writes it (dvc repro)") from None
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); run the stage that writes it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: no JSON object; run the stage that writes it again")
    return content


@contextmanager
def publish_directory(target: Path) -> Iterator[Path]:
    """A fresh sibling folder to write into; on success it is synced and takes the target's place.

    A kill between the two renames leaves the old folder under its `.replaced` name; the next call puts it back first.
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


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """One SHA-256 over the names and contents of a folder's files."""
    return sha256_json({path.relative_to(folder).as_posix(): sha256_file(path) for path in files_in(folder)})


def sha256_json(content: Any) -> str:
    """The SHA-256 of a JSON value in one canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_tensors(path: Path) -> str:
    """The canonical hash of a safetensors file: names, dtypes, shapes and bytes in order of the names.

    The file's own bytes won't do: the order of its header changes from run to run.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from None
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(json.dumps([name, tensor["dtype"], list(tensor["shape"])]).encode())
        digest.update(tensor["data"])
    return digest.hexdigest()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the folder's manifest last: `content`, and size and SHA-256 of every other file in it."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files_in(folder)
        if path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**content, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder, after its files were checked against it; DataError where they differ."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise DataError(f"{folder / MANIFEST}: lists no files; run the stage that writes it again")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
            raise DataError(f"{folder / MANIFEST}: does not say what {name!r} was; run the stage that writes it again")
        if not path.is_file():
            raise DataError(
                f"{path}: is missing though {folder / MANIFEST} lists it; run the stage that writes it again"
            )
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise DataError(f"{path}: is not the file that was published (its hash differs); run its stage again")
    return manifest


@contextmanager
def pipeline_lock(path: Path, stage: str) -> Iterator[None]:
    """Hold the working tree for one stage; ConfigError at once where another process holds it.

    An `fcntl` lock: the kernel drops it when the process dies, and an orphan of a killed DVC keeps it while it lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    holder = path.with_suffix(".holder")
    try:
        lock.acquire()
    except filelock.Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise ConfigError(
            f"{path}: {who} is running in this folder; wait for it or stop it, then start again"
        ) from None
    try:
        # in a container, the process on the host that waits for it and passes signals on
        process = os.environ.get("FINETUNE_PROCESS") or os.getpid()
        holder.write_text(f"stage {stage} (process {process})", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
