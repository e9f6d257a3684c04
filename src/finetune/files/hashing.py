"""SHA-256 of files, folders, JSON values and tensors, each in one canonical form."""

import hashlib
import json
from pathlib import Path
from typing import Any

from finetune.errors import DataError


def files_in(folder: Path) -> list[Path]:
    """Return all files below a folder in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Return one SHA-256 of the names and contents of a folder's files."""
    return sha256_json({path.relative_to(folder).as_posix(): sha256_file(path) for path in files_in(folder)})


def sha256_json(content: Any) -> str:
    """Return the SHA-256 of a JSON value in one canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_tensors(path: Path) -> str:
    """Return the canonical hash of a safetensors file: names, dtypes, shapes and bytes in order of the names.

    The file's own bytes are unsuitable: the order of its header varies between runs.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise DataError(path, f"not a complete safetensors file ({error})") from None
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(json.dumps([name, tensor["dtype"], list(tensor["shape"])]).encode())
        digest.update(tensor["data"])
    return digest.hexdigest()
