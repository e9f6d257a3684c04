"""Properties of this machine that need no torch: system, Python, processor, cores, memory, disk."""

import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.specifiers import SpecifierSet

from finetune.config.params import Config
from finetune.console import gigabytes
from finetune.hardware.host import allowed_cores, cgroup_limits, instruction_sets, processor_name, usable_memory
from finetune.model.cache import model_cache

Status = Literal["ok", "warning", "missing"]

OLDEST_MACOS, NF4_MACOS = 14, 26  # for bfloat16 and MPS in torch; for fast NF4 kernels in bitsandbytes
LITTLE_DISK = 10 * 10**9  # bytes; a small base model, its checkpoints and DVC's cache of them take several GB
INSTRUCTIONS = {"x86_64": ("avx2", "avx512f", "avx512_bf16", "amx_bf16"), "aarch64": ("asimd", "bf16")}


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's table: the subject, the result, and the command that fixes a problem."""

    what: str
    found: str
    status: Status = "ok"
    remedy: str = ""


def check_computer(config: Config, root: Path) -> Iterator[Check]:
    """Yield all checks of the machine except its accelerators."""
    yield check_system(config)
    yield check_python(root)
    yield Check("processor", f"{processor_name()} ({platform.machine()})")
    yield from check_instructions()
    yield check_cores()
    yield check_memory()
    yield check_disk("disk, this folder", root, "dvc gc -w")
    yield check_disk("disk, model cache", model_cache(), "set HF_HOME to a folder on a larger disk")


def check_system(config: Config) -> Check:
    """Report the system and its version, which determines what a Mac can compute."""
    name = platform.system()
    if name == "Darwin":
        version = platform.mac_ver()[0]
        major = int(version.split(".")[0] or 0)
        if major < OLDEST_MACOS:
            return Check("system", f"macOS {version}", "missing", f"update macOS to {OLDEST_MACOS} or later")
        if major < NF4_MACOS and config.environment == "apple" and config.model.quantization == "nf4":
            found = f"macOS {version}: NF4 uses slow fallbacks before macOS {NF4_MACOS}"
            return Check("system", found, "warning", f"install macOS {NF4_MACOS}, or set model.quantization: none")
        return Check("system", f"macOS {version}")
    try:
        title = platform.freedesktop_os_release().get("PRETTY_NAME", name)
    except OSError:
        title = name
    return Check("system", f"{title}, kernel {platform.release()}")


def check_python(root: Path) -> Check:
    """Compare the Python version with the range in pyproject.toml."""
    supported = python_range(root)
    version = f"{platform.python_version()} ({sys.executable}); required: {supported or 'any'}"
    if supported.contains(".".join(map(str, sys.version_info[:3]))):  # python_version() may end in "+"
        return Check("Python", version)
    newest = max((minor for minor in range(50) if supported.contains(f"3.{minor}")), default=13)
    return Check("Python", version, "missing", f"PYTHON=python3.{newest} make setup")


def python_range(root: Path) -> SpecifierSet:
    """Return `requires-python` of pyproject.toml (default: any version)."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return SpecifierSet(project["requires-python"])
    except (OSError, ValueError, KeyError):
        return SpecifierSet()


def check_cores() -> Check:
    """Report the number of cores, and how many of them this process may use."""
    logical = psutil.cpu_count() or 1
    found = f"{psutil.cpu_count(logical=False) or 'unknown'} physical, {logical} logical"
    allowed, (quota, _) = allowed_cores(), cgroup_limits()
    if quota is not None and quota < allowed:
        return Check("cores", f"{found}; the container may use {quota:g}", "warning", "give the container more CPUs")
    if allowed < logical:
        return Check("cores", f"{found}; this process may use {allowed}", "warning", "start it without taskset")
    return Check("cores", found)


def check_instructions() -> Iterator[Check]:
    """Yield which relevant instruction sets the processor has; nothing if the system does not report them."""
    wanted, known = INSTRUCTIONS.get(platform.machine(), ()), instruction_sets()
    if not wanted or not known:
        return
    have = [name for name in wanted if name in known]
    lacking = [name for name in wanted if name not in known]
    detail = ", ".join(have) + (f"; lacks {', '.join(lacking)}" if lacking else "")
    if wanted[0] in lacking:
        yield Check(
            "instructions",
            detail,
            "warning",
            "expect training to take hours instead of minutes, or use a newer machine",
        )
    else:
        yield Check("instructions", detail)


def check_memory() -> Check:
    """Report total memory, available memory and the container's limit."""
    memory = psutil.virtual_memory()
    unified = ", shared with the GPU" if platform.system() == "Darwin" else ""
    detail = f"{gigabytes(memory.total)}{unified}, {gigabytes(memory.available)} available"
    _, limit = cgroup_limits()
    if limit is not None and limit < memory.total:
        detail += f"; the container may use {gigabytes(limit)}"
    if memory.available < usable_memory() / 4:
        return Check("memory", detail, "warning", "close other programs")
    return Check("memory", detail)


def check_disk(what: str, folder: Path, remedy: str) -> Check:
    """Report the free space of the disk that holds a folder, even if the folder does not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    detail = f"{gigabytes(free)} free ({folder.absolute()})"
    return Check(what, detail) if free >= LITTLE_DISK else Check(what, detail, "warning", remedy)
