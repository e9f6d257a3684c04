"""Checks of the settings against this machine: its device, memory and disk."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from finetune.config.validate import ValidateParams
from finetune.hardware.devices import count_devices, device_supports, why_unavailable
from finetune.hardware.host import has_fast_bfloat16
from finetune.hardware.versions import missing_trackers
from finetune.model.base import attention_used, flash_attention_found
from finetune.validate.findings import Finding

PACKAGES = {"zero2": "deepspeed", "zero3": "deepspeed"}


def check_machine(params: ValidateParams) -> list[Finding]:
    """All findings about the device of this machine; those of its kind stand in settings_checks."""
    missing = why_unavailable(params.environment)
    if missing:
        fix = "use a recipe for this machine (./finetune doctor names one), or run this one where it belongs"
        return [Finding("device-missing", "params.yaml: environment", missing, fix)]
    return [*check_devices(params), *check_number_formats(params), *check_packages(params)]


def check_devices(params: ValidateParams) -> list[Finding]:
    """As many devices as the run is spread over."""
    asked, found = params.train.distributed.devices // params.train.distributed.nodes, count_devices(params.environment)
    if params.environment == "cpu" or found >= asked:
        return []
    where, what = "params.yaml: train.distributed.devices", f"{asked} are asked for, {found} found"
    accumulation, rest = divmod(params.train.gradient_accumulation_steps * asked, found)
    kept = f" with train.gradient_accumulation_steps: {accumulation}, which keeps the effective batch size"
    fix = f"use {found}{'' if rest else kept}"
    return [Finding("devices-missing", where, what, fix)]


def check_number_formats(params: ValidateParams) -> list[Finding]:
    """bfloat16 and tf32 against this device."""
    findings, environment = [], params.environment
    in_bf16 = params.train.bf16 or params.model.dtype == "bfloat16"
    where = "params.yaml: train.bf16" if params.train.bf16 else "params.yaml: model.dtype"
    if in_bf16 and not device_supports("bfloat16", environment):
        findings.append(Finding("bf16-unsupported", where, "this device has no bfloat16", "use float16 and fp16: true"))
    if in_bf16 and environment == "cpu" and not has_fast_bfloat16():
        what = "this processor has no bfloat16 instructions (avx512_bf16, amx_bf16), so it is emulated"
        findings.append(Finding("bf16-slow", where, what, "use float32 where memory allows"))
    if params.train.tf32 and environment == "cuda" and not device_supports("tf32", environment):
        what = "this device is older than Ampere"
        findings.append(Finding("tf32-unsupported", "params.yaml: train.tf32", what, "set it to false"))
    return findings


def check_packages(params: ValidateParams) -> list[Finding]:
    """What is not in the lock and only some recipes need."""
    findings = []
    if params.model.attention == "flash_attention_2" and not flash_attention_found():
        what = "neither flash_attn nor its kernels in the Hub's cache are here"
        fix = "install one, or use sdpa, which is no slower on an H100 by published tests"
        findings.append(Finding("attention-missing", "params.yaml: model.attention", what, fix))
    if (
        params.model.attention == "auto"
        and params.environment == "cuda"
        and attention_used(params.model, "cuda") == "sdpa"
    ):
        what = "auto means sdpa: flash attention is not installed, or the weights are in 32 bit"
        fix = "install flash-attn where it pays, or leave it: the report says which was used"
        findings.append(Finding("attention-fallback", "params.yaml: model.attention", what, fix))
    if params.train.use_liger_kernel and params.environment == "cuda" and not find_spec("liger_kernel"):
        what = "the package liger-kernel is not installed here"
        fix = "pip install liger-kernel, or set it to false"
        findings.append(Finding("liger-missing", "params.yaml: train.use_liger_kernel", what, fix))
    for name in missing_trackers(params.train.report_to):
        what, fix = f"{name} is not installed here", f"pip install {name}, or take it out"
        findings.append(Finding("tracker-missing", "params.yaml: train.report_to", what, fix))
    package = PACKAGES.get(params.train.distributed.strategy)
    if package and not find_spec(package):
        where, what = "params.yaml: train.distributed.strategy", f"the package {package} is not installed here"
        findings.append(Finding("strategy-missing", where, what, f"install {package}, or use ddp"))
    return findings


def check_disk(root: Path, needed: int) -> list[Finding]:
    """The bytes that checkpoints, the adapter and the tokenized data will take, against what is free."""
    free = shutil.disk_usage(root).free
    if free >= needed:
        return []
    what = f"{free / 1e9:.1f} GB are free, checkpoints, adapter and data need {needed / 1e9:.1f} GB"
    return [Finding("disk-short", str(root.resolve()), what, "free some (dvc gc -w), or lower train.save_total_limit")]
