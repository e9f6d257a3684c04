"""Where a base model's files are on this machine: in a folder, or in the cache of the Hugging Face libraries."""

import json
from pathlib import Path

from finetune.config.model import ModelConfig

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def model_cache() -> Path:
    """Where the Hugging Face libraries keep models."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def token_file() -> Path:
    """Where these libraries keep the user's token, which need not be there."""
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def snapshot(model: ModelConfig) -> Path:
    """Where the cache has, or would have, the pinned revision of a base from the Hub."""
    return model_cache() / f"models--{model.base.replace('/', '--')}" / "snapshots" / str(model.revision)


def is_here(model: ModelConfig, root: Path) -> bool:
    """Whether the base can be loaded without a network."""
    folder = root / model.base
    return folder.is_dir() or find_missing_weights(snapshot(model)) is None


def find_missing_weights(folder: Path) -> str | None:
    """What is missing or cut off among config and safetensors files; None where the base is whole."""
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
    """The names of a base's safetensors files: the single one, or the shards of an index; none that it can't tell.

    transformers looks for them in this order.
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
    """Whether a safetensors file can be read and is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False
