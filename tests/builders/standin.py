"""A stand-in for the images' base without a registry: Debian from its own archive, built by mmdebstrap.

It tests the Dockerfiles' steps and the locks, but not the official base. Everything, including the engines' storage, is
in a temporary folder that is removed after the tests: no image, container or setting of the user changes."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from finetune.config.model import Environment

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("buildah", "podman", "mmdebstrap")
BASE = "localhost/standin/python:3.11"
SECRET = "a-secret-that-no-layer-may-hold"
# The parts of the official base that the Dockerfiles need: Python with venv, pip, headers, and certificates.
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip,libpython3-dev"
UNNEEDED = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
LINKS = "for name in python python3; do ln -s /usr/bin/python3 $1/usr/local/bin/$name; done"
CLEAN = "rm -f $1/etc/resolv.conf $1/etc/hostname $1/usr/lib/python3*/EXTERNALLY-MANAGED"


@dataclass(frozen=True)
class Built:
    """A built image: its name, the engine's output, and the build time."""

    name: str
    log: str
    seconds: float

    @property
    def told(self) -> str:
        """Return a line with name, size and time."""
        return next(line for line in self.log.splitlines() if line.startswith(f"{self.name}: "))


def require_tools(free_gigabytes: float = 8) -> None:
    """Skip the test with a remedy if a tool or disk space is missing; fail instead if REQUIRE_IMAGE is 1."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    reason = ""
    if lacking:
        reason = f"{', '.join(lacking)} missing: sudo apt-get install buildah podman runc mmdebstrap"
    elif os.getuid() != 0:
        reason = "a stand-in base is made by root alone: run it with sudo"
    elif free < free_gigabytes:
        reason = (
            f"{free:.0f} GB free in {tempfile.gettempdir()}, {free_gigabytes:.0f} needed: set TMPDIR to a larger place"
        )
    if reason:
        (pytest.fail if os.environ.get("REQUIRE_IMAGE") == "1" else pytest.skip)(reason)


def stand_in_environment(environment: Environment = "cpu") -> dict[str, str]:
    """Return the environment in which engines and `python -m finetune image` build on the stand-in.

    The first call in a process makes the base (a minute); engines find it and the built images in a separate
    storage."""
    folder = workplace()
    settings, folders = pip_settings(environment)
    conf, bundle = folder / f"pip-{environment}.conf", folder / "ca.pem"
    conf.write_text(f"# {SECRET}\n[global]\n{settings}", encoding="utf-8")
    volumes = " ".join(f"--volume {path}:{path}:ro" for path in folders)
    variables = engine_environment(folder) | {
        "BASE_IMAGE": BASE,
        "BUILD_OPTIONS": f"--network host {volumes}",
        "PIP_CONF": str(conf),
    }
    certificates = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    if certificates.is_file():
        bundle.write_text(f"# {SECRET}\n" + certificates.read_text(encoding="utf-8"), encoding="utf-8")
        variables["CA_FILE"] = str(bundle)
    return variables


@cache
def workplace() -> Path:
    """Return the folder of everything, with the base imported; it is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-images-"))
    atexit.register(remove, folder)
    (folder / "tmp").mkdir()
    conf = 'driver = "{}"\ngraphroot = "{}"\nrunroot = "{}"\n'
    for driver in ("overlay", "vfs"):
        text = "[storage]\n" + conf.format(driver, folder / "storage", folder / "run")
        (folder / "storage.conf").write_text(text, encoding="utf-8")
        if call(["buildah", "info"], engine_environment(folder)).returncode == 0:
            break
        shutil.rmtree(folder / "storage", ignore_errors=True)
    tar = folder / "base.tar"
    hooks = [f"--customize-hook={hook}" for hook in (LINKS, CLEAN)]
    excluded = [f"--dpkgopt=path-exclude={path}" for path in UNNEEDED]
    make = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={PACKAGES}",
        *excluded,
        *hooks,
        "bookworm",
        str(tar),
    ]
    for line in (make, ["podman", "import", str(tar), BASE]):
        done = call(line, engine_environment(folder))
        assert done.returncode == 0, done.stdout + done.stderr
    tar.unlink()
    return folder


def engine_environment(folder: Path) -> dict[str, str]:
    """Return this process's environment with the engines' storage in the folder, and builds without a runtime."""
    own = {"CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"), "BUILDAH_ISOLATION": "chroot"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | own | {"TMPDIR": str(folder / "tmp"), "PATH": path, "PYTHONPATH": str(ROOT / "src")}


