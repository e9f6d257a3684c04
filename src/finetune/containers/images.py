"""The images that stages run in: one an environment, named by the locks that it was built from.

An image is known by its label: the hash of the locks in requirements/ that its packages were installed from. Another
lock is another name, so an image that does not fit is never started by mistake.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

from finetune.config.model import Environment
from finetune.console import gigabytes, say
from finetune.errors import ConfigError, MachineError
from finetune.hardware.locks import locks_sha256
from finetune.pipeline.revisions import git_state

LOCK_LABEL = "finetune.locks"  # of an image: locks_sha256 of what it was built from
INSIDE = "FINETUNE_IMAGE"  # set in every image, to its name

# Who builds, by what a run's runtime is: podman and buildah share their images, docker's are its own.
BUILDERS = {"docker": ("docker",), "podman": ("podman", "buildah")}
ANY_BUILDER = ("docker", "podman", "buildah")
ARGUMENTS = {  # of the Dockerfiles: those that the caller's environment may set
    "cpu": ("BASE_IMAGE", "TORCH_INDEX"),
    "cuda": ("BASE_IMAGE", "FLASH_ATTN", "FLASH_ATTN_CUDA_ARCHS", "MAX_JOBS"),
}
# What a failed build's log holds, and what is told then.
KNOWN_FAILURES = {  # what is wrong, and what to do about it
    "no space left on device|disk quota exceeded": ("no space is left", "`{engine} images` lists the sizes of images"),
    "set TORCH_INDEX to": (
        "none of the package indexes tried has PyTorch's CPU build",
        "set one that does: make image-{environment} TORCH_INDEX=https://...",
    ),
    "buildx component is missing|unknown flag: --secret|BuildKit is enabled but": (
        "docker lacks BuildKit",
        "install it (`sudo apt-get install docker-buildx`, or docker-buildx-plugin from Docker's own packages)",
    ),
}
UNREACHABLE = (
    "cannot connect to the docker daemon|failed to connect to the docker api|cannot connect to podman|"
    "permission denied while trying to connect"
)
NO_BASE = (
    "creating build container|failed to resolve source metadata|pull access denied|manifest unknown|"
    "initializing source docker://|unable to copy from source"
)
SECRETS = {"pip_conf": "PIP_CONF", "ca": "CA_FILE"}  # the Dockerfiles' secrets, by the variables that name their files

# What an engine answers when there is no such image; everything else that it complains of is trouble.
ABSENT = ("no such image", "no such object", "image not known", "unable to find image")


@dataclass(frozen=True)
class Image:
    """An image that an engine holds: its content's id, its labels and its bytes on disk."""

    id: str
    labels: Mapping[str, str]
    bytes: int


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs containers here: its program, whether that is podman (docker may be its shim), whether without root."""

    program: str
    is_podman: bool
    rootless: bool


def find_engine(program: str) -> Engine:
    """The engine behind docker or podman; MachineError where it can't be asked."""
    if program == "podman" or "podman" in ask(program, "--version").stdout.lower():
        return Engine(program, True, os.getuid() != 0)
    return Engine(program, False, "rootless" in ask(program, "info", "--format", "{{.SecurityOptions}}").stdout)


def image_name(environment: Environment, root: Path) -> str:
    """The name and tag of the image that this tree's stages run in."""
    return f"finetune-{environment}:{locks_sha256(environment, root)[:12]}"


def find_image(engine: str, name: str) -> Image | None:
    """The image of that name that the engine (docker, podman or buildah) holds; None where it holds none.

    Raises MachineError where the engine can't be asked: it is not there, or its daemon does not answer.
    """
    kind = ["inspect", "--type", "image"] if engine == "buildah" else ["image", "inspect"]
    answer = ask(engine, *kind, name)
    if answer.returncode != 0:
        if any(text in answer.stderr.lower() for text in ABSENT):
            return None
        raise unreachable(engine, answer.stderr)
    told = json.loads(answer.stdout)
    return _read_buildah(told) if engine == "buildah" else _read_inspect(told[0])


