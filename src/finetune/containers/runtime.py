"""Run a command natively, or in a container of docker or podman.

DVC and the small commands run on the host, and each stage runs in its own container of the environment's image: the
command in dvc.yaml is always `finetune STAGE`, and this module redirects it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import cast, get_args

from finetune.config.params import Config, Runtime
from finetune.containers.command_line import STARTED, Order, command_line, user_of
from finetune.containers.images import (
    INSIDE,
    LOCK_LABEL,
    ask,
    find_engine,
    find_image,
    image_name,
    other_images,
)
from finetune.errors import ConfigError, InterruptedRunError, MachineError
from finetune.hardware.locks import locks_sha256
from finetune.processes.signals import run_and_forward

OVERRIDE = "FINETUNE_RUNTIME"  # make ... RUNTIME=native, finetune --runtime native ...
OTHER_IMAGE = "FINETUNE_IMAGE_NAME"  # make ... IMAGE=registry/name:tag, finetune --image ...: built elsewhere
INSTALL = {"docker": "https://docs.docker.com/engine/install", "podman": "https://podman.io/docs/installation"}


def runtime_of(config: Config, environment: Mapping[str, str] = os.environ) -> Runtime:
    """Return a run's runtime: from RUNTIME=, else from params.yaml; inside one of our images, native.

    Raises ConfigError for an unknown runtime.
    """
    if INSIDE in environment:
        return "native"
    asked = environment.get(OVERRIDE) or config.runtime
    if asked not in get_args(Runtime):
        raise ConfigError(f"RUNTIME={asked}", f"is not one of {', '.join(get_args(Runtime))}")
    if asked != "native" and config.environment == "apple":
        raise ConfigError(f"RUNTIME={asked}", "containers on a Mac can't use its GPU", "use native")
    return cast(Runtime, asked)


def has_packages() -> bool:
    """Return whether the packages of the stages are installed here, and not only those of a host."""
    return find_spec("torch") is not None


def engine_for(command: str, config: Config) -> str | None:
    """Return the engine for a command of this run; None for native. Raise MachineError if none can be used."""
    runtime = runtime_of(config)
    if runtime != "native":
        return runtime
    if not has_packages():
        raise MachineError(command, "the packages of the stages are not installed", "run make setup RUNTIME=native")
    return None


def run(name: str, command: str, words: list[str], config: Config, root: Path) -> int:
    """Run `finetune WORDS`, which include the command, in a container; return the command's exit code.

    Signals are forwarded to the command, so that an interrupted training saves. Raises MachineError if the container
    could not be started or was killed, InterruptedRunError if a signal ended it before the command could report it.
    """
    root = root.resolve()
    image = require_ready(name, config, root)
    terminal = command == "chat" and sys.stdin.isatty() and sys.stdout.isatty()
    order = Order(find_engine(name), image, command, tuple(words), config, root, terminal)
    (root / "work").mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=f"{command}-", dir=root / "work") as scratch:
        if os.getuid() == 0:
            for folder in (root / "work", scratch):
                os.chown(folder, *user_of(root))
        # the engine forwards signals to the command
        line, apart = command_line(order, Path(scratch)), not terminal
        code, asked = run_and_forward(line, subprocess.Popen.send_signal, start_new_session=apart)
        if asked and not Path(scratch, STARTED).exists():
            # too early for the command to receive it: an engine that is still starting may exit with any code, even 0
            ask(order.engine.program, "rm", "--force", order.name)
            raise InterruptedRunError(command, f"was stopped by {asked} before it started", "run it again")
    return command_code(code, name, command)


def require_ready(engine: str, config: Config, root: Path) -> str:
    """Return the id of the image to start. Raise MachineError for a missing engine, daemon, image, driver or right."""
    if which(engine) is None:
        others = [name for name in INSTALL if which(name)]
        instead = f"use RUNTIME={others[0]}, which is installed" if others else f"install it ({INSTALL[engine]})"
        raise MachineError(
            "runtime",
            f"{engine} is not installed",
            f"{instead}, or run natively: make ... RUNTIME=native, ./finetune --runtime native ...",
        )
    if not os.access(root, os.W_OK):
        raise MachineError(root, f"can't be written to by user {os.getuid()}", "change its owner, or mount it writable")
    name = os.environ.get(OTHER_IMAGE) or image_name(config.environment, root)
    found = find_image(engine, name)
    build = f"make image-{config.environment}"
    if found is None:
        others = other_images(engine, config.environment)
        hint = f" ({', '.join(others)} was built from different locks)" if others else ""
        raise MachineError("runtime", f"{engine} has no image {name}{hint}", f"{build} builds it")
    if found.labels.get(LOCK_LABEL) != locks_sha256(config.environment, root):
        raise MachineError(
            "runtime", f"image {name} was built from locks that differ from requirements/", f"{build} rebuilds it"
        )
    if config.environment == "cuda" and which("nvidia-smi") is None:
        raise MachineError(
            "environment", "cuda: this machine has no NVIDIA driver (nvidia-smi)", "use another recipe or machine"
        )
    return found.id


def command_code(code: int, engine: str, command: str) -> int:
    """Return the command's own exit code; raise our own error if the engine or a signal caused it."""
    again = "run the same command again to resume"
    if code == 125:
        raise MachineError(
            command, f"{engine} could not start the container; its messages are above", "see docs/containers.md"
        )
    if code in (126, 127):
        raise MachineError(
            command,
            f"the container could not run it (exit code {code}); the reason is printed above",
            "make image-cpu or image-cuda rebuilds a broken image",
        )
    if code in (137, -signal.SIGKILL):
        raise MachineError(
            command, "its container was killed (exit code 137): out of memory, or killed manually", again
        )
    if code < 0 or code > 128:
        raise InterruptedRunError(command, f"its container was stopped (exit code {code})", again)
    return code
