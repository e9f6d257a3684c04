"""Settings against this machine: its devices, number formats, packages and disk."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.hardware import devices, preflight
from finetune.model import base
from finetune.validate.checks import machine as machine_checks
from finetune.validate.checks.machine import check_disk, check_machine, check_packages
from tests.builders.checked_settings import CUDA, FLASH, GB, codes, finding_text, spread
from tests.builders.kinds import Change


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_a_missing_tracker_package_is_reported(change: Change, tracker: str) -> None:
    """Otherwise a run of hours could fail with an import at its first step."""
    (finding,) = check_packages(change(**{"train.report_to": [tracker]}))
    assert (
        str(finding) == f"params.yaml: train.report_to: {tracker} is not installed; pip install {tracker}, or remove it"
    )
    assert check_packages(change()) == []


def test_the_choice_of_auto_attention_is_reported(change: Change) -> None:
    """The choice is always reported: on CUDA without flash attention it is sdpa."""
    assert codes(check_packages(change(**CUDA | {"model.attention": "auto"}))) == ["attention-fallback"]
    assert check_packages(change(**{"model.attention": "auto"})) == []


# ---- This machine

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(devices=2)`: simulate this machine for the checks; by default it has everything."""

    def seen(
        *,
        missing: str | None = None,
        devices: int = 8,
        supports: tuple[str, ...] = ("bfloat16", "tf32"),
        fast: bool = True,
        packages: tuple[str, ...] = ("deepspeed", "flash_attn", "tensorboard"),
    ) -> None:
        monkeypatch.setattr(preflight, "find_missing_device", lambda environment: missing)
        monkeypatch.setattr(preflight, "count_devices", lambda environment: devices)
        monkeypatch.setattr(
            machine_checks, "device_supports", lambda number_format, environment: number_format in supports
        )
        monkeypatch.setattr(machine_checks, "has_fast_bfloat16", lambda: fast)
        monkeypatch.setattr(preflight, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(preflight, "flash_attention_found", lambda: "flash_attn" in packages)

    return seen


def test_a_fully_equipped_machine_causes_no_finding(machine: Callable[..., None], change: Change) -> None:
    """A machine with everything causes no finding."""
    machine()
    for environment in ("cpu", "cuda", "apple"):
        keys = {"environment": environment, "train.bf16": True, "train.tf32": environment == "cuda"} | FLASH
        assert check_machine(change(**keys)) == []


def test_a_missing_device_is_the_only_warning(machine: Callable[..., None], change: Change) -> None:
    """validate may run on a laptop before the machine is rented, so other properties are not checked."""
    machine(missing="no CUDA device found", devices=0, supports=(), packages=())
    (finding,) = check_machine(change(**CUDA | FLASH | spread("zero2", devices=4)))
    assert finding_text(finding, "device-missing") == (
        "params.yaml: environment: no CUDA device found; "
        "use a recipe for this machine (./finetune doctor lists one), or run this one on its target machine"
    )


def test_too_few_devices_are_a_warning(machine: Callable[..., None], change: Change) -> None:
    """The advice keeps the effective batch size if possible in whole numbers; processes on a CPU have no limit."""
    config = change(**CUDA | spread("ddp", devices=4) | {"train.gradient_accumulation_steps": 2})
    machine(devices=4)
    assert check_machine(config) == []
    machine(devices=2)
    (finding,) = check_machine(config)
    assert finding_text(finding, "devices-missing") == (
        "params.yaml: train.distributed.devices: 4 devices per node are required, but 2 found; "
        "use 2 with train.gradient_accumulation_steps: 4, which keeps the effective batch size"
    )
    machine(devices=3)
    (finding,) = check_machine(config)
    assert finding.remedy == "use 3"
    machine(devices=1)
    assert check_machine(change(**spread("ddp", devices=4))) == []


@pytest.mark.parametrize(("key", "value"), [("train.bf16", True), ("model.dtype", "bfloat16")])
def test_a_device_without_bfloat16_is_an_error(
    machine: Callable[..., None], change: Change, key: str, value: Any
) -> None:
    """On a V100 or a T4, the first kernel would fail or be emulated for hours."""
    machine(supports=("tf32",))
    assert check_machine(change(environment="cuda")) == []
    (finding,) = check_machine(change(**{"environment": "cuda", key: value}))
    assert (
        finding_text(finding, "bf16-unsupported")
        == f"params.yaml: {key}: this device does not support bfloat16; use float16 and fp16: true"
    )


def test_an_old_processor_emulates_bfloat16(machine: Callable[..., None], change: Change) -> None:
    """Emulation is correct but slow, so it is a warning; with a GPU the processor does not matter."""
    machine(fast=False)
    assert check_machine(change()) == []
    assert check_machine(change(**{"environment": "cuda", "train.bf16": True})) == []
    (finding,) = check_machine(change(**{"train.bf16": True}))
    assert finding_text(finding, "bf16-slow") == (
        "params.yaml: train.bf16: this processor has no bfloat16 instructions (avx512_bf16, amx_bf16), so it is "
        "emulated; use float32 if memory allows"
    )


def test_a_device_without_tf32_is_an_error(machine: Callable[..., None], change: Change) -> None:
    """transformers refuses it, but only after the base is loaded."""
    machine(supports=("bfloat16",))
    assert check_machine(change(environment="cuda")) == []
    (finding,) = check_machine(change(**{"environment": "cuda", "train.tf32": True}))
    assert (
        finding_text(finding, "tf32-unsupported")
        == "params.yaml: train.tf32: this device is older than Ampere; set it to false"
    )


def test_missing_optional_packages_are_reported(machine: Callable[..., None], change: Change) -> None:
    """The packages are not in the lock, so they may be missing."""
    machine(packages=())
    attention, strategy = check_machine(change(**CUDA | FLASH | spread("zero3")))
    assert str(attention) == (
        "params.yaml: model.attention: neither flash_attn nor its kernels from the Hub are installed; "
        "pip install flash-attn --no-build-isolation, or use sdpa, which published benchmarks show to be as "
        "fast on an H100"
    )
    assert str(strategy) == (
        "params.yaml: train.distributed.strategy: zero3 needs the package deepspeed, which is not installed; "
        "pip install deepspeed, or use ddp"
    )
    assert [(found.code, found.severity) for found in (attention, strategy)] == [
        ("attention-missing", "warning"),
        ("strategy-missing", "warning"),
    ]
    machine(packages=("flash_attn",))
    assert check_machine(change(**CUDA | FLASH | spread("fsdp"))) == []


def test_flash_attention_needs_its_package_or_cached_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Change
) -> None:
    """With the package `kernels` alone, the run would download them at its start, possibly without a network."""
    packages: set[str] = set()
    monkeypatch.setattr(devices, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = change(**CUDA | {"model.attention": "auto"}).model
    assert not devices.flash_attention_found()
    packages.add("kernels")
    assert not devices.flash_attention_found()
    assert base.attention_used(model, "cuda") == "sdpa"
    (tmp_path / "models--kernels-community--flash-attn2").mkdir()
    assert devices.flash_attention_found()
    assert base.attention_used(model, "cuda") == "flash_attention_2"
    assert base.attention_used(model, "cpu") == "sdpa"
    assert base.attention_used(change(**{"model.attention": "auto"}).model, "cuda") == "sdpa"  # it is in float32
    packages.clear()
    assert not devices.flash_attention_found()
    packages.add("flash_attn")
    assert devices.flash_attention_found()


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise the run fails at its first checkpoint; with exactly the needed bytes there is no finding."""
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda root: Usage(9 * GB, 8 * GB, GB))
    assert check_disk(tmp_path, GB) == []
    (finding,) = check_disk(tmp_path, GB + 10**8)
    assert finding_text(finding, "disk-short") == (
        f"{tmp_path}: 1.0 GB are free, but checkpoints, adapter and data need 1.1 GB; "
        "free disk space (dvc gc -w), or lower train.save_total_limit"
    )
