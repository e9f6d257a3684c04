"""The software around a run: installed packages, containers, the base model, DVC and git. Makes no network requests."""

import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from finetune.commands.doctor.host import Check, Status
from finetune.config.model import Environment, ModelConfig
from finetune.config.params import Config
from finetune.containers.command_line import dvc_config
from finetune.containers.images import image_name
from finetune.containers.runtime import has_packages, require_ready, runtime_of
from finetune.errors import DataError, MachineError
from finetune.hardware.host import ask
from finetune.hardware.locks import lock_files, locked_packages
from finetune.model.access import find_access_problem
from finetune.model.cache import find_missing_weights, snapshot, token_file

NAMED = 8  # packages listed by name; the others are counted
CONTAINERS = ("docker", "podman", "buildah")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_surroundings(config: Config, root: Path, quick: bool) -> Iterator[Check]:
    """Yield all checks of software."""
    yield check_packages(config.environment, root)
    yield check_runtime(config, root) if runtime_of(config) != "native" else check_containers(quick)
    yield check_base(config.model, root)
    yield check_hub()
    yield check_dvc(root)
    yield check_git(root, quick)


# ------------------------------------------------------------------------------------------------------- packages


def check_packages(environment: Environment, root: Path) -> Check:
    """Compare the installed versions with the lock of the environment."""
    name = environment if has_packages() else "base"  # a host whose stages run in containers has only the base packages
    lock = f"requirements/{name}.lock"
    try:
        wanted = locked_packages(lock_files(environment, root) if name == environment else [root / lock])
    except OSError:
        return Check("packages", f"no {lock}", "missing", "git checkout requirements")
    except DataError as error:
        return Check("packages", str(error.problem), "missing", "git checkout requirements")
    parts: list[str] = []
    status: Status = "warning"
    for package in wanted:
        current = installed(package.name)
        if current is None:
            status = "missing"
            parts.insert(0, f"{package.name} not installed (locked {package.version})")
        # The local part of a version names a build of the same source: 2.13.0 and 2.13.0+cpu are the same version.
        elif current.partition("+")[0] != package.version.partition("+")[0]:
            parts.append(f"{package.name} {current} (locked {package.version})")
    if not parts:
        return Check("packages", f"all {len(wanted)} match {lock}")
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    detail = f"{len(parts)} of {len(wanted)} differ from {lock}: {', '.join(parts[:NAMED])}{more}"
    return Check("packages", detail, status, f"rm -f .venv/installed-*; make setup ENVIRONMENT={environment}")


