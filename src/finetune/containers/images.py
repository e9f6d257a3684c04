"""The container images of the stages: one per environment, named by the locks that it was built from.

An image's label is the hash of the locks in requirements/ from which its packages were installed. Another lock gives
another name, so an unsuitable image is never started by mistake.
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

LOCK_LABEL = "finetune.locks"  # of an image: locks_sha256 of its build
INSIDE = "FINETUNE_IMAGE"  # set to the image's name in every image

# The programs that can build for a runtime: podman and buildah share their images, docker's are separate.
BUILDERS = {"docker": ("docker",), "podman": ("podman", "buildah")}
ANY_BUILDER = ("docker", "podman", "buildah")
ARGUMENTS = {  # of the Dockerfiles, if the caller's environment sets them
    "cpu": ("BASE_IMAGE", "TORCH_INDEX"),
    "cuda": ("BASE_IMAGE", "FLASH_ATTN", "FLASH_ATTN_CUDA_ARCHS", "MAX_JOBS"),
}
# Text in the log of a failed build, and the corresponding message.
KNOWN_FAILURES = {  # the problem and the remedy
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

# An engine's messages if an image does not exist; all other messages are failures.
ABSENT = ("no such image", "no such object", "image not known", "unable to find image")


@dataclass(frozen=True)
class Image:
    """An image in an engine's storage: its content's id, its labels and its bytes on disk."""

    id: str
    labels: Mapping[str, str]
    bytes: int


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine that runs containers: its program, whether it is podman (maybe as docker's shim), whether rootless."""

    program: str
    is_podman: bool
    rootless: bool


def find_engine(program: str) -> Engine:
    """Return the engine behind docker or podman. Raise MachineError if it does not respond."""
    if program == "podman" or "podman" in ask(program, "--version").stdout.lower():
        return Engine(program, True, os.getuid() != 0)
    return Engine(program, False, "rootless" in ask(program, "info", "--format", "{{.SecurityOptions}}").stdout)


def image_name(environment: Environment, root: Path) -> str:
    """Return name and tag of the image for this tree's stages."""
    return f"finetune-{environment}:{locks_sha256(environment, root)[:12]}"


def find_image(engine: str, name: str) -> Image | None:
    """Return the image of that name in the engine (docker, podman or buildah), or None.

    Raises MachineError if the engine is not installed or its daemon does not respond.
    """
    kind = ["inspect", "--type", "image"] if engine == "buildah" else ["image", "inspect"]
    answer = ask(engine, *kind, name)
    if answer.returncode != 0:
        if any(text in answer.stderr.lower() for text in ABSENT):
            return None
        raise unreachable(engine, answer.stderr)
    record = json.loads(answer.stdout)
    return _read_buildah(record) if engine == "buildah" else _read_inspect(record[0])


def other_images(engine: str, environment: Environment) -> list[str]:
    """Return the names of all images of an environment in the engine, for any locks.

    Raises MachineError if the engine does not respond.
    """
    form = "{{.Name}}:{{.Tag}}" if engine == "buildah" else "{{.Repository}}:{{.Tag}}"
    answer = ask(engine, "images", "--format", form)
    if answer.returncode != 0:
        raise unreachable(engine, answer.stderr)
    names = {line.strip().removeprefix("localhost/") for line in answer.stdout.splitlines()}
    return sorted(name for name in names if name.startswith(f"finetune-{environment}:"))


def ask(engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an engine's command. Raise MachineError if it is not installed or does not respond within a minute."""
    try:
        return subprocess.run([engine, *arguments], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise MachineError("", f"{engine} is not installed", "install it, or choose another runtime") from None
    except subprocess.TimeoutExpired:
        raise MachineError("", f"{engine} did not answer within a minute", f"look at `{engine} info`") from None


def unreachable(engine: str, complaint: str) -> MachineError:
    """Build the error for an installed engine that does not work, from its message."""
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
    """Return the last non-empty line."""
    return (text.strip() or "no reason given").splitlines()[-1].strip()


def _read_inspect(record: Mapping[str, Any]) -> Image:
    labels = record.get("Config", {}).get("Labels") or {}
    return Image(record["Id"].removeprefix("sha256:"), labels, int(record["Size"]))


def _read_buildah(record: Mapping[str, Any]) -> Image:
    docker = record["Docker"]
    layers = json.loads(record["Manifest"])["layers"]  # in local storage, these are the sizes of the unpacked layers
    size = sum(int(layer["size"]) for layer in layers)
    return Image(record["FromImageID"], docker.get("config", {}).get("Labels") or {}, size)


# ------------------------------------------------------------------------------------------------------------ building


def run(root: Path, environment: Environment, preferred: str | None = None) -> None:
    """Build the image for this tree's stages, showing the engine's output; print its name, size and time.

    The engine is the first of docker, podman and buildah that works; if the runtime `preferred` is docker or podman,
    one whose images it can start. The name is assigned at the end, so a failure keeps the previous image of this name.
    Raises MachineError (no engine, no base, no space, a failed step) and ConfigError (an invalid variable).
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
    """Run an engine and show its output on standard error; return its exit code and the last lines."""
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
        if process.poll() is None:  # interrupted: an engine that receives a signal removes its unfinished containers
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def choose_engine(preferred: str | None = None) -> str:
    """Return the first engine that works. Raise MachineError with the first one's failure, or how to install one."""
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
    """Return the engine's build command; BUILD_OPTIONS of the caller's environment come last and take precedence.

    Raises ConfigError if a secret's file is missing or BUILD_OPTIONS has an unclosed quote.
    """
    given = {key: variables[key] for key in ARGUMENTS[environment] if variables.get(key)}
    given |= {
        "LOCKS": locks_sha256(environment, root),
        "NAME": image_name(environment, root),
        "REVISION": revision(root),
    }
    line = [engine, "build", "--file", str(root / f"Dockerfile.{environment}"), "--tag", given["NAME"]]
    line += ["--layers", "--force-rm"] if engine == "buildah" else []  # the defaults of the other engines
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
    """Return the commit, with -dirty if files differ from it; "unknown" outside of git."""
    commit, clean = git_state(root, untracked=True)
    return "unknown" if commit is None else commit if clean else f"{commit}-dirty"


def failure(engine: str, environment: Environment, base: str | None, log: Sequence[str]) -> MachineError:
    """Build the error for a failed build from the end of its log; `base` is BASE_IMAGE if the caller set it."""
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
    """Return the step that failed: the last one of buildah and podman, or the one that BuildKit quotes."""
    for line in reversed(log):
        step = re.match(r"(?:\[\d+/\d+\] )?(STEP \d+/\d+: .*)| *> (\[.*?\] .*?):?$", line)
        if step:
            return (step[1] or step[2])[:120]
    return "an unnamed step"
