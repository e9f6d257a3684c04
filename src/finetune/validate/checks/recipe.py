"""Checks of params.yaml against the recipe that it says it runs."""

from pathlib import Path

from finetune.config.loading import read_yaml
from finetune.config.validate import ValidateParams
from finetune.errors import ConfigError
from finetune.validate.findings import Finding


def check_reference(params: ValidateParams, recipes: Path) -> list[Finding]:
    """The effective batch size against the recipe's own, which its learning rate was chosen with."""
    path = recipes / f"{params.recipe}.yaml"
    try:
        reference = read_yaml(path)["train"]["effective_batch_size"]
    except (ConfigError, KeyError, TypeError):  # a run of the user's own, of no recipe
        return []
    asked = params.train.effective_batch_size
    if asked == reference:
        return []
    what = f"{asked} here, {reference} in {path}, whose learning rate was chosen for that"
    fix = f"use {reference} (with another gradient_accumulation_steps), or another learning_rate"
    return [Finding("effective-batch-changed", "params.yaml: train.effective_batch_size", what, fix)]