def installed(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ----------------------------------------------------------------------------------------------------- containers


def check_runtime(config: Config, root: Path) -> Check:
    """Check that the container engine of this run works and has the image of these locks."""
    engine = runtime_of(config)
    try:
        require_ready(engine, config, root)
    except MachineError as error:
        problem = error.problem
        return Check("containers", f"{problem.place}: {problem.message}", "missing", problem.remedy)
    return Check("containers", f"{engine}, with the image {image_name(config.environment, root)}")


def check_containers(quick: bool) -> Check:
    """Report which container runtimes are on PATH, and whether docker's daemon responds."""
    have = [name for name in CONTAINERS if shutil.which(name)]
    if not have:
        remedy = "to run stages in containers, install podman or docker"
        return Check("containers", "docker, podman and buildah are not installed", "missing", remedy)
    if quick or "docker" not in have:
        return Check("containers", ", ".join(have))
    version = ask("docker", "info", "--format", "{{.ServerVersion}}", timeout=3)
    if version:
        return Check("containers", f"{', '.join(have)}; docker daemon {version} is running")
    detail = f"{', '.join(have)}; the docker daemon is not running"
    return Check("containers", detail, "warning", "sudo systemctl start docker (on a Mac: open -a Docker)")


# ------------------------------------------------------------------------------------------------- the base model


def check_base(model: ModelConfig, root: Path) -> Check:
    """Check that all files of the base model are in its folder or in the cache."""
    folder = root / model.base
    if folder.is_dir():
        trouble = find_missing_weights(folder)
        if trouble:
            return Check("base model", f"{model.base}: {trouble}", "missing", "copy the complete folder again")
        return Check("base model", f"{model.base}: a complete local folder")
    if model.revision is None:
        detail = f"{model.base} is not a folder, and model.revision is not set"
        remedy = "set model.revision to the 40 hex digits of a commit (./finetune pin)"
        return Check("base model", detail, "missing", remedy)
    trouble = find_missing_weights(snapshot(model)) if snapshot(model).is_dir() else "not in the cache"
    if trouble:
        detail = f"{model.base} at {model.revision[:12]}: {trouble}"
        refused = find_access_problem(model, root)
        if refused:
            return Check("base model", f"{detail}; {refused.message}", "missing", refused.remedy)
        return Check("base model", detail, "missing", f"hf download {model.base} --revision {model.revision}")
    return Check("base model", f"{model.base} at {model.revision[:12]}: complete in the cache")


def check_hub() -> Check:
    """Report whether requests to the Hub are allowed and whether a token is set, without printing the token."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    given = [name for name in TOKENS if os.environ.get(name)]
    given += ["a token file"] if token_file().is_file() else []
    detail = f"{'offline (HF_HUB_OFFLINE)' if offline else 'may be contacted'}; token: {', '.join(given) or 'none'}"
    return Check("Hugging Face Hub", detail)


# -------------------------------------------------------------------------------------------------- DVC and git


def check_dvc(root: Path) -> Check:
    """Check that DVC is installed, initialized and has a remote. Only remote names are shown: URLs may hold secrets."""
    if not find_spec("dvc"):
        return Check("DVC", "not installed", "missing", "make setup")
    if not (root / ".dvc").is_dir():
        return Check("DVC", f"{installed('dvc')}, but {root.absolute()} is not a DVC repository", "missing", "dvc init")
    remotes = dvc_remotes(root)
    if not remotes:
        remedy = "dvc remote add -d NAME URL, to share data and models"
        return Check("DVC", f"{installed('dvc')}, no remote: results stay on this machine", "warning", remedy)
    return Check("DVC", f"{installed('dvc')}, remotes: {', '.join(remotes)}")


def dvc_remotes(root: Path) -> list[str]:
    """Return the names of the remotes in the tracked config and in the local one."""
    names = [re.fullmatch(r"'?remote \"(.+)\"'?", section) for section in dvc_config(root).sections()]
    return sorted(name[1] for name in names if name)


def check_git(root: Path, quick: bool) -> Check:
    """Report the commit and the number of files changed since."""
    if not shutil.which("git"):
        return Check("git", "not installed", "missing", "install git (apt install git, or xcode-select --install)")
    timeout = 0.5 if quick else 20
    if ask("git", "-C", str(root), "rev-parse", "--git-dir", timeout=timeout) is None:
        if (root / ".git").exists():  # git refuses a folder of another user, e.g. after `rsync -a` to root
            detail = f"git refuses {root.absolute()}: it belongs to another user, or .git is broken"
            return Check("git", detail, "missing", 'chown -R "$(id -u):$(id -g)" . (git status shows the reason)')
        detail = f"{root.absolute()} is not a git repository: runs can't be traced to their code"
        return Check("git", detail, "missing", "git init && git add -A && git commit -m start")
    commit = ask("git", "-C", str(root), "rev-parse", "--short=12", "HEAD", timeout=timeout)
    if commit is None:
        return Check("git", "a repository without a commit", "warning", "git add -A && git commit -m start")
    changed = ask("git", "-C", str(root), "status", "--porcelain", timeout=timeout)
    if changed is None:
        return Check("git", f"{commit}; git status did not respond")
    count = len(changed.splitlines())
    changes = f"{count:,} changed file{'' if count == 1 else 's'}" if count else "clean"
    return Check("git", f"{commit}, {changes}")
