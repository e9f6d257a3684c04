"""The accelerators of this machine and what computes on them: CUDA GPUs, Apple's GPU, attention and 4-bit kernels.

With `quick`, only what answers without torch: nvidia-smi, and which packages are installed.
"""

import importlib
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec

from finetune.commands.doctor.host import Check, Status
from finetune.config.params import Config
from finetune.console import gigabytes
from finetune.hardware.accelerators import Accelerators
from finetune.hardware.devices import AMPERE
from finetune.model.base import flash_attention_found

FLASH = ("flash_attn", "kernels")

APPLE_VARIABLES = ("PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO")


def check_accelerators(config: Config, found: Accelerators, quick: bool) -> Iterator[Check]:
    """All lines about accelerators; a missing one is amiss only where the recipe asks for it."""
    if not quick:
        yield check_torch()
    yield from check_cuda(config, found, quick)
    if platform.system() == "Darwin" or config.environment == "apple":
        yield from check_apple(found, quick)
    yield check_attention(config)
    yield check_bitsandbytes(config, quick)


def check_torch() -> Check:
    """torch, what it was built for, and which instruction set its CPU kernels use."""
    if not find_spec("torch"):
        return Check("torch", "not installed", "missing", "make setup")
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    capability = torch.backends.cpu.get_cpu_capability()
    return Check(
        "torch", f"{torch.__version__}, built for {cuda}; CPU kernels: {capability}, {torch.get_num_threads()} threads"
    )


def check_cuda(config: Config, found: Accelerators, quick: bool) -> Iterator[Check]:
    """A line a GPU, or why there is none."""
    wanted = config.environment == "cuda"
    for at, gpu in enumerate(found.gpus):
        formats = "bf16, tf32" if gpu.capability >= AMPERE else "neither bf16 nor tf32"
        told = (
            f"{gpu.name}, {gigabytes(gpu.memory_bytes)}, {gigabytes(gpu.free_bytes)} free, compute capability "
            f"{'.'.join(map(str, gpu.capability))} ({formats}), driver {found.driver or 'unknown'}"
        )
        if gpu.free_bytes < gpu.memory_bytes / 2:
            yield Check(f"GPU {at}", told, "warning", "nvidia-smi, to see who uses it")
        elif wanted and config.train.bf16 and gpu.capability < AMPERE:
            yield Check(f"GPU {at}", told, "warning", "set train.bf16: false and train.fp16: true")
        else:
            yield Check(f"GPU {at}", told)
    if not found.gpus and found.shown and not quick:
        build = _cuda_build()
        told = f"the driver ({found.driver}) shows {found.shown}, and torch can use none"
        remedy = f"update NVIDIA's driver to one for CUDA {build}" if build else "make setup ENVIRONMENT=cuda"
        yield Check("CUDA", told, "missing" if wanted else "warning", remedy)
    elif not found.gpus:
        remedy = "install NVIDIA's driver, or start the container with --gpus all"
        yield Check("CUDA", "no NVIDIA GPU answers", *(("missing", remedy) if wanted else ()))


def _cuda_build() -> str | None:
    """The CUDA version that torch was built for, where it was."""
    if not find_spec("torch"):
        return None
    import torch

    return torch.version.cuda


def check_apple(found: Accelerators, quick: bool) -> Iterator[Check]:
    """Apple's GPU, and the variables by which torch treats it."""
    variables = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in APPLE_VARIABLES)
    if found.apple:
        yield Check("Apple GPU", f"MPS {'likely' if quick else 'available'}; {variables}")
        return
    built = "not asked" if quick or not find_spec("torch") else "built in" if _mps_is_built() else "not built in"
    remedy = "use a Mac with Apple silicon and macOS 14 or later, and make setup ENVIRONMENT=apple"
    yield Check("Apple GPU", f"MPS not available ({built}); {variables}", "missing", remedy)


def _mps_is_built() -> bool:
    import torch

    return bool(torch.backends.mps.is_built())


def check_attention(config: Config) -> Check:
    """flash_attention_2: a package, or kernels that were fetched before."""
    have = [name for name in FLASH if find_spec(name)]
    found = flash_attention_found()
    told = f"{', '.join(have) or 'not installed'}{', kernels fetched' if found and 'flash_attn' not in have else ''}"
    if config.model.attention != "flash_attention_2" or found:
        return Check("flash-attention", told)
    remedy = "pip install flash-attn --no-build-isolation, or set model.attention: sdpa"
    return Check("flash-attention", told, "missing", remedy)


def check_bitsandbytes(config: Config, quick: bool) -> Check:
    """Whether the 4-bit and 8-bit kernels can be loaded, which a wrong CUDA library prevents."""
    wanted = config.model.quantization == "nf4" or config.train.optim.endswith("8bit")
    status: Status = "missing" if wanted else "warning"
    if not find_spec("bitsandbytes"):
        return Check("bitsandbytes", "not installed", status, "make setup")
    if quick:
        return Check("bitsandbytes", "installed")
    try:
        version = importlib.import_module("bitsandbytes").__version__
    except Exception as error:  # it loads libraries of the driver, which fail in their own ways
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return Check(
            "bitsandbytes", f"does not load: {first}", status, "make setup, for the environment of this machine"
        )
    return Check("bitsandbytes", f"{version}, loads")
