"""Fails unless the locked packages are installed and work: `python installed.py cpu|cuda LOCK...`, a step of a build.

Checks that exactly the locked versions are installed, with their dependencies, that the libraries can be imported, the
build of PyTorch, and bitsandbytes' native code; for CUDA also the C compiler and the headers that Triton needs.
"""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

UNLOCKED = {"pip", "setuptools", "flash-attn", "einops"}  # part of the venv, or installed by FLASH_ATTN


def locked(locks: list[str]) -> dict[str, str]:
    """Return the versions of the packages that the locks specify for this machine."""
    lines = [line for lock in locks for line in Path(lock).read_text(encoding="utf-8").splitlines()]
    wanted = [Requirement(line.rstrip("\\ ")) for line in lines if re.match(r"[A-Za-z0-9]", line)]
    here = [item for item in wanted if item.marker is None or item.marker.evaluate()]
    return {canonicalize_name(item.name): next(iter(item.specifier)).version for item in here}


def check_versions(locks: list[str]) -> None:
    """Exit with an error unless exactly the locked packages are installed."""
    wanted = locked(locks)
    found = {canonicalize_name(item.metadata["Name"]): item.version for item in distributions()}
    wrong = [
        f"{name} {found.get(name, 'is missing')}, not {wanted[name]}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    wrong += [f"{name} {found[name]} is in no lock" for name in found.keys() - wanted.keys() - UNLOCKED]
    if wrong:
        sys.exit("error: " + "; ".join(sorted(wrong)))
    subprocess.run([sys.executable, "-m", "pip", "check", "--disable-pip-version-check"], check=True)
    print(f"{len(wanted)} packages at their locked versions")


def check_libraries(environment: str) -> None:
    """Exit with an error if a library can't be imported, or the PyTorch build or bitsandbytes' native code is wrong."""
    import peft
    import torch
    import transformers
    import trl
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    cuda = torch.version.cuda
    if (cuda is not None) if environment == "cpu" else not (cuda or "").startswith("13"):
        sys.exit(f"error: PyTorch {torch.__version__} is built for CUDA {cuda}, which is wrong for {environment}")
    values = torch.linspace(-1, 1, 4096).reshape(64, 64)
    packed, state = quantize_4bit(values, quant_type="nf4")
    error = float((dequantize_4bit(packed, state) - values).abs().mean())
    if not 0 < error < 0.1:  # NF4 has 16 levels: about 0.05 here
        sys.exit(f"error: bitsandbytes packs to NF4 and back with a mean error of {error}")
    if torch.__cached__ is None or not Path(torch.__cached__).is_file():
        sys.exit("error: the packages have no bytecode: every start in a read-only container would compile them")
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, transformers, peft, trl)]
    print(", ".join(versions))


def check_triton() -> None:
    """Raise CalledProcessError if Triton's driver stub, which the first kernel needs, can't be compiled."""
    import triton

    backend = Path(triton.__file__).parent / "backends/nvidia"
    headers = [f"-I{sysconfig.get_path('include')}", f"-I{backend / 'include'}"]
    with TemporaryDirectory() as folder:
        stub = ["gcc", str(backend / "driver.c"), "-O3", "-shared", "-fPIC", *headers, "-o", f"{folder}/stub.so"]
        subprocess.run(stub, check=True)
    print(f"triton {triton.__version__} compiles")


if __name__ == "__main__":
    check_versions(sys.argv[2:])
    check_libraries(sys.argv[1])
    if sys.argv[1] == "cuda":
        check_triton()
