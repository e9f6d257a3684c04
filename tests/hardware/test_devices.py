"""The machine's properties in the reports are measured on it."""

import errno
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from finetune.errors import MachineError
from finetune.hardware import devices, failures, host, versions

SOURCE = Path(__file__).parents[2] / "src"


def test_versions_list_the_relevant_libraries() -> None:
    """The list has Python and every relevant library with its installed version."""
    found = versions.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"python", *versions.VERSIONS_THAT_MATTER} <= set(found)
    assert set(found) <= {"python", *versions.VERSIONS_THAT_MATTER, *versions.OPTIONAL_VERSIONS}
    assert "not installed" not in found.values()


def test_optional_libraries_are_listed_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optional kernels affect the bits too; packages that are not installed are left out."""
    here = {"torch": "2.13.0", "flash-attn": "2.8.0"}

    def version(name: str) -> str:
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(metadata, "version", version)
    found = versions.versions()
    assert (found["flash-attn"], found["trl"]) == ("2.8.0", "not installed")
    assert "deepspeed" not in found


def test_a_mac_may_use_the_memory_that_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 GB that is two thirds: the rest is for the system."""
    import torch

    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 22_906_503_168)
    assert devices.memory_bytes("apple") == 22_906_503_168
    assert devices.memory_bytes("cpu") == host.usable_memory()


def test_peak_memory_is_in_bytes_and_of_the_process() -> None:
    """Linux counts KiB, macOS bytes: a factor of 1024 would pass or fail every memory criterion.

    A child of a large process inherits its ru_maxrss: three fresh processes would all measure the parent."""
    code = (
        "import os, subprocess, sys\nif len(sys.argv) == 1:\n    block = bytearray(600_000_000)\n"
        "    subprocess.run([sys.executable, '-c', os.environ['CODE'], 'child'], check=True)\n"
        "else:\n    from finetune.hardware.devices import peak_memory_bytes\n    before = peak_memory_bytes('cpu')\n"
        "    block = bytearray(200_000_000)\n    print(before, peak_memory_bytes('cpu'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CODE": code}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 300_000_000
    assert 150_000_000 < after - before < 250_000_000


class OutOfMemoryError(RuntimeError):
    """Like torch's own error, whose text may change."""


MEMORY = "out of memory (use a smaller batch size"
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.90 GB)"), MEMORY),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), MEMORY),
        (OutOfMemoryError("tried to allocate 2 GiB"), MEMORY),
        (MemoryError(), MEMORY),
        (OSError(12, "Cannot allocate memory"), MEMORY),
        (OSError(28, "No space left on device", "out of memory"), "out of memory: No space left on device (free disk"),
        *((OSError(number, "no", "x"), "x: no (free disk space") for number in NO_PLACE),
        *((OSError(number, "no", "x"), "x: no") for number in (errno.ECONNREFUSED, errno.ENOENT, errno.EMFILE)),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (RuntimeError("[enforce fail at inline_container.cc:672]"), "a checkpoint could not be written (free disk"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("DataLoader worker is killed by signal: Bus error, out of shared memory"), None),
        (RuntimeError("shape mismatch"), None),
    ],
)
def test_missing_disk_and_memory_are_reported(error: Exception, told: str | None) -> None:
    """A full disk is not an internal error, nor the reverse; advice on space is given only for a full disk.

    A smaller micro-batch is advised only after a lack of memory; otherwise the advice would hide the error."""
    found = failures.find_machine_problem(error)
    assert (found or "").startswith(told or "") and (found is None) == (told is None)
    assert ("(free disk" in (found or "")) == ("(free disk" in (told or ""))
    assert failures.is_out_of_memory(error) == (told == MEMORY)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("1.0", "0.9")),
        ({"HIGH": "0.8"}, ("0.8", "0.8")),
        ({"HIGH": "0.0"}, ("0.0", None)),
        ({"LOW": "1.2"}, (None, "1.2")),
        ({"HIGH": "0.8", "LOW": "0.5"}, ("0.8", "0.5")),
    ],
)
def test_metals_watermarks_are_consistent(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    """Torch refuses a low watermark above the high one, whoever set them, and its default for the low one is 1.4."""
    names = {name: f"PYTORCH_MPS_{name}_WATERMARK_RATIO" for name in ("HIGH", "LOW")}
    monkeypatch.setattr(os, "environ", {names[name]: value for name, value in given.items()})
    for _ in range(2):  # child processes inherit what the first call set
        devices.set_device_environment("apple", 1, deterministic=False)
    assert (os.environ.get(names["HIGH"]), os.environ.get(names["LOW"])) == expected
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"


@pytest.mark.parametrize("module", ["finetune.evaluate.stage", "finetune.commands.merge"])
def test_every_command_that_computes_prepares_its_device_first(module: str) -> None:
    """Torch reads the fallback at its import: set later, a Mac fails at the first operation that Metal lacks."""
    code = (
        f"import os, sys, types, {module} as module\n"
        "def require_device(environment):\n"
        "    sys.exit('torch' in sys.modules or os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK') != '1')\n"
        "module.require_device = require_device\n"
        "module.run(types.SimpleNamespace(environment='apple'), None)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTORCH_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(SOURCE)}, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (2.5, 2), (0.5, 1), (64.0, 6)])
def test_usable_cores_respect_process_and_container(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    """More threads than usable cores wait for each other; the machine's count ignores both limits."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(host, "cgroup_limits", lambda: (quota, None))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert host.usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")  # missing on macOS
    assert host.usable_cores() == cores


def test_the_machine_description_is_current() -> None:
    """Measurements need a description of the machine."""
    found = devices.describe_machine("cpu")
    assert found.cores == os.cpu_count()
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.device == "cpu"
    assert found.processor
    assert found.arithmetic == devices.arithmetic("cpu")


def test_missing_device_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of each environment is the one that torch knows by that name."""
    assert devices.require_device("cpu") == "cpu"
    monkeypatch.setattr(devices, "find_missing_device", lambda _: "no CUDA device found")
    with pytest.raises(MachineError) as caught:
        devices.require_device("cuda")
    assert str(caught.value) == (
        "params.yaml: environment: cuda: no CUDA device found; "
        "use a recipe for this machine (./finetune recipes lists them)"
    )
    monkeypatch.setattr(devices, "find_missing_device", lambda _: None)
    assert devices.require_device("apple") == "mps"


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have the device")
def test_a_device_of_another_system_is_missing() -> None:
    """There is no Apple GPU outside a Mac, and torch is not imported to find out."""
    assert devices.find_missing_device("apple") == "this machine has no Apple GPU"


def test_thread_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP settings of the user are kept."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    host.calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    host.calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