@cache
def pip_settings(environment: Environment) -> tuple[str, tuple[Path, ...]]:
    """Return the package sources of pip's settings as lines of a pip.conf, and the local folders among them.

    The CUDA build gets no folder with PyTorch's CPU build, which would change its result."""
    listed = call([sys.executable, "-m", "pip", "config", "list"], dict(os.environ)).stdout
    settings: dict[str, list[str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = key.removeprefix(":env:.").rpartition(".")[2]
        if name in ("index-url", "extra-index-url", "find-links", "trusted-host"):
            words = [word for word in value.strip("'\"").replace("\\n", " ").split() if allowed(word, environment)]
            settings[name] = list(dict.fromkeys([*settings.get(name, []), *words]))
    folders = [folder for words in settings.values() for word in words if (folder := local_folder(word))]
    places = [place for folder in folders if (place := folder.parent if folder.name == "simple" else folder)]
    lines = "".join(f"{name} = {' '.join(words)}\n" for name, words in settings.items() if words)
    return lines, tuple(dict.fromkeys(places))


def local_folder(word: str) -> Path | None:
    """Return the local folder that an address in pip's settings names, if any."""
    path = Path(unquote(urlparse(word).path)) if word.startswith("file:") else Path(word)
    return path if path.is_absolute() and path.is_dir() else None


def allowed(word: str, environment: Environment) -> bool:
    """Return whether the build of an environment may take packages from there."""
    folder = local_folder(word)
    return environment == "cpu" or folder is None or not any(folder.glob("torch-*+cpu*"))


def build_image(environment: Environment, engine: str = "podman", root: Path = ROOT) -> Built:
    """Build a tree's image on the stand-in, as `make image-cpu` does; raise AssertionError with the log on failure."""
    done, seconds = try_build(environment, engine, root, {})
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    return Built(done.stdout.split(": ")[0], done.stdout + done.stderr, seconds)


def try_build(
    environment: Environment, engine: str, root: Path, changed: Mapping[str, str]
) -> tuple["subprocess.CompletedProcess[str]", float]:
    """Return the output of a build and its seconds; an error is shown as `python -m finetune image` shows it."""
    code = (
        "import sys; from pathlib import Path; from finetune.containers import images\n"
        "from finetune.errors import FinetuneError\n"
        "root, environment, engine = sys.argv[1:]; images.BUILDERS = {engine: (engine,)}\n"
        "try: images.run(Path(root), environment, engine)\n"
        "except FinetuneError as error: print(f'error: {error}'); sys.exit(error.exit_code)"
    )
    variables = stand_in_environment(environment) | {**changed}
    began = time.monotonic()
    done = call([sys.executable, "-c", code, str(root), environment, engine], variables)
    return done, time.monotonic() - began


@contextmanager
def container(name: str) -> Iterator[tuple[str, Path]]:
    """Create a container of a built image for `buildah run`, and mount its file system in a folder."""
    variables = engine_environment(workplace())
    made = call(["buildah", "from", "--pull-never", name], variables).stdout.strip()
    try:
        yield made, Path(call(["buildah", "mount", made], variables).stdout.strip())
    finally:
        call(["buildah", "rm", made], variables)


@cache
def start_build(environment: Environment) -> "Future[Built]":
    """Start the single build of an environment's image in the background, as it waits for disk and network."""
    stand_in_environment(environment)  # one thread creates what the first call creates
    built: Future[Built] = Future()

    def build() -> None:
        try:
            built.set_result(build_image(environment))
        except BaseException as error:  # raised where the image is needed
            built.set_exception(error)

    threading.Thread(target=build, daemon=True).start()
    return built


def built_image(environment: Environment) -> Built:
    """Return the image of an environment, built once per process; the first build has no cache."""
    return start_build(environment).result()


def call(line: list[str], variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a command in this tree and return its output."""
    return subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, errors="replace", check=False)


def remove(folder: Path) -> None:
    """Remove containers, images, mounts and files."""
    variables = engine_environment(folder)
    call(["podman", "rm", "--all", "--force"], variables)
    call(["buildah", "rm", "--all"], variables)
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for place in sorted((line.split()[1] for line in mounts if line.split()[1].startswith(f"{folder}/")), reverse=True):
        call(["umount", "--lazy", place], variables)
    shutil.rmtree(folder, ignore_errors=True)
