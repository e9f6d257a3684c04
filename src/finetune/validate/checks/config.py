"""All checks that need neither rows nor a device; validate and plan run them on a config."""

from pathlib import Path

from finetune.config.loading import read_yaml
from finetune.config.validate import ValidateParams
from finetune.errors import ConfigError
from finetune.plan.outlook import RunPlan
from finetune.validate.checks.adapter import check_adapter
from finetune.validate.checks.base_model import Base
from finetune.validate.checks.plan import check_plan
from finetune.validate.checks.quantization import check_quantization
from finetune.validate.checks.schedule import check_run
from finetune.validate.checks.settings import check_settings
from finetune.validate.checks.watched import check_watched
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CODES |= {
    "effective-batch-changed": Code("warning", "quality", "The learning rate was chosen for a different batch size."),
}


def check_config(params: ValidateParams, root: Path, base: Base, outlook: RunPlan) -> list[Finding]:
    """Return the findings about base, settings, adapter, schedule, plan, and the recipe that the config names."""
    return [
        *base.findings,
        *check_watched(params, root),
        *check_settings(params, base.architecture),
        *check_quantization(params, base.architecture),
        *check_adapter(params, base.architecture),
        *check_run(params.train, outlook.schedule),
        *check_plan(params, outlook),
        *check_reference(params, root / "recipes"),
    ]


def check_reference(params: ValidateParams, recipes: Path) -> list[Finding]:
    """Compare the effective batch size with the recipe's own, for which its learning rate was chosen."""
    path = recipes / f"{params.recipe}.yaml"
    try:
        reference = read_yaml(path)["train"]["effective_batch_size"]
    except (ConfigError, KeyError, TypeError):  # the user's own run without a recipe
        return []
    configured = params.train.effective_batch_size
    if configured == reference:
        return []
    what = f"{configured} here, but {reference} in recipes/{path.name}, and the learning rate was chosen for that"
    fix = f"use {reference} (adjust gradient_accumulation_steps), or adjust learning_rate"
    return [Finding("effective-batch-changed", "params.yaml: train.effective_batch_size", what, fix)]
