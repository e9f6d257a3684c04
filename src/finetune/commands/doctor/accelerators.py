"""The accelerators of this machine and their software: CUDA GPUs, Apple's GPU, attention and 4-bit kernels.

With `quick`, torch is not imported: only nvidia-smi and the list of installed packages are used.
"""

import importlib
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from finetune.commands.doctor.host import Check, Status
from finetune.config.params import Config
from finetune.console import gigabytes
from finetune.containers.runtime import runtime_of
from finetune.hardware.accelerators import Accelerators
from finetune.hardware.devices import AMPERE, flash_attention_found
from finetune.hardware.preflight import find_package_problems, needs_bitsandbytes

FLASH = ("flash_attn", "kernels")
APPLE_VARIABLES = ("PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO")


def check_accelerators(config: Config, accelerators: Accelerators, quick: bool) -> Iterator[Check]:
    """Yield all checks of accelerators. A missing one is a problem only if the recipe requires it."""
    if not quick:
        yield check_torch()
    yield from check_cuda(config, accelerators, quick)
    if platform.system() == "Darwin" or config.environment == "apple":
        yield from check_apple(accelerators, quick)
    yield from check_optional(config)
    yield check_bitsandbytes(config, quick)


def check_torch() -> Check:
    """Report the torch version, its build and the instruction set of its CPU kernels."""
    if not find_spec("torch"):
        return Check("torch", "not installed", "missing", "make setup")
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    capability = torch.backends.cpu.get_cpu_capability()
    return Check(
        "torch", f"{torch.__version__}, built for {cuda}; CPU kernels: {capability}, {torch.get_num_threads()} threads"
    )


def check_cuda(config: Config, accelerators: Accelerators, quick: bool) -> Iterator[Check]:
    """Yield one check per GPU, or the reason why there is none."""
    wanted = config.environment == "cuda"
    for at, gpu in enumerate(accelerators.gpus):
        formats = "bf16, tf32" if gpu.capability >= AMPERE else "neither bf16 nor tf32"
        detail = (
            f"{gpu.name}, {gigabytes(gpu.memory_bytes)}, {gigabytes(gpu.free_bytes)} free, compute capability "
            f"{'.'.join(map(str, gpu.capability))} ({formats}), driver {accelerators.driver or 'unknown'}"
        )
        if gpu.free_bytes < gpu.memory_bytes / 2:
            yield Check(f"GPU {at}", detail, "warning", "nvidia-smi lists the processes that use it")
        elif wanted and config.train.bf16 and gpu.capability < AMPERE:
            yield Check(f"GPU {at}", detail, "warning", "set train.bf16: false and train.fp16: true")
        else:
            yield Check(f"GPU {at}", detail)
    if not accelerators.gpus and accelerators.shown and not quick and find_spec("torch"):
        import torch

        build = torch.version.cuda
        detail = f"the driver ({accelerators.driver}) lists {accelerators.shown}, but torch can't use any of them"
        remedy = f"update NVIDIA's driver to one for CUDA {build}" if build else "make setup ENVIRONMENT=cuda"
        yield Check("CUDA", detail, "missing" if wanted else "warning", remedy)
    elif not accelerators.gpus:
        remedy = "install NVIDIA's driver, or start the container with --gpus all"
        yield Check("CUDA", "no NVIDIA GPU found", *(("missing", remedy) if wanted else ()))


def check_apple(accelerators: Accelerators, quick: bool) -> Iterator[Check]:
    """Report Apple's GPU and the environment variables that affect torch on it."""
    variables = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in APPLE_VARIABLES)
    if accelerators.apple:
        yield Check("Apple GPU", f"MPS {'likely' if quick else 'available'}; {variables}")
        return
    built = "not checked"
    if not quick and find_spec("torch"):
        import torch

        built = "built in" if torch.backends.mps.is_built() else "not built in"
    remedy = "use a Mac with Apple silicon and macOS 14 or later, then run make setup ENVIRONMENT=apple"
    yield Check("Apple GPU", f"MPS not available ({built}); {variables}", "missing", remedy)


def check_optional(config: Config) -> Iterator[Check]:
    """Report optional packages that no lock contains: flash attention (or its kernels from the Hub) and others."""
    have = [name for name in FLASH if find_spec(name)]
    kernels = ", kernels fetched" if "flash_attn" not in have and flash_attention_found() else ""
    flash = Check("flash-attention", f"{', '.join(have) or 'not installed'}{kernels}")
    if runtime_of(config) == "native":  # an image has its own packages
        for problem in find_package_problems(config.environment, config.model, config.train):
            if problem.code == "attention-missing":
                flash = replace(flash, status="missing", remedy=problem.remedy)
            else:
                yield Check(problem.code, f"{problem.place}: {problem.message}", "missing", problem.remedy)
    yield flash


def check_bitsandbytes(config: Config, quick: bool) -> Check:
    """Check that the 4-bit and 8-bit kernels load; a wrong CUDA library prevents it."""
    status: Status = "missing" if needs_bitsandbytes(config.model, config.train) else "warning"
    if not find_spec("bitsandbytes"):
        return Check("bitsandbytes", "not installed", status, "make setup")
    if quick:
        return Check("bitsandbytes", "installed")
    try:
        version = importlib.import_module("bitsandbytes").__version__
    except Exception as error:  # it loads driver libraries, whose errors have no common class
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        remedy = "make setup for the environment of this machine"
        return Check("bitsandbytes", f"does not load: {first}", status, remedy)
    return Check("bitsandbytes", f"{version}, loads")
