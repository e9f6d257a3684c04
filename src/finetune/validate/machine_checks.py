"""Checks of the settings against the machine and its device."""

import shutil
from pathlib import Path

from finetune.config import Config
from finetune.machine import why_unavailable
from finetune.validate.findings import Finding

MINIMUM_FREE_BYTES = 10**9  # two checkpoints, the adapter and the tokenized data of a small run


def check_machine(config: Config, root: Path) -> list[Finding]:
    """All findings about the device, its precision and optimizer, and the disk."""
    findings = []
    missing = why_unavailable(config.environment)
    if missing:
        fix = "use a recipe for this machine (make recipes)"
        findings.append(Finding("device-missing", "warning", "params.yaml: environment", missing, fix))
    if config.environment != "cuda" and "8bit" in config.train.optim:
        what = f"{config.train.optim} needs CUDA, the environment is {config.environment}"
        findings.append(Finding("optimizer-needs-cuda", "error", "params.yaml: train.optim", what, "use adamw_torch"))
    if config.environment != "cuda" and config.train.fp16:
        what = f"fp16 needs CUDA's loss scaling, the environment is {config.environment}"
        findings.append(Finding("fp16-needs-cuda", "error", "params.yaml: train.fp16", what, "set it to false"))
    if config.environment != "cuda" and config.model.attention == "flash_attention_2":
        what = f"flash_attention_2 needs CUDA, the environment is {config.environment}"
        findings.append(Finding("attention-needs-cuda", "error", "params.yaml: model.attention", what, "use sdpa"))
    free = shutil.disk_usage(root).free
    if free < MINIMUM_FREE_BYTES:
        what = f"{free / 1e9:.1f} GB are free, checkpoints and caches need {MINIMUM_FREE_BYTES / 1e9:.0f} GB"
        findings.append(Finding("disk-nearly-full", "error", str(root.resolve()), what, "free some (dvc gc -w)"))
    return findings
