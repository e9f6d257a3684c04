"""What this machine is: device, memory, processor and the versions of what determines a result."""

import errno
import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from finetune.config_model import Environment
from finetune.errors import MachineError

VERSIONS_THAT_MATTER = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers", "datasets")
OPTIONAL_VERSIONS = ("flash-attn", "kernels", "liger-kernel", "deepspeed", "triton")  # told where they are installed
OUT_OF_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "cannot allocate memory")  # in lower case
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # bytes; what version 1 of cgroups says where there is none is beyond it
TRACKERS = {  # of train.report_to: the modules that serve, one is enough
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
DEVICES: dict[Environment, str] = {"cpu": "cpu", "cuda": "cuda", "apple": "mps"}
AMPERE = (8, 0)  # compute capability from which on GPUs compute bfloat16 and tf32


def calm_threads() -> None:
    """Let torch's CPU threads sleep while they wait for each other; call before torch is imported.

    GNU OpenMP spins by default, and where another process wants a core too, a spinning thread holds up the one that it
    waits for. Measured on two cores, 30 training steps: 22 s spinning and 12 s not beside a busy process, 7.8 and 6.8
    alone; the same bits.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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


def versions() -> dict[str, str]:
    """The installed versions of the libraries that determine a result, and Python's."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONS_THAT_MATTER, *OPTIONAL_VERSIONS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in VERSIONS_THAT_MATTER:
                found[name] = "not installed"
    return found


def missing_trackers(names: Sequence[str]) -> list[str]:
    """Those of these trackers (`train.report_to`) that are not installed here."""
    return [name for name in names if not any(find_spec(module) for module in TRACKERS[name])]


def describe_machine(environment: Environment) -> dict[str, Any]:
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
    return described


def arithmetic(environment: Environment) -> dict[str, Any]:
    """What decides how sums round on this machine, beside the libraries: the same here, the same bits."""
    import torch

    if environment == "cuda":
        name = torch.cuda.get_device_properties(0).name
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {"gpu": name, "cuda": torch.version.cuda, "cudnn": cudnn}
    return {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def processor_name() -> str:
    """The processor's name as the system tells it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def why_unavailable(environment: Environment) -> str | None:
    """None where this machine has the environment's device, else what is missing."""
    import torch

    if environment == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda
        return "no CUDA device answers" if build else f"torch {torch.__version__} is a build without CUDA"
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


def has_fast_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them each product goes through float32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & instruction_sets())


def instruction_sets() -> set[str]:
    """The processor's flags as Linux tells them; empty elsewhere."""
    if sys.platform != "linux":
        return set()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    return set()


def memory_bytes(environment: Environment) -> int:
    """What one device may use: the GPU's own memory, of a Mac's what Metal recommends at most, else the machine's."""
    if environment == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    if environment == "apple":
        import torch

        return int(torch.mps.recommended_max_memory())
    return usable_memory()


def usable_memory() -> int:
    """Bytes that this machine has, or its container allows."""
    import psutil

    total, (_, limit) = int(psutil.virtual_memory().total), cgroup_limits()
    return total if limit is None else min(total, limit)


def allowed_cores() -> int:
    """Cores that this process may run on, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Cores that this process may keep busy: by its affinity and its container's quota, one at least."""
    allowed, (quota, _) = allowed_cores(), cgroup_limits()
    return allowed if quota is None else max(min(allowed, int(quota)), 1)


def cgroup_limits(root: Path = CGROUPS) -> tuple[float | None, int | None]:
    """(cores, bytes) that the container allows, by version 2 or 1 of cgroups; None where it sets no limit."""
    quota, period, memory = _number(root / "cpu/cpu.cfs_quota_us"), _number(root / "cpu/cpu.cfs_period_us"), None
    if (root / "cpu.max").is_file():
        asked, of = (root / "cpu.max").read_text(encoding="ascii").split()
        quota, period = (int(asked) if asked.isdigit() else None), int(of)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        memory = memory or _number(root / name)
    cores = quota / period if quota and period and quota > 0 else None
    return cores, memory if memory and memory < NO_LIMIT else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or `max`
        return None


def require_device(environment: Environment) -> str:
    """The torch device of an environment (`cpu`, `cuda`, `mps`); MachineError where this machine lacks it."""
    missing = why_unavailable(environment)
    if missing:
        advice = "use a recipe for this machine (make recipes lists them)"
        raise MachineError(f"params.yaml: environment: {environment}: {missing}; {advice}")
    return DEVICES[environment]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the machine or on its device: each allocator says it in its own words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


def machine_trouble(error: Exception) -> str | None:
    """What the machine lacks, in words, where an error is not the program's fault; None otherwise."""
    if is_out_of_memory(error):
        return "no memory left (use a smaller batch size or length, a smaller base, or nf4)"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in NO_PLACE:
            return f"{error.filename or 'a file'}: {error.strerror} (free some space, or make the place writable)"
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    text = str(error)
    if "PytorchStreamWriter" in text or "inline_container" in text:
        return "a checkpoint could not be written (free some space: dvc gc -w)"
    return None


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
