"""The accelerators of this machine: the GPUs that torch can use or the driver lists, and Apple's.

With `quick`, torch is not imported: only nvidia-smi is used.
"""

import platform
from dataclasses import dataclass
from importlib.util import find_spec

from finetune.hardware.host import ask

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free,compute_cap,driver_version",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Accelerators:
    """The accelerators: the GPUs that torch can use (with `quick`: that the driver lists), and Apple's."""

    gpus: tuple[Gpu, ...]
    apple: bool
    driver: str | None  # NVIDIA's
    shown: int  # number of GPUs that the driver lists, usable by torch or not


def find_accelerators(quick: bool) -> Accelerators:
    """Query the driver and, unless `quick`, torch."""
    shown, driver = ask_driver(timeout=0.5 if quick else 20)
    is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    if quick or not find_spec("torch"):
        return Accelerators(shown, is_apple and quick, driver, len(shown))
    import torch

    return Accelerators(ask_torch(), bool(torch.backends.mps.is_available()), driver, len(shown))


def ask_driver(timeout: float) -> tuple[tuple[Gpu, ...], str | None]:
    """Return the GPUs that nvidia-smi lists, and the driver's version."""
    gpus, driver = [], None
    for line in (ask(*QUERY, timeout=timeout) or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 5:
            name, total, free, capability, driver = cells
            gpus.append(Gpu(name, _mebibytes(total), _mebibytes(free), _capability(capability)))
    return tuple(gpus), driver


def _mebibytes(text: str) -> int:
    return int(text) * 2**20 if text.isdigit() else 0  # `[N/A]` if memory is shared with the processor


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def ask_torch() -> tuple[Gpu, ...]:
    """Return the GPUs that torch can use."""
    import torch

    found = []
    for at in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(at)
        found.append(Gpu(torch.cuda.get_device_name(at), total, free, torch.cuda.get_device_capability(at)))
    return tuple(found)
