"""What the reports say of the machine is measured on it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from finetune import machine
from finetune.errors import MachineError

SOURCE = Path(__file__).parents[1] / "src"


def test_versions_name_what_determines_a_result() -> None:
    """Python and every library that has a say, at the version that is installed."""
    found = machine.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found) == {"python", *machine.VERSIONS_THAT_MATTER}
    assert "not installed" not in found.values()


def test_peak_memory_is_in_bytes() -> None:
    """Linux counts KiB, macOS bytes: a factor of 1024 would pass or fail every memory criterion."""
    code = (
        "import sys; from finetune.machine import peak_memory_bytes; before = peak_memory_bytes('cpu')\n"
        "block = bytearray(200_000_000); print(before, peak_memory_bytes('cpu'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 150_000_000 < after - before < 250_000_000


def test_peak_memory_is_the_process_own() -> None:
    """A child of a large process inherits its ru_maxrss: three fresh processes would all measure the parent."""
    code = (
        "import os, subprocess, sys\nif len(sys.argv) == 1:\n    block = bytearray(600_000_000)\n"
        "    subprocess.run([sys.executable, '-c', os.environ['CODE'], 'child'], check=True)\n"
        "else:\n    from finetune.machine import peak_memory_bytes\n    print(peak_memory_bytes('cpu'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CODE": code}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000_000


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "out/x"), "out/x: No space left on device"),
        (OSError(30, "Read-only file system", "work"), "work: Read-only file system"),
        (MemoryError(), "no memory left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "no memory left"),
        (RuntimeError("[enforce fail at inline_container.cc:672]"), "a checkpoint could not be written"),
    ],
)
def test_what_the_machine_lacks_is_told(error: Exception, told: str) -> None:
    """A full disk is no defect of ours, and a defect of ours is no full disk."""
    assert str(machine.machine_trouble(error)).startswith(told)
    assert machine.machine_trouble(RuntimeError("shape mismatch")) is None


def test_described_machine_is_this_one() -> None:
    """Figures that were measured are worth nothing without what they were measured on."""
    found = machine.describe_machine("cpu")
    assert found["cores"] == os.cpu_count()
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["device"] == "cpu"
    assert found["processor"]


def test_missing_device_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the device of each environment is the one that torch knows by that name."""
    assert machine.require_device("cpu") == "cpu"
    monkeypatch.setattr(machine, "why_unavailable", lambda _: "no CUDA device answers")
    with pytest.raises(MachineError) as caught:
        machine.require_device("cuda")
    assert str(caught.value) == (
        "params.yaml: environment: cuda: no CUDA device answers; "
        "use a recipe for this machine (make recipes lists them)"
    )
    monkeypatch.setattr(machine, "why_unavailable", lambda _: None)
    assert machine.require_device("apple") == "mps"


def test_calm_threads_leave_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has tuned OpenMP keeps it."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    machine.calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    machine.calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
