"""The doctor on simulated GPUs and Macs."""

import importlib
import os
import platform
import shutil
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from finetune.commands.doctor import accelerators, host
from finetune.config.params import Config
from finetune.hardware import preflight
from finetune.hardware.accelerators import ask_driver
from finetune.plan import fit
from tests.builders.made_up_machine import GB, Machine
from tests.builders.made_up_machine import machine as machine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpu(24 * GB)`: simulate one CUDA device of this memory, as torch reports it."""
    import torch

    importlib.import_module("bitsandbytes")  # its first import fails halfway under a simulated CUDA

    def put(memory: int, free: int | None = None, capability: tuple[int, int] = (8, 9)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (memory if free is None else free, memory))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: "NVIDIA Test")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: capability)

    return put


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`mac("26.1")`: simulate a Mac with Apple silicon and 32 GB."""
    import torch

    def put(version: str) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr(platform, "machine", lambda: "arm64")
        monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
        for module in (host, fit):
            monkeypatch.setattr(module, "usable_memory", lambda: 32 * GB)
        memory = SimpleNamespace(total=32 * GB, available=16 * GB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    return put


CUDA = {"environment": "cuda"}
SMI = 'echo "NVIDIA Test, 24564, 24000, 8.9, 570.1"'


def test_a_24_gb_gpu_limits_the_recipes(machine: Machine, gpu: Callable[..., None]) -> None:
    """The GPU's own memory decides, not the host's; a recipe for four GPUs does not fit."""
    machine.install(nvidia_smi=SMI)
    gpu(24 * GB)
    machine.predict(fits=(7 * GB, 20 * GB), large=(70 * GB, 40 * GB), four=(7 * GB, 20 * GB))
    spread = {"nodes": 1, "devices": 4, "strategy": "ddp", "offload_optimizer": "none", "offload_param": "none"}
    machine.add(fits=CUDA, large=CUDA, four=CUDA | {"train": {"distributed": spread}})
    report = machine.report("fits")
    assert report["code"] == 0
    assert report["by"]["GPU 0"]["found"] == (
        "NVIDIA Test, 24.0 GB, 24.0 GB free, compute capability 8.9 (bf16, tf32), driver 570.1"
    )
    assert report["best"] == "fits"
    reasons = {fit["recipe"]: fit["why_not"] for fit in report["recipes"]}
    assert reasons["large"] == ["predicted peak memory 40.0 GB, available 24.0 GB"]
    assert machine.report("large")["code"] == 4
    assert reasons["four"] == ["4 devices per node are required, but 1 found"]


def test_an_old_and_busy_gpu_is_reported(machine: Machine, gpu: Callable[..., None]) -> None:
    """bfloat16 needs compute capability 8.0, and a GPU whose memory is half used is a warning."""
    gpu(16 * GB, free=2 * GB, capability=(7, 5))
    machine.add(old={"environment": "cuda", "train": {"bf16": True}})
    report = machine.report("old")
    seen = report["by"]["GPU 0"]
    assert (seen["status"], seen["remedy"]) == ("warning", "nvidia-smi lists the processes that use it")
    assert "neither bf16 nor tf32" in seen["found"]
    assert report["recipe"]["why_not"] == ["bfloat16 needs compute capability 8.0"]


def test_a_gpu_that_torch_cannot_use_is_reported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU build of torch on a machine with a GPU is reported. With --quick, the driver's answer is used."""
    machine.install(nvidia_smi=SMI)
    machine.add(big=CUDA)
    report = machine.report("big")
    assert report["code"] == 4
    assert report["by"]["CUDA"]["found"] == "the driver (570.1) lists 1, but torch can't use any of them"
    assert report["by"]["CUDA"]["remedy"] == "make setup ENVIRONMENT=cuda"
    assert machine.report("big", quick=True)["code"] == 0
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert machine.report("big")["by"]["CUDA"]["remedy"] == "update NVIDIA's driver to one for CUDA 13.0"


@pytest.mark.parametrize("answer", ["exit 9", "sleep 600", "echo nonsense", "echo 'NVIDIA-SMI has failed'"])
def test_an_unresponsive_driver_counts_as_no_gpu(machine: Machine, answer: str) -> None:
    """A driver that does not answer causes neither a hang nor a crash."""
    machine.install(nvidia_smi=answer.replace("sleep", shutil.which("sleep", path=os.defpath) or "sleep"))
    assert ask_driver(timeout=0.5) == ((), None)


def test_memory_unknown_to_the_driver_is_zero(machine: Machine) -> None:
    """The driver reports no memory where processor and GPU share it."""
    machine.install(nvidia_smi='echo "NVIDIA GB10, [N/A], [N/A], 12.1, 580.0"')
    ((found,), driver) = ask_driver(timeout=60)
    assert (found.memory_bytes, found.capability, driver) == (0, (12, 1), "580.0")


def test_a_mac_shares_its_memory(machine: Machine, mac: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the Mac is also the GPU's memory."""
    mac("26.1")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    machine.predict(fits=(7 * GB, 20 * GB), large=(13 * GB, 40 * GB))
    machine.add(fits={"environment": "apple"}, large={"environment": "apple"})
    report = machine.report("fits")
    assert (report["code"], report["best"]) == (0, "fits")
    assert report["by"]["system"]["found"] == "macOS 26.1"
    assert report["by"]["memory"]["found"] == "32.0 GB, shared with the GPU, 16.0 GB available"
    assert report["by"]["Apple GPU"]["found"] == (
        "MPS available; PYTORCH_ENABLE_MPS_FALLBACK=1, PYTORCH_MPS_HIGH_WATERMARK_RATIO=unset"
    )


@pytest.mark.parametrize(
    ("version", "quantization", "status", "remedy"),
    [
        ("26.0", "nf4", "ok", ""),
        ("15.5", "none", "ok", ""),
        ("15.5", "nf4", "warning", "install macOS 26, or set model.quantization: none"),
        ("13.7", "none", "missing", "update macOS to 14 or later"),
    ],
)
def test_mac_capabilities_depend_on_the_macos_version(
    mac: Callable[[str], None], change: Callable[..., Config], version: str, quantization: str, status: str, remedy: str
) -> None:
    """macOS supports bfloat16 from 14 on and fast NF4 from 26 on."""
    mac(version)
    found = host.check_system(change(**{"environment": "apple", "model.quantization": quantization}))
    assert (found.status, found.remedy) == (status, remedy)


def test_an_apple_recipe_needs_a_mac(machine: Machine) -> None:
    """The exit code is 4, as for any recipe whose device is missing."""
    machine.add(mac={"environment": "apple"})
    report = machine.report("mac")
    assert report["code"] == 4
    assert report["recipe"]["why_not"] == ["no Apple GPU"]
    assert report["by"]["Apple GPU"]["status"] == "missing"


def test_optional_packages_are_checked_if_the_recipe_needs_them(
    change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing optional package is reported only if the recipe needs it."""
    for module in (accelerators, preflight):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    plain = change(**{"model.attention": "sdpa", "train.report_to": []})
    wanting = change(
        **{"environment": "cuda", "model.attention": "flash_attention_2", "model.quantization": "nf4"}
        | {"model.dtype": "bfloat16", "train.bf16": True, "train.report_to": ["wandb"]}
    )
    assert [check.status for check in accelerators.check_optional(plain)] == ["ok"]
    found = {check.what: check.status for check in accelerators.check_optional(wanting)}
    assert found == {"flash-attention": "missing", "tracker-missing": "missing"}
    assert accelerators.check_bitsandbytes(plain, quick=True).status == "warning"
    assert accelerators.check_bitsandbytes(wanting, quick=True).status == "missing"


def test_a_failing_bitsandbytes_import_is_reported(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing import of bitsandbytes may raise any exception, and is reported."""

    def fail(name: str) -> None:
        raise RuntimeError("libcudart.so.13: cannot open\nand more")

    monkeypatch.setattr(accelerators.importlib, "import_module", fail)
    found = accelerators.check_bitsandbytes(config, quick=False)
    assert found.found == "does not load: libcudart.so.13: cannot open"
    assert found.remedy
