"""All checks that need no row and no device: what validate and a plan both ask of a config."""

from pathlib import Path

from finetune.config import Config
from finetune.plan.outlook import Outlook
from finetune.validate.adapter_checks import check_adapter
from finetune.validate.base_checks import Base
from finetune.validate.findings import Finding
from finetune.validate.plan_checks import check_plan
from finetune.validate.reference_checks import check_reference
from finetune.validate.run_checks import check_run
from finetune.validate.settings_checks import check_settings


def check_config(config: Config, root: Path, base: Base, outlook: Outlook) -> list[Finding]:
    """The findings about base, settings, adapter, schedule, plan, and the recipe that the config names."""
    return [
        *base.findings,
        *check_settings(config, base.architecture),
        *check_adapter(config, base.architecture),
        *check_run(config.train, outlook.schedule),
        *check_plan(config, outlook),
        *check_reference(config, root / "recipes"),
    ]
