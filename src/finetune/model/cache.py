"""The location of a base model's files on this machine: a folder, or the cache of the Hugging Face libraries."""

import json
from pathlib import Path

from finetune.config.model import ModelConfig

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def model_cache() -> Path:
    """Return the folder where the Hugging Face libraries keep models."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def token_file() -> Path:
    """Return the path of these libraries' file with the user's token, which may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def snapshot(model: ModelConfig) -> Path:
    """Return the folder of a base's pinned revision in the cache, whether or not it exists."""
    return model_cache() / f"models--{model.base.replace('/', '--')}" / "snapshots" / str(model.revision)


def is_here(model: ModelConfig, root: Path) -> bool:
    """Return whether the base can be loaded without a network."""
    folder = root / model.base
    return folder.is_dir() or find_missing_weights(snapshot(model)) is None


def find_missing_weights(folder: Path) -> str | None:
    """Return what is missing or truncated among config and safetensors files; None if the base is complete."""
    if not (folder / "config.json").is_file():
        return "no config.json"
    names = weight_files(folder)
    if not names:
        return f"{INDEX} is damaged"
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        return f"{len(missing)} of {len(names)} weight files missing ({', '.join(missing[:3])})"
    cut_off = [name for name in names if not is_whole(folder / name)]
    return f"{cut_off[0]} is truncated or damaged" if cut_off else None


def weight_files(folder: Path) -> list[str]:
    """Return the names of a base's safetensors files: the single one, or the shards of an index; empty if unknown.

    transformers searches for them in this order.
    """
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.is_file():
        return [SINGLE]
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({Path(name).name for name in named})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file is readable and as long as its header states."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False
