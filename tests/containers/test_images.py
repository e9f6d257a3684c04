"""The images: the build command of each engine, and the messages after failures."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetune.containers import images
from finetune.errors import ConfigError, FinetuneError, MachineError
from tests.builders.dockerfile_steps import BOTH, steps
from tests.builders.standin import ROOT
from tests.builders.waiting import PATIENCE

VARIABLES = ("BASE_IMAGE", "TORCH_INDEX", "FLASH_ATTN", "FLASH_ATTN_CUDA_ARCHS", "MAX_JOBS", "PIP_CONF", "CA_FILE")


# --------------------------------------------------------------------------------------------------------- the engines

Fake = Callable[..., None]

SLEEP = shutil.which("sleep")  # by its path, as PATH has only the engines


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake("podman", build="echo no; exit 1")`: put an engine on PATH; other commands do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{tmp_path / 'git'}")
    (tmp_path / "git").mkdir()
    for tool in ("git", "cat", "sh", "env"):
        (tmp_path / "git" / tool).symlink_to(str(shutil.which(tool, path="/usr/bin:/bin:/usr/local/bin")))
    for name in (*VARIABLES, "BUILD_OPTIONS"):
        monkeypatch.delenv(name, raising=False)

    def make(engine: str, **commands: str) -> None:
        cases = "".join(f"{name}) {what} ;;\n" for name, what in commands.items())
        path = folder / engine
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$1" in\n{cases}esac\n', encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def inspected(environment: Any, **changed: Any) -> str:
    """Return a shell command that prints docker's and podman's description of an image."""
    labels = {images.LOCK_LABEL: images.locks_sha256(environment, ROOT)}
    told = {"Id": "sha256:1234", "Size": 1_400_000_000, "Created": "2026-01-01T00:00:00Z", "Config": {"Labels": labels}}
    return f"echo '{json.dumps([told | changed])}'"


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
@BOTH
def test_build_commands_of_all_engines_agree(engine: str, environment: Any, tmp_path: Path) -> None:
    """The engines' command lines differ only in the name; buildah also keeps layers and removes containers."""
    secret = tmp_path / "pip.conf"
    secret.touch()
    variables = {"BASE_IMAGE": "x/y:1", "TORCH_INDEX": "https://t", "FLASH_ATTN": "2.8", "PIP_CONF": str(secret)}
    line = images.build_command(
        engine, environment, ROOT, variables | {"BUILD_OPTIONS": "--network host --volume '/a b:/c'", "CA_FILE": ""}
    )
    name = images.image_name(environment, ROOT)
    assert line[:6] == [engine, "build", "--file", str(ROOT / f"Dockerfile.{environment}"), "--tag", name]
    assert ("--layers" in line) == ("--force-rm" in line) == (engine == "buildah")
    arguments = dict(line[at + 1].split("=", 1) for at, word in enumerate(line) if word == "--build-arg")
    own = {"TORCH_INDEX": "https://t"} if environment == "cpu" else {"FLASH_ATTN": "2.8"}
    locks = images.locks_sha256(environment, ROOT)
    assert arguments.pop("REVISION") == images.revision(ROOT)
    assert arguments == {"BASE_IMAGE": "x/y:1", "LOCKS": locks, "NAME": name} | own
    assert line[line.index("--secret") + 1] == f"id=pip_conf,src={secret}"
    assert line[-5:] == ["--network", "host", "--volume", "/a b:/c", str(ROOT)]


def test_build_arguments_are_declared_in_the_dockerfiles() -> None:
    """For an undeclared build argument engines print only a warning."""
    for environment, names in images.ARGUMENTS.items():
        declared = {rest.split("=")[0] for name, rest in steps(environment) if name == "ARG"}
        assert {*names, "LOCKS", "NAME", "REVISION"} == declared
        secrets = {word for _, rest in steps(environment) for word in re.findall(r"type=secret,id=(\w+)", rest)}
        assert secrets == images.SECRETS.keys()


