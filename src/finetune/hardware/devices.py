"""Training devices: CPU, CUDA and Apple's GPU; what they support and how much memory they have."""

import os
import platform
import resource
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from finetune.config.model import Environment
from finetune.errors import MachineError
from finetune.hardware.host import processor_name, usable_memory
from finetune.reports.base import MachineReport

DEVICES: dict[Environment, str] = {"cpu": "cpu", "cuda": "cuda", "apple": "mps"}

FLASH_KERNELS = "*--kernels-community--flash-attn2"  # in the Hub's cache: the kernels that transformers uses instead
AMPERE = (8, 0)  # minimum compute capability for bfloat16 and tf32


def set_device_environment(environment: Environment, devices: int, *, deterministic: bool) -> None:
    """Set the environment variables of the device's libraries; call before torch is imported.

    CUDA: reproducible workspaces and backward pass of flash attention (docs.nvidia.com/cuda/cublas, section on
    reproducibility), and for a run on one device only one visible GPU, because the Trainer would otherwise split each
    micro-batch over all. Apple: operations that Metal lacks run on the CPU instead of ending the run, and memory is
    limited to what Metal recommends, with an error before the Mac swaps (the default limit is 1.7 times that). Existing
    settings are kept; if one is a high watermark, the low one must not exceed it, as torch's default of 1.4 would.
    """
    if environment == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
        if devices == 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    elif environment == "apple":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        high, low = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"
        if high not in os.environ and low not in os.environ:
            os.environ.update({high: "1.0", low: "0.9"})
        elif os.environ.get(high, "0.0") not in ("0", "0.0"):  # 0 means no limit at all
            os.environ.setdefault(low, os.environ[high])


def describe_machine(environment: Environment) -> MachineReport:
    """Return processor, cores, memory, accelerator and arithmetic, for reports of measurements."""
    import psutil
    import torch

    described: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": DEVICES[environment],
        "arithmetic": arithmetic(environment),
        "image": os.environ.get("FINETUNE_IMAGE"),  # of the container of this process, or None
    }
    if environment == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return MachineReport(**described)


def arithmetic(environment: Environment) -> dict[str, Any]:
    """Return what determines rounding on this machine besides the libraries: equal values give equal bits."""
    import torch

    if environment == "cuda":
        name = torch.cuda.get_device_properties(0).name
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {"gpu": name, "cuda": torch.version.cuda, "cudnn": cudnn}
    return {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def find_missing_device(environment: Environment) -> str | None:
    """Return what is missing if this machine lacks the environment's device, else None."""
    if environment == "cpu":
        return None
    if environment == "apple" and platform.system() != "Darwin":
        return "this machine has no Apple GPU"
    import torch

    if environment == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda
        return "no CUDA device found" if build else f"torch {torch.__version__} is a build without CUDA"
    if environment == "apple" and not torch.backends.mps.is_available():
        return "torch finds no Apple GPU (MPS)"
    return None


def count_devices(environment: Environment) -> int:
    """Return the number of devices of this kind; a CPU is one, regardless of the number of processes on it."""
    import torch

    return int(torch.cuda.device_count()) if environment == "cuda" else 1


def device_supports(number_format: Literal["bfloat16", "tf32"], environment: Environment) -> bool:
    """Return whether the device supports a number format: from Ampere on, and Apple's from macOS 14 on."""
    import torch

    if environment == "cuda":
        return bool(torch.cuda.get_device_capability(0) >= AMPERE)
    if environment == "apple" and number_format == "bfloat16":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return environment == "cpu" and number_format == "bfloat16"


def memory_bytes(environment: Environment) -> int:
    """Return the memory of one device: the GPU's own, on a Mac what Metal recommends at most, else the machine's."""
    if environment == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    if environment == "apple":
        import torch

        return int(torch.mps.recommended_max_memory())
    return usable_memory()


def require_device(environment: Environment) -> str:
    """Return the torch device of an environment (`cpu`, `cuda`, `mps`). Raise MachineError if it is missing."""
    missing = find_missing_device(environment)
    if missing:
        advice = "use a recipe for this machine (./finetune recipes lists them)"
        raise MachineError("params.yaml: environment", f"{environment}: {missing}", advice)
    return DEVICES[environment]


def peak_memory_bytes(environment: Environment) -> int | None:
    """Return the process's peak memory so far: allocated on the GPU, else resident; None if it is not measured."""
    if environment == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if environment == "apple":
        return None  # no peak counter there, and the current value would be a lower bound that could pass
    if sys.platform == "linux":  # ru_maxrss would do, but a new process inherits its parent's
        with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def used_memory_bytes(device: str) -> int:
    """Return the memory of the process on a torch device: the GPU's peak, Metal's current pool, else resident."""
    import psutil
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(psutil.Process().memory_info().rss)


def synchronize(environment: Environment) -> None:
    """Wait until the device has finished all its work, so that a time measured next is correct."""
    import torch

    if environment == "cuda":
        torch.cuda.synchronize()
    elif environment == "apple":
        torch.mps.synchronize()


def flash_attention_found() -> bool:
    """Return whether flash attention can be loaded without a network: the package, or its cached kernels."""
    if find_spec("flash_attn"):
        return True
    from huggingface_hub import constants

    return find_spec("kernels") is not None and any(Path(constants.HF_HUB_CACHE).glob(FLASH_KERNELS))
