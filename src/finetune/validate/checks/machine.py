"""Check the settings against this machine: its device, memory and disk."""

import shutil
from pathlib import Path

from finetune.config.validate import ValidateParams
from finetune.hardware.devices import device_supports
from finetune.hardware.host import has_fast_bfloat16
from finetune.hardware.preflight import find_device_problem, find_package_problems
from finetune.model.base import attention_used
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CODES |= {
    "disk-short": Code("error", "run", "Checkpoints and caches need more disk space than is free.", in_params=False),
    "bf16-unsupported": Code("error", "run", "This device does not support bfloat16.", binding=True),
    "bf16-slow": Code("warning", "time", "This processor emulates bfloat16."),
    "attention-fallback": Code("note", "time", "auto finds no flash attention and uses sdpa."),
}


def check_machine(params: ValidateParams) -> list[Finding]:
    """Return all findings about this machine's device; the `settings` module covers its kind of device."""
    device = find_device_problem(params.environment, params.train)
    found = [] if device is None else [Finding.of(device)]
    if device is not None and device.code == "device-missing":
        return found
    return [*found, *check_number_formats(params), *check_packages(params)]


def check_number_formats(params: ValidateParams) -> list[Finding]:
    """Check that this device supports bfloat16 and tf32."""
    findings, environment = [], params.environment
    in_bf16 = params.train.bf16 or params.model.dtype == "bfloat16"
    where = "params.yaml: train.bf16" if params.train.bf16 else "params.yaml: model.dtype"
    if in_bf16 and not device_supports("bfloat16", environment):
        findings.append(
            Finding("bf16-unsupported", where, "this device does not support bfloat16", "use float16 and fp16: true")
        )
    if in_bf16 and environment == "cpu" and not has_fast_bfloat16():
        what = "this processor has no bfloat16 instructions (avx512_bf16, amx_bf16), so it is emulated"
        findings.append(Finding("bf16-slow", where, what, "use float32 if memory allows"))
    if params.train.tf32 and environment == "cuda" and not device_supports("tf32", environment):
        what = "this device is older than Ampere"
        findings.append(Finding("tf32-unsupported", "params.yaml: train.tf32", what, "set it to false"))
    return findings


def check_packages(params: ValidateParams) -> list[Finding]:
    """Check for packages that are not in the lock and that only some recipes need."""
    model, environment = params.model, params.environment
    findings = [Finding.of(problem) for problem in find_package_problems(environment, model, params.train)]
    if model.attention == "auto" and environment == "cuda" and attention_used(model, "cuda") == "sdpa":
        what = "auto selects sdpa: flash attention is not installed, or the weights are 32-bit"
        fix = "install flash-attn if the speed-up is worth it; the report lists the implementation used"
        findings.append(Finding("attention-fallback", "params.yaml: model.attention", what, fix))
    return findings


def check_disk(root: Path, needed: int) -> list[Finding]:
    """Compare the bytes needed for checkpoints, adapter and tokenized data with the free space."""
    free = shutil.disk_usage(root).free
    if free >= needed:
        return []
    what = f"{free / 1e9:.1f} GB are free, but checkpoints, adapter and data need {needed / 1e9:.1f} GB"
    return [
        Finding("disk-short", str(root.resolve()), what, "free disk space (dvc gc -w), or lower train.save_total_limit")
    ]
