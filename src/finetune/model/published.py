"""The published adapter and its training params."""

from typing import Any

from finetune.config.params import Config
from finetune.errors import DataError
from finetune.files.manifests import read_manifest
from finetune.model.base import identify_base
from finetune.paths import Paths

# The keys of the section `model` that identify what was evaluated.
HELD = ("dtype", "quantization", "chat_template", "pad_token", "add_tokens")


def check_adapter(config: Config, paths: Paths) -> dict[str, Any]:
    """Return the published adapter's manifest. Raise DataError unless it is intact and matches params.yaml."""
    manifest = read_manifest(paths.adapter)
    trained_on, named = manifest["base"], identify_base(config.model)
    if trained_on != named:
        what = (
            f"was trained on {trained_on['name']} at {trained_on['revision']}, but params.yaml names {named['name']} at"
        )
        raise DataError(
            f"{paths.adapter}", f"{what} {named['revision']}", "restore its recipe, or train again (dvc repro)"
        )
    for key in HELD:
        trained, now = manifest["params"]["model"].get(key) or None, getattr(config.model, key) or None
        if trained != (list(now) if isinstance(now, tuple) else now):
            what = f"was trained with model.{key}: {trained}, but params.yaml has {now}"
            raise DataError(paths.adapter, what, "restore its recipe, or train again (dvc repro)")
    return manifest
