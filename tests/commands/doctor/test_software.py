"""The doctor's checks of the computer, packages, containers, the base, DVC and git."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.commands.doctor import host, software
from finetune.commands.doctor.host import Check
from finetune.commands.doctor.software import check_base
from finetune.config.params import Config
from finetune.hardware import host as hardware_host
from finetune.hardware.host import cgroup_limits
from tests.builders.made_up_machine import GB, HUB, Machine
from tests.builders.made_up_machine import machine as machine
from tests.conftest import ROOT

# ---- The computer


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, (None, None)),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, (None, None)),
        ({"cpu.max": "150000 100000\n", "memory.max": "8000000000\n"}, (1.5, 8 * GB)),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (None, None)),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            (2.0, None),
        ),
    ],
)
def test_container_limits_come_from_the_cgroup(tmp_path: Path, files: dict[str, str], limits: Any) -> None:
    """The limits come from cgroup version 2 or version 1; without a limit there is none."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="ascii")
    assert cgroup_limits(tmp_path) == limits


def test_container_limits_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the process count, not the size of the machine."""
    for module in (hardware_host, host):
        monkeypatch.setattr(module, "cgroup_limits", lambda: (0.5, 2 * GB))
    assert hardware_host.usable_memory() == 2 * GB
    cores = host.check_cores()
    assert cores.status == "warning"
    assert cores.found.endswith("the container may use 0.5")
    assert "the container may use 2.00 GB" in host.check_memory().found


@pytest.mark.parametrize(
    ("asked", "status"), [(">=3.11,<3.14", "ok"), (">=3.14", "missing"), ("<3.10", "missing"), ("", "ok")]
)
def test_python_is_compared_with_the_projects_range(tmp_path: Path, asked: str, status: str) -> None:
    """The Python version is compared with the project's range; without a range, any version is fine."""
    (tmp_path / "pyproject.toml").write_text(f'[project]\nrequires-python = "{asked}"\n', encoding="utf-8")
    assert host.check_python(tmp_path).status == status
    (tmp_path / "pyproject.toml").unlink()
    assert host.check_python(tmp_path).status == "ok"


def test_a_missing_avx2_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AVX2 everything runs, but slowly; if the system does not report it, the doctor does not either."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for flags, lines in [({"avx2", "amx_bf16"}, [("avx2, amx_bf16; lacks avx512f, avx512_bf16", "ok")]), (set(), [])]:
        monkeypatch.setattr(host, "instruction_sets", lambda flags=flags: flags)
        assert [(check.found, check.status) for check in host.check_instructions()] == lines
    monkeypatch.setattr(host, "instruction_sets", lambda: {"sse"})
    (check,) = host.check_instructions()
    assert check.status == "warning"


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the configured folder does not exist yet, the disk of its nearest parent is checked."""
    usage = SimpleNamespace(free=GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = host.check_disk("disk", tmp_path / "not" / "yet", "free some")
    assert found == Check("disk", f"1.00 GB free ({tmp_path / 'not' / 'yet'})", "warning", "free some")
    usage.free = 11 * GB
    assert host.check_disk("disk", tmp_path, "free some").status == "ok"


# ---- Packages, containers, base, DVC, git


def test_installed_packages_are_compared_with_the_lock(machine: Machine) -> None:
    """Differing and missing packages are listed with both versions; another build of torch is the same version."""
    hashed, root = " \\\n    --hash=sha256:0\n", machine.root
    pins = ["numpy==1.0 ; python_full_version < '3'", "numpy==2.0 ; python_full_version >= '3'", "no-such-thing==3.1"]
    (root / "requirements/cpu.lock").write_text("".join(pin + hashed for pin in pins), encoding="utf-8")
    version = metadata.version("torch").partition("+")[0]
    (root / "requirements/torch-cpu.lock").write_text(f"torch=={version}+other{hashed}", encoding="utf-8")
    found = software.check_packages("cpu", root)
    assert found == Check(
        "packages",
        "2 of 3 differ from requirements/cpu.lock: no-such-thing not installed (locked 3.1), "
        f"numpy {metadata.version('numpy')} (locked 2.0)",
        "missing",
        "rm -f .venv/installed-*; make setup ENVIRONMENT=cpu",
    )
    (root / "requirements/apple.lock").unlink()
    assert software.check_packages("apple", root).status == "missing"


@pytest.mark.parametrize(
    ("scripts", "found", "status"),
    [
        ({}, "docker, podman and buildah are not installed", "missing"),
        ({"podman": "exit 0", "buildah": "exit 0"}, "podman, buildah", "ok"),
        ({"docker": "echo 28.1"}, "docker; docker daemon 28.1 is running", "ok"),
        ({"docker": "exit 1"}, "docker; the docker daemon is not running", "warning"),
    ],
)
def test_docker_needs_a_running_daemon(machine: Machine, scripts: dict[str, str], found: str, status: str) -> None:
    """A docker command on PATH does not mean that the daemon runs."""
    machine.install(**scripts)
    check = software.check_containers(quick=False)
    assert (check.found, check.status, bool(check.remedy)) == (found, status, status != "ok")
    if "docker" in scripts:
        assert software.check_containers(quick=True) == Check("containers", "docker")


def test_the_configured_container_runtime_is_checked(
    change: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If stages run in containers, the configured engine and the image of these locks are checked."""
    monkeypatch.setenv("PATH", str(tmp_path))
    check = software.check_runtime(change(runtime="podman"), ROOT)
    assert (check.status, check.found) == ("missing", "runtime: podman is not installed")
    assert check.remedy.startswith("install it (https://podman.io")