def test_a_build_reports_name_size_and_time(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    """The engine's output is followed by a line with the result."""
    fake("podman", build="echo STEP 1/2: FROM x", image=inspected("cpu"))
    images.run(ROOT, "cpu")
    told = capfd.readouterr()
    name = images.image_name("cpu", ROOT)
    assert re.fullmatch(rf"{name}: 1\.40 GB, built by podman in \d+ seconds\n", told.out)
    assert "STEP 1/2: FROM x" in told.err


@pytest.mark.parametrize(
    ("here", "preferred", "chosen"),
    [
        (("docker", "podman", "buildah"), None, "docker"),
        (("docker", "podman", "buildah"), "native", "docker"),
        (("docker", "podman"), "podman", "podman"),
        (("docker", "buildah"), "podman", "buildah"),
        (("podman", "buildah"), "docker", None),
        (("buildah",), None, "buildah"),
        ((), None, None),
    ],
)
def test_choice_of_engine(fake: Fake, here: tuple[str, ...], preferred: str | None, chosen: str | None) -> None:
    """docker is preferred to podman, podman to buildah; an engine whose images the runtime cannot use is skipped."""
    for engine in here:
        fake(engine)
    if chosen:
        assert images.choose_engine(preferred) == chosen
    else:
        with pytest.raises(MachineError, match=r"install one: `sudo apt-get install podman`"):
            images.choose_engine(preferred)


def test_an_engine_without_its_daemon_is_skipped(fake: Fake) -> None:
    """If only a docker client is installed, podman is used."""
    fake(
        "docker",
        info="echo 'Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?' >&2; exit 1",
    )
    fake("podman")
    assert images.choose_engine() == "podman"
    with pytest.raises(MachineError, match="docker is installed but not running"):
        images.choose_engine("docker")


DENIED = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
FAILURES = {
    "daemon": (
        {"info": "echo 'Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?' >&2; exit 1"},
        "docker is installed but not running; start it: `sudo systemctl start docker`, or Docker Desktop on a Mac",
    ),
    "denied": (
        {"info": f"echo '{DENIED}' >&2; exit 1"},
        (
            "docker: you don't have permission to use it; add yourself to the group docker (`sudo "
            "usermod -aG docker $USER`, then log in again)"
        ),
    ),
    "lost daemon": (
        {"build": "echo 'ERROR: Cannot connect to the Docker daemon at unix:///x.'; exit 1"},
        "docker is installed but not running; start it: `sudo systemctl start docker`, or Docker Desktop on a Mac",
    ),
    "buildkit": (
        {"build": "echo 'ERROR: BuildKit is enabled but the buildx component is missing or broken.'; exit 1"},
        "image: docker lacks BuildKit; install it (`sudo apt-get install docker-buildx`, or docker-buildx-plugin from "
        "Docker's own packages)",
    ),
    "base": (
        {"build": "echo 'ERROR: no.such/base:1: failed to resolve source metadata: no such host'; exit 1"},
        "image: BASE_IMAGE=no.such/base:1 can't be pulled: ERROR: no.such/base:1: failed to resolve "
        "source metadata: no such host; use an image that this machine can reach (Debian with Python 3.11 to 3.13): "
        "make image-cpu BASE_IMAGE=...",
    ),
    "space": (
        {"build": "echo 'write /x: no space left on device'; exit 1"},
        "image: no space is left; `docker images` lists the sizes of images",
    ),
    "torch": (
        {"build": "echo 'error: the CPU build is not on the index; set TORCH_INDEX to one that'; exit 1"},
        (
            "image: none of the package indexes tried has PyTorch's CPU build; set one that does: "
            "make image-cpu TORCH_INDEX=https://..."
        ),
    ),
    "step": (
        {"build": "echo '[2/2] STEP 5/9: RUN make it'; echo 'make: no such rule'; exit 2"},
        "image: the build failed in STEP 5/9: RUN make it; its last lines:\n"
        "[2/2] STEP 5/9: RUN make it\nmake: no such rule",
    ),
    "buildkit step": (
        {"build": "echo ' > [packages 4/5] RUN make it:'; echo '0.1 no rule'; exit 1"},
        "image: the build failed in [packages 4/5] RUN make it; its last lines:\n"
        " > [packages 4/5] RUN make it:\n0.1 no rule",
    ),
    "vanished": (
        {"image": "echo 'Error: No such image: x' >&2; exit 1"},
        f"docker reports that it built {images.image_name('cpu', ROOT)}, but has no such image for these locks; "
        "build it again",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_reported_with_a_remedy(fake: Fake, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The complete text of each failure is as expected."""
    commands, told = FAILURES[kind]
    fake("docker", **commands)
    monkeypatch.setenv("BASE_IMAGE", "no.such/base:1")
    with pytest.raises(MachineError) as error:
        images.run(ROOT, "cpu")
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"PIP_CONF": "/no/such/pip.conf"}, "PIP_CONF=/no/such/pip.conf: no such file"),
        ({"CA_FILE": "/no/such/ca"}, "CA_FILE=/no/such/ca: no such file"),
        ({"BUILD_OPTIONS": "--x 'y"}, "BUILD_OPTIONS: No closing quotation; it is parsed like shell words"),
    ],
)
def test_wrong_variables_are_reported(variables: Mapping[str, str], told: str) -> None:
    """They are usage errors, reported before anything is built."""
    with pytest.raises(ConfigError) as error:
        images.build_command("docker", "cpu", ROOT, variables)
    assert str(error.value) == told


def test_an_interrupted_build_stops_its_engine(fake: Fake, tmp_path: Path) -> None:
    """After Ctrl-C or finetune stop, the engine is stopped and waited for, and nothing is tagged."""
    fake("docker", build=f"trap 'echo gone > {tmp_path}/ended; exit 1' TERM; echo go; while :; do {SLEEP} 0.1; done")
    code = "from pathlib import Path; from finetune.containers.images import run; run(Path(), 'cpu')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr and process.stderr.readline() == "go\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "gone\n"


def test_the_revision_is_the_git_commit(tmp_path: Path) -> None:
    """The revision is the commit, with -dirty if files differ, or unknown outside of git."""
    assert images.revision(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    clean = images.revision(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "new").touch()
    assert images.revision(tmp_path) == f"{clean}-dirty"


def test_the_state_of_an_image_is_detected(fake: Fake) -> None:
    """Present, absent and unreachable are distinguished."""
    fake("docker", image=inspected("cpu", Config={"Labels": None}), images="printf 'finetune-cpu:1\\nother:2\\n'")
    assert images.find_image("docker", "x") == images.Image("1234", {}, 1_400_000_000)
    assert images.other_images("docker", "cpu") == ["finetune-cpu:1"]
    fake("podman", image="echo 'Error: x: image not known' >&2; exit 125", images="echo localhost/finetune-cuda:9")
    assert images.find_image("podman", "x") is None
    assert images.other_images("podman", "cuda") == ["finetune-cuda:9"]
    fake("docker", image="echo broken >&2; exit 1", images="echo broken >&2; exit 1")
    for asked in (lambda: images.find_image("docker", "x"), lambda: images.other_images("docker", "cpu")):
        with pytest.raises(MachineError, match="docker can't be used: broken"):
            asked()
    with pytest.raises(FinetuneError, match="buildah is not installed"):
        images.find_image("buildah", "x")