def other_images(engine: str, environment: Environment) -> list[str]:
    """The names of all images of an environment that the engine holds, whatever locks they were built from.

    Raises MachineError where the engine can't be asked.
    """
    form = "{{.Name}}:{{.Tag}}" if engine == "buildah" else "{{.Repository}}:{{.Tag}}"
    answer = ask(engine, "images", "--format", form)
    if answer.returncode != 0:
        raise unreachable(engine, answer.stderr)
    names = {line.strip().removeprefix("localhost/") for line in answer.stdout.splitlines()}
    return sorted(name for name in names if name.startswith(f"finetune-{environment}:"))


def ask(engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What an engine answers; raises MachineError where it is not installed or does not answer within a minute."""
    try:
        return subprocess.run([engine, *arguments], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise MachineError("", f"{engine} is not installed", "install it, or choose another runtime") from None
    except subprocess.TimeoutExpired:
        raise MachineError("", f"{engine} did not answer within a minute", f"look at `{engine} info`") from None


def unreachable(engine: str, complaint: str) -> MachineError:
    """The error for an engine that is installed and does not serve, by what it complains of."""
    low = complaint.lower()
    last = last_line(complaint)
    if "permission denied" in low:
        fix = f"add yourself to the group {engine} (`sudo usermod -aG {engine} $USER`, then log in again)"
        return (
            MachineError(engine, "you don't have permission to use it", fix)
            if engine == "docker"
            else MachineError(engine, last)
        )
    if any(words in low for words in ("cannot connect", "failed to connect", "daemon running", "daemon is running")):
        start = "podman machine start" if engine == "podman" else f"sudo systemctl start {engine}"
        fix = f"start it: `{start}`, or Docker Desktop on a Mac"
        return MachineError("", f"{engine} is installed but not running", fix)
    return MachineError(f"{engine} can't be used", last, f"look at `{engine} info`")


def last_line(text: str) -> str:
    """The last line that says something."""
    return (text.strip() or "no reason given").splitlines()[-1].strip()


def _read_inspect(told: Mapping[str, Any]) -> Image:
    labels = told.get("Config", {}).get("Labels") or {}
    return Image(told["Id"].removeprefix("sha256:"), labels, int(told["Size"]))


def _read_buildah(told: Mapping[str, Any]) -> Image:
    docker = told["Docker"]
    layers = json.loads(told["Manifest"])["layers"]  # in local storage these are the sizes of the unpacked layers
    size = sum(int(layer["size"]) for layer in layers)
    return Image(told["FromImageID"], docker.get("config", {}).get("Labels") or {}, size)


# ------------------------------------------------------------------------------------------------------------ building


def run(root: Path, environment: Environment, preferred: str | None = None) -> None:
    """Build the image that this tree's stages run in, showing the engine's words; tell its name, size and time.

    The engine is docker, podman or buildah, the first that works; where the runtime `preferred` is docker or
    podman, one whose images it can start. The name is given when all is done, so a failure leaves what had it before.
    Raises MachineError (no engine, no base, no space, a failed step) and ConfigError (a variable that can't be right).
    """
    began = time.monotonic()
    engine, name = choose_engine(preferred), image_name(environment, root)
    code, log = follow(build_command(engine, environment, root, os.environ))
    if code != 0:
        raise failure(engine, environment, os.environ.get("BASE_IMAGE"), log)
    image = find_image(engine, name)
    if image is None or image.labels.get(LOCK_LABEL) != locks_sha256(environment, root):
        message = f"{engine} reports that it built {name}, but has no such image for these locks"
        raise MachineError("", message, "build it again")
    say(f"{name}: {gigabytes(image.bytes)}, built by {engine} in {time.monotonic() - began:.0f} seconds")


def follow(line: list[str]) -> tuple[int, list[str]]:
    """Run an engine and show its words on standard error; gives its exit code and the last of its words."""
    surroundings = os.environ | {"BUILDKIT_PROGRESS": "plain", "DOCKER_BUILDKIT": "1"}
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=surroundings
    )
    tail: deque[str] = deque(maxlen=400)
    try:
        for text in process.stdout or ():
            tail.append(text.rstrip())
            sys.stderr.write(text)
        return process.wait(), list(tail)
    finally:
        if process.poll() is None:  # interrupted: an engine takes its unfinished containers away when it is told
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def choose_engine(preferred: str | None = None) -> str:
    """The first engine that is here and works; MachineError that says why the first one does not, or how to get one."""
    wanted = BUILDERS.get(preferred or "", ANY_BUILDER)
    here = [engine for engine in wanted if which(engine)]
    if not here:
        install = "`sudo apt-get install podman` (Debian, Ubuntu), or https://docs.docker.com/engine/install"
        message = f"no engine that can build images is installed ({' or '.join(wanted)})"
        raise MachineError("", message, f"install one: {install}")
    troubles = []
    for engine in here:
        answer = ask(engine, "info")
        if answer.returncode == 0:
            return engine
        troubles.append(unreachable(engine, answer.stderr))
    raise troubles[0]


def build_command(engine: str, environment: Environment, root: Path, variables: Mapping[str, str]) -> list[str]:
    """The engine's command line that builds an image; BUILD_OPTIONS of the caller's environment come last and win.

    Raises ConfigError where a secret's file is missing or BUILD_OPTIONS has an open quote.
    """
    given = {key: variables[key] for key in ARGUMENTS[environment] if variables.get(key)}
    given |= {
        "LOCKS": locks_sha256(environment, root),
        "NAME": image_name(environment, root),
        "REVISION": revision(root),
    }
    line = [engine, "build", "--file", str(root / f"Dockerfile.{environment}"), "--tag", given["NAME"]]
    line += ["--layers", "--force-rm"] if engine == "buildah" else []  # the others do so unasked
    line += [part for key, value in given.items() for part in ("--build-arg", f"{key}={value}")]
    for secret, variable in SECRETS.items():
        if variables.get(variable):
            path = Path(variables[variable]).expanduser().absolute()
            if not path.is_file():
                raise ConfigError(f"{variable}={variables[variable]}", "no such file")
            line += ["--secret", f"id={secret},src={path}"]
    try:
        line += shlex.split(variables.get("BUILD_OPTIONS", ""))
    except ValueError as error:
        raise ConfigError("BUILD_OPTIONS", str(error), "it is parsed like shell words") from None
    return [*line, str(root)]


def revision(root: Path) -> str:
    """The commit that is built, with -dirty where files differ from it; "unknown" outside of git."""
    commit, clean = git_state(root, untracked=True)
    return "unknown" if commit is None else commit if clean else f"{commit}-dirty"


def failure(engine: str, environment: Environment, base: str | None, log: Sequence[str]) -> MachineError:
    """The error for a build that failed, by the last lines of its log; `base` is BASE_IMAGE where the caller set it."""
    text = "\n".join(log)
    for pattern, parts in KNOWN_FAILURES.items():
        if re.search(pattern, text, re.IGNORECASE):
            message, remedy = (part.format(engine=engine, environment=environment) for part in parts)
            return MachineError("image", message, remedy)
    if re.search(UNREACHABLE, text, re.IGNORECASE):
        return unreachable(engine, text)
    if re.search(NO_BASE, text, re.IGNORECASE):
        what = f"BASE_IMAGE={base}" if base else f"BASE_IMAGE of Dockerfile.{environment}"
        fix = "use an image that this machine can reach (Debian with Python 3.11 to 3.13)"
        fix += f": make image-{environment} BASE_IMAGE=..."
        return MachineError("image", f"{what} can't be pulled: {last_line(text)}", fix)
    return MachineError("image", f"the build failed in {failed_step(log)}", "its last lines:\n" + "\n".join(log[-12:]))


def failed_step(log: Sequence[str]) -> str:
    """The step that failed: the last one of buildah and podman, the one that BuildKit quotes."""
    for line in reversed(log):
        step = re.match(r"(?:\[\d+/\d+\] )?(STEP \d+/\d+: .*)| *> (\[.*?\] .*?):?$", line)
        if step:
            return (step[1] or step[2])[:120]
    return "an unnamed step"
