"""Devices that train: CPU, CUDA and Apple's GPU; what they support and how much memory they have."""

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

FLASH_KERNELS = "*--kernels-community--flash-attn2"  # in the Hub's cache: what transformers takes for it
AMPERE = (8, 0)  # compute capability from which on GPUs compute bfloat16 and tf32


def set_device_environment(environment: Environment, devices: int, *, deterministic: bool) -> None:
    """What the device's libraries read from the environment; call before torch is imported.

    CUDA: workspaces and a backward pass of flash attention that repeat their bits (docs.nvidia.com/cuda/cublas, section
    on reproducibility), and for a run on one device one visible GPU, or the Trainer would split each micro-batch over
    all. Apple: operations that Metal lacks run on the CPU instead of ending the run, and memory ends at what Metal
    recommends, with an error before the Mac swaps (the default goes to 1.7 times of it). What is set already stays;
    where that is a high watermark, the low one must not lie above it, as torch's default of 1.4 would.
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
        elif os.environ.get(high, "0.0") not in ("0", "0.0"):  # 0 is no limit at all
            os.environ.setdefault(low, os.environ[high])


def describe_machine(environment: Environment) -> MachineReport:
    """Processor, cores, memory, accelerator and arithmetic, for the reports of what was measured."""
    import psutil
    import torch

    described: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": DEVICES[environment],
        "arithmetic": arithmetic(environment),
        "image": os.environ.get("FINETUNE_IMAGE"),  # of the container that this runs in; None for none
    }
    if environment == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return MachineReport(**described)


def arithmetic(environment: Environment) -> dict[str, Any]:
    """What decides how sums round on this machine, beside the libraries: the same here, the same bits."""
    import torch

    if environment == "cuda":
        name = torch.cuda.get_device_properties(0).name
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {"gpu": name, "cuda": torch.version.cuda, "cudnn": cudnn}
    return {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def find_missing_device(environment: Environment) -> str | None:
    """None where this machine has the environment's device, else what is missing."""
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
    """How many devices of this kind there are; a CPU is one, however many processes share it."""
    import torch

    return int(torch.cuda.device_count()) if environment == "cuda" else 1


def device_supports(number_format: Literal["bfloat16", "tf32"], environment: Environment) -> bool:
    """Whether the device computes a number format at all: from Ampere on, and Apple's from macOS 14 on."""
    import torch

    if environment == "cuda":
        return bool(torch.cuda.get_device_capability(0) >= AMPERE)
    if environment == "apple" and number_format == "bfloat16":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return environment == "cpu" and number_format == "bfloat16"


def memory_bytes(environment: Environment) -> int:
    """What one device may use: the GPU's own memory, of a Mac's what Metal recommends at most, else the machine's."""
    if environment == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    if environment == "apple":
        import torch

        return int(torch.mps.recommended_max_memory())
    return usable_memory()


def require_device(environment: Environment) -> str:
    """The torch device of an environment (`cpu`, `cuda`, `mps`); MachineError where this machine lacks it."""
    missing = find_missing_device(environment)
    if missing:
        advice = "use a recipe for this machine (./finetune recipes lists them)"
        raise MachineError("params.yaml: environment", f"{environment}: {missing}", advice)
    return DEVICES[environment]


def peak_memory_bytes(environment: Environment) -> int | None:
    """The process's peak memory so far: allocated on the GPU, else resident; None where nothing counts it."""
    if environment == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if environment == "apple":
        return None  # no peak counter there, and a present figure would be a lower bound that passes
    if sys.platform == "linux":  # ru_maxrss would do, but a new process inherits its parent's
        with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def used_memory_bytes(device: str) -> int:
    """What the process holds by now on a torch device: the GPU's peak so far, Metal's present pool, else resident."""
    import psutil
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if device == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(psutil.Process().memory_info().rss)


def synchronize(environment: Environment) -> None:
    """Wait until the device has done all that it was given, so that a clock read next means something."""
    import torch

    if environment == "cuda":
        torch.cuda.synchronize()
    elif environment == "apple":
        torch.mps.synchronize()


def flash_attention_found() -> bool:
    """Whether flash attention can be loaded here without a network: the package, or its kernels fetched before."""
    if find_spec("flash_attn"):
        return True
    from huggingface_hub import constants

    return find_spec("kernels") is not None and any(Path(constants.HF_HUB_CACHE).glob(FLASH_KERNELS))