def test_an_incomplete_base_in_the_cache_is_reported(machine: Machine, change: Callable[..., Config]) -> None:
    """The missing or truncated shard is named, with the command that downloads it."""
    root = machine.root
    model = change(**{f"model.{key}": value for key, value in HUB.items()}).model
    remedy = f"hf download org/name --revision {'0' * 40}"
    assert check_base(model, root) == Check(
        "base model", "org/name at 000000000000: not in the cache", "missing", remedy
    )
    folder = machine.hub / "hub/models--org--name/snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    names = [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]

    def trouble() -> str | None:
        return check_base(model, root).found.removeprefix("org/name at 000000000000")

    assert trouble() == ": no config.json"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert trouble() == ": 1 of 1 weight files missing (model.safetensors)"
    index = {"weight_map": {f"layer{at}": names[at // 2] for at in range(6)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_file({"w": np.zeros(64)}, folder / names[0])
    assert trouble() == f": 2 of 3 weight files missing ({names[1]}, {names[2]})"
    assert check_base(model, root).remedy == remedy
    for name in names[1:]:
        save_file({"w": np.zeros(64)}, folder / name)
    assert trouble() == ": complete in the cache"
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    assert trouble() == f": {names[1]} is truncated or damaged"
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    assert trouble() == ": model.safetensors.index.json is damaged"


def test_local_and_unpinned_bases_are_checked(config: Config, change: Callable[..., Config]) -> None:
    """The embedded base is complete; a base of the Hub without a revision is not."""
    assert check_base(config.model, ROOT).status == "ok"
    unpinned = check_base(change(**{"model.base": "org/name"}).model, ROOT)
    assert unpinned.remedy == "set model.revision to the 40 hex digits of a commit (./finetune pin)"


def test_each_state_of_git_is_reported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state has a message: no repository, refused by git, no commit, clean, changed, git missing."""
    root = machine.root / "work"
    root.mkdir()
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(machine.root))

    def do(*arguments: str) -> None:
        author = ["-c", "user.name=Me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", *author, "-C", str(root), *arguments], check=True, capture_output=True)

    def seen() -> Check:
        return software.check_git(root, quick=False)

    assert seen().remedy == "git init && git add -A && git commit -m start"
    (root / ".git").mkdir()  # the state in which git sees a repository of another user
    assert seen().found == f"git refuses {root}: it belongs to another user, or .git is broken"
    assert seen().remedy.startswith('chown -R "$(id -u):$(id -g)" .')
    do("init")
    assert seen().found == "a repository without a commit"
    do("commit", "--allow-empty", "-m", "one")
    assert seen().found.endswith(", clean")
    (root / "new").touch()
    assert seen().found.endswith(", 1 changed file")
    assert seen().status == "ok"
    (machine.programs / "git").unlink()
    assert seen().found == "not installed"


def test_a_missing_dvc_repository_or_remote_is_reported(tmp_path: Path) -> None:
    """A missing repository is an error of the folder, a missing remote is a choice."""
    assert software.check_dvc(tmp_path).remedy == "dvc init"
    (tmp_path / ".dvc").mkdir()
    assert software.check_dvc(tmp_path).status == "warning"
    (tmp_path / ".dvc/config").write_text("['remote \"team\"']\n    url = s3://x\n", encoding="utf-8")
    assert software.check_dvc(tmp_path).found.endswith(", remotes: team")
    (tmp_path / ".dvc/config").write_text("no section = 1\n", encoding="utf-8")
    assert software.check_dvc(tmp_path).status == "warning"
