"""The set-up: its choice of environment, its package sources, its output. Python, pip and uv are fakes."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from finetune import VERSION

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "requirements/setup.sh"
TOOLS = (
    "sh",
    "cat",
    "cksum",
    "cp",
    "dirname",
    "sed",
    "uname",
    "rm",
    "expr",
    "mkdir",
    "grep",
    "tail",
    "head",
    "tr",
    "awk",
    "chmod",
)
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NOISE = "WARNING: Location 'file:///mirror/torch/' is ignored: it is neither a file nor a directory."
LOCKS = {
    "cpu": "cpu==1\n",
    "torch-cpu": "torch==2.13.0+cpu \\\n",
    "cuda": "cuda==1\n",
    "base": "base==1\n",
    "dev": "pytest==1 \\\n    --hash=sha256:1\nuv==2 \\\n    --hash=sha256:2\nwheel==1\n",
}

# A fake Python with pip and venv: it records calls, and its pip finds what PIP_HAS and INDEX_HAS name.
FAKE_PYTHON = """#!/bin/sh
printf '%s\\n' "python $*" >> "$CALLS"
case "$*" in
    "-m venv"*)
        rm -rf .venv; mkdir -p .venv/bin .venv/lib/python3.12/site-packages
        cp "$0" .venv/bin/python && cp "$FAKE_UV" .venv/bin/uv ;;
    "--version") echo "Python 3.12.1" ;;
    *"config list") cat "$PIP_SETTINGS" ;;
    *"index versions"*) [ -z "${INDEX_HANGS:-}" ] || exec sleep 60
        [ -n "${INDEX_HAS:-}" ] && echo "torch ($INDEX_HAS)" ;;
    *"pip install"*)
        echo "$NOISE" >&2
        case "$*" in
            *--index-url*) has=${INDEX_FILES-torch-cpu} ;;
            *) has=$PIP_HAS ;;
        esac
        for word in "$@"; do lock=$word; [ "$before" = -r ] && break; before=$word; done
        if [ "$lock" = /dev/stdin ]; then cat >> "$CALLS"; lock=uv; else lock=${lock##*/}; lock=${lock%.lock}; fi
        case " $has " in
            *" $lock "*) ;;
            *) echo "${PIP_SAYS:-ERROR: No matching distribution found for $lock}" >&2; exit 1 ;;
        esac ;;
esac
"""
FAKE_UV = """#!/bin/sh
printf '%s\\n' "uv $*" >> "$CALLS"
for name in UV_DEFAULT_INDEX UV_INDEX UV_FIND_LINKS SSL_CERT_FILE UV_CACHE_DIR UV_NO_CACHE UV_INDEX_STRATEGY; do
    eval "value=\\${$name:-}"
    [ -z "$value" ] || echo "$name=$value" >> "$CALLS"
done
[ -z "${UV_SAYS:-}" ] || { echo "$UV_SAYS" >&2; exit 1; }
"""
# Like the real one, but without waiting for the full time.
FAKE_TIMEOUT = '#!/bin/sh\necho "timeout $1" >> "$CALLS"\nshift\nexec "$REAL_TIMEOUT" 0.5 "$@"\n'


@dataclass
class World:
    """A folder with small locks on a machine without a GPU."""

    root: Path
    tools: Path
    variables: dict[str, str] = field(default_factory=dict)

    def set_up(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run the set-up; return its exit code and output."""
        (self.root / "calls").write_text("", encoding="utf-8")
        command = ["sh", str(self.root / "requirements/setup.sh"), *(arguments or ("auto", "params.yaml"))]
        environment = {"PATH": str(self.tools), "NOISE": NOISE, **self.variables, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == ""
        return done.returncode, done.stderr

    def calls(self, word: str) -> list[str]:
        """Return the recorded calls that contain a word."""
        return [line for line in (self.root / "calls").read_text(encoding="utf-8").splitlines() if word in line]

    def checksum(self, *locks: str) -> str:
        """Return the checksum of its locks that the set-up stores."""
        text = "".join(LOCKS[lock] for lock in locks)
        return subprocess.run(["cksum"], input=text, capture_output=True, text=True, check=True).stdout.strip()

    def stamp(self, kind: str = "run") -> str:
        """Return the marker of a finished set-up, or an empty text."""
        path = self.root / f".venv/installed-{kind}"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def pip_settings(self, text: str) -> None:
        """Set the settings that pip lists."""
        Path(self.variables["PIP_SETTINGS"]).write_text(text, encoding="utf-8")


def executable(path: Path, text: str) -> Path:
    """Write an executable script."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Create a machine with Python whose pip has every package on its own index."""
    root, tools, fakes = (tmp_path / name for name in ("a tree", "tools", "fakes"))
    (root / "requirements").mkdir(parents=True)
    tools.mkdir()
    fakes.mkdir()
    shutil.copy(SETUP, root / "requirements")
    for name, text in LOCKS.items():
        (root / f"requirements/{name}.lock").write_text(text, encoding="utf-8")
    for name in (*TOOLS, "sleep"):
        (tools / name).symlink_to(shutil.which(name) or name)
    executable(tools / "python3", FAKE_PYTHON)
    if shutil.which("timeout"):
        executable(tools / "timeout", FAKE_TIMEOUT)
    variables = {
        "CALLS": str(root / "calls"),
        "FAKE_UV": str(executable(fakes / "uv", FAKE_UV)),
        "PIP_SETTINGS": str(fakes / "settings"),
        "PIP_HAS": "torch-cpu cpu cuda base dev uv",
        "REAL_TIMEOUT": shutil.which("timeout") or "",
    }
    world = World(root, tools, variables)
    world.pip_settings("")
    return world


# --------------------------------------------------------------------------------------------------------- environments


def stamp_cuda(world: World) -> None:
    """Leave a .venv with the GPU packages, and no Python that could create another one."""
    assert world.set_up("cuda")[0] == 0
    assert world.stamp() == f"cuda {world.checksum('cuda')}"
    (world.tools / "python3").unlink()


def test_login_node_keeps_the_packages_for_gpus(world: World) -> None:
    """On a login node, `finetune status` must not replace the PyTorch of a running job."""
    stamp_cuda(world)
    assert world.set_up("auto", "params.yaml") == (0, "")
    assert world.stamp().startswith("cuda ")


def test_a_named_environment_replaces_the_existing_one(world: World) -> None:
    """An environment named on the command line replaces the existing one."""
    stamp_cuda(world)
    assert world.set_up("cpu") == (0, "updating .venv for cpu\n")
    assert world.stamp() == f"cpu {world.checksum('torch-cpu', 'cpu')}"


def test_containers_need_only_the_base(world: World) -> None:
    """If the stages run in containers, the host gets DVC and the commands, but no PyTorch."""
    (world.root / "params.yaml").write_text("runtime: podman\n", encoding="utf-8")
    assert world.set_up()[0] == 0
    assert world.stamp() == f"base {world.checksum('base')}"
    assert not world.calls("torch-cpu.lock")


# ------------------------------------------------------------------------------------------------- PyTorch's CPU build


def test_cpu_build_from_pips_index(world: World) -> None:
    """If pip has it, no other index is used. Packages are installed by hash, and only one line is printed."""
    assert world.set_up() == (0, "setting up .venv for cpu with Python 3.12.1 (once, takes a few minutes)\n")
    assert world.stamp() == f"cpu {world.checksum('torch-cpu', 'cpu')}"
    assert [line.split("-r ")[1] for line in world.calls("-r ")] == [
        "requirements/torch-cpu.lock",
        "/dev/stdin",
        "requirements/cpu.lock",
    ]
    assert all("--no-deps" in line and "--require-hashes" in line for line in world.calls("-r "))
    assert not world.calls("index")
    assert NOISE in (world.root / ".venv/setup.log").read_text(encoding="utf-8")
    assert world.set_up() == (0, "")
    assert world.calls("") == []


CONFLICT = {"PIP_SAYS": "ERROR: ResolutionImpossible: for help visit ..."}  # if pip has a constraint on torch


@pytest.mark.parametrize("given", [{}, {"TORCH_INDEX": ""}, {"TORCH_INDEX": "https://mirror.example/cpu"}, CONFLICT])
def test_cpu_build_from_its_own_index(world: World, given: dict[str, str]) -> None:
    """PyTorch's index, or the one in TORCH_INDEX, is probed briefly, then used with the same hashes."""
    index = given.get("TORCH_INDEX") or PYTORCH_INDEX
    code, text = world.set_up(PIP_HAS="cpu uv", INDEX_HAS="2.13.0+cpu", **given)
    assert (code, text.splitlines()[1:]) == (0, [f"pip's index does not have PyTorch's CPU build: trying {index}"])
    (asked,) = world.calls("index versions")
    assert asked.endswith(f"index versions torch --index-url {index} --retries 0 --timeout 5")
    (installed,) = world.calls(f"-r requirements/torch-cpu.lock --index-url {index}")
    assert "--no-deps --require-hashes" in installed
    assert world.stamp().startswith("cpu ")


@pytest.mark.skipif(shutil.which("timeout") is None, reason="macOS has no timeout, and no CPU build")
def test_an_unresponsive_index_is_given_up_in_seconds(world: World) -> None:
    """After a short wait, the default build is installed, and the output says so and how to avoid it."""
    code, text = world.set_up(PIP_HAS="cuda uv", INDEX_HANGS="1")
    assert (code, text.splitlines()[2:]) == (
        0,
        [
            "not found there either: installing the default build, which includes CUDA libraries (several GB)",
            "to avoid that, stop here and set TORCH_INDEX to an index that has the CPU build",
        ],
    )
    assert world.calls("timeout") == ["timeout 15", *world.calls("--timeout 5")]
    assert [line.split()[-1] for line in world.calls("uv pip")] == ["requirements/cuda.lock"]
    assert world.stamp() == f"cpu {world.checksum('torch-cpu', 'cpu')}"


@pytest.mark.parametrize("has", ["", "2.14.1+cpu, 2.13.1+cpu"])
def test_an_image_gets_no_fallback_build(world: World, has: str) -> None:
    """An image must not get the default build if the index lacks PyTorch or this version."""
    code, text = world.set_up("cpu", FALLBACK="no", PIP_HAS="cpu cuda uv", INDEX_HAS=has)
    assert (code, text.splitlines()[-1]) == (
        4,
        f"error: PyTorch's CPU build is neither on pip's index nor on {PYTORCH_INDEX}; "
        "set TORCH_INDEX to an index that has the CPU build",
    )
    assert not world.calls("cuda.lock")
    assert world.stamp() == ""


MISMATCH = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."


@pytest.mark.parametrize(
    "variables", [{"PIP_HAS": "cpu cuda uv"}, {"PIP_HAS": "uv cuda", "INDEX_HAS": "2.13.0+cpu", "INDEX_FILES": ""}]
)
def test_a_wrong_hash_does_not_cause_a_fallback(world: World, variables: dict[str, str]) -> None:
    """A file that differs from the locked one, from either index, ends the set-up."""
    if "INDEX_HAS" in variables:  # pip has none, and the index serves another file
        variables = {**variables, "PIP_SAYS": f"ERROR: No matching distribution found\n{MISMATCH}"}
    code, text = world.set_up("cpu", **{"PIP_SAYS": MISMATCH, **variables})
    assert (code, text.splitlines()[-1]) == (
        4,
        "error: cannot install requirements/torch-cpu.lock: a file differs from the locked one; "
        "check which index pip downloads it from; full log: .venv/setup.log",
    )
    assert not world.calls("cuda.lock")
    assert world.stamp() == ""


def test_a_missing_network_does_not_cause_a_fallback(world: World) -> None:
    """The default build would fail as well, after pip had tried for minutes."""
    said = "WARNING: Retrying after connection broken\nERROR: No such torch (from versions: none)\n"
    code, text = world.set_up("cpu", PIP_HAS="", PIP_SAYS=f"{said}ERROR: No matching distribution found for torch")
    assert code == 4
    assert text.splitlines()[-1].startswith("error: cannot install requirements/torch-cpu.lock: check the network and ")
    assert len(world.calls("pip")) == 1


# ------------------------------------------------------------------------------------------------------------ uv or pip


def test_uv_installs_the_locks(world: World) -> None:
    """pip installs only uv, at the version in dev.lock; uv installs the rest by hash."""
    assert world.set_up("cuda", "params.yaml", "dev")[0] == 0
    assert world.calls("uv==") == ["uv==2 \\"]
    assert world.calls("--hash") == ["    --hash=sha256:2"]
    assert world.calls("uv pip") == [
        f"uv pip install --quiet --python .venv/bin/python --no-deps --require-hashes -r requirements/{lock}.lock"
        for lock in ("cuda", "dev")
    ]
    assert world.stamp("dev") == f"cuda {world.checksum('cuda', 'dev')}"
    assert world.stamp("run") == f"cuda {world.checksum('cuda')}"


def test_uv_gets_pips_settings(world: World) -> None:
    """uv gets indexes, certificates and cache; the environment precedes [install], which precedes [global]."""
    world.pip_settings(
        ":env:.cert='/etc/ca file.pem'\n:env:.default-timeout='180'\nfreeze.timeout='10'\n"
        "global.cache-dir='/scratch/pip'\n"
        "global.cert='/other.pem'\nglobal.constraint='/c.txt'\n"
        "global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'\n"
        "global.find-links='/wheels  /more'\nglobal.index-url='https://global.example/simple'\n"
        "install.index-url='https://user:word@install.example/simple'\n"
    )
    assert world.set_up("cuda")[0] == 0
    assert [line for line in world.calls("=") if not line.startswith((" ", "uv==", "python"))] == [
        "UV_DEFAULT_INDEX=https://user:word@install.example/simple",
        "UV_INDEX=https://one.example/simple https://two.example/simple",
        "UV_FIND_LINKS=/wheels,/more",
        "SSL_CERT_FILE=/etc/ca file.pem",
        "UV_CACHE_DIR=/scratch/pip",
        "UV_INDEX_STRATEGY=unsafe-best-match",
    ]


def test_uv_keeps_its_settings_if_pip_has_none(world: World) -> None:
    """Without settings of pip, uv uses its own."""
    assert world.set_up("cuda")[0] == 0
    assert world.calls("UV_") == ["UV_INDEX_STRATEGY=unsafe-best-match"]
    assert not world.calls("SSL_CERT_FILE")


@pytest.mark.parametrize(
    "settings", ["global.proxy='http://proxy:3128'", "install.no-index='true'", 'global.index-url="https://o\'hara"']
)
def test_pip_is_used_if_uv_lacks_a_setting(world: World, settings: str) -> None:
    """A proxy is an example: without it, uv would use an index that pip must not use."""
    world.pip_settings(f"global.index-url='https://a.example'\n{settings}\n")
    assert world.set_up("cuda")[0] == 0
    assert world.calls("uv") == []
    assert world.calls("-r requirements/cuda.lock")
    assert world.stamp().startswith("cuda ")


def test_pip_is_used_if_uv_is_unavailable(world: World) -> None:
    """uv is unavailable in the build of an image (whose locks do not have it), or if pip's index lacks it."""
    assert world.set_up("cuda", PIP_HAS="cuda") == (
        0,
        "setting up .venv for cuda with Python 3.12.1 (once, takes a few minutes)\n",
    )
    assert not world.calls("uv pip")
    (world.root / "requirements/dev.lock").unlink()
    (world.root / ".venv/installed-run").unlink()
    assert world.set_up("cuda") == (0, "updating .venv for cuda\n")
    assert not world.calls("/dev/stdin")
    assert world.stamp().startswith("cuda ")


def test_pip_is_used_if_uv_fails(world: World) -> None:
    """An example is a certificate that only pip uses. uv is not tried twice."""
    code, text = world.set_up("cuda", "params.yaml", "dev", UV_SAYS="error: invalid peer certificate")
    assert (code, text.splitlines()[1:]) == (
        0,
        ["uv cannot install requirements/cuda.lock (reason in .venv/setup.log): trying pip"],
    )
    assert len(world.calls("uv pip")) == 1
    assert [line.split()[-1] for line in world.calls("pip install") if "requirements/" in line][1:] == [
        "requirements/cuda.lock",
        "requirements/dev.lock",
    ]


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("gpu",), "ENVIRONMENT=gpu is not an environment; use auto, cpu, cuda or apple"),
        (("dev",), "ENVIRONMENT=dev is not an environment; use auto, cpu, cuda or apple"),
        (("cpu", "params.yaml", "all"), "requirements/setup.sh: all is not a set of packages; use run or dev"),
    ],
)
def test_usage_errors_are_reported(world: World, arguments: tuple[str, ...], expected: str) -> None:
    """A usage error gives one line and exit code 2, and changes nothing."""
    assert world.set_up(*arguments) == (2, f"error: {expected}\n")
    assert not (world.root / ".venv").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "no Python 3.11 to 3.13 found; set one: PYTHON=/path/to/python"),
        ({"PYTHON": "/opt/a python"}, "PYTHON=/opt/a python is not Python 3.11 to 3.13"),
    ],
)
def test_a_missing_python_is_reported(world: World, variables: dict[str, str], expected: str) -> None:
    """If an interpreter is named, no other is used."""
    if not variables:
        (world.tools / "python3").unlink()
    assert world.set_up("cpu", **variables) == (4, f"error: {expected}\n")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            "ERROR: Could not install packages due to an OSError: connection refused",
            "check the network and pip's settings (.venv/bin/python -m pip config list), then run the command again",
        ),
        (
            "OSError: [Errno 28] No space left on device",
            "the disk is full; free disk space, then run the command again",
        ),
    ],
)
def test_failure_shows_the_log_and_one_error(world: World, said: str, remedy: str) -> None:
    """The log has pip's output without its warnings, followed by problem, location and remedy."""
    code, text = world.set_up("cuda", PIP_HAS="", PIP_SAYS=said)
    assert (code, text.splitlines()[1:]) == (
        4,
        [
            said,  # output of uv
            said,
            f"error: cannot install requirements/cuda.lock: {remedy}; full log: .venv/setup.log",
        ],
    )
    assert world.stamp() == ""


def test_a_removed_interpreter_is_detected(world: World) -> None:
    """.venv/bin/python is a link to the interpreter: after its upgrade the packages are installed again."""
    assert world.set_up("cuda")[0] == 0
    python = world.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/no/such/python")
    assert world.set_up("cuda") == (0, "setting up .venv for cuda with Python 3.12.1 (once, takes a few minutes)\n")
    assert os.access(world.root / ".venv/bin/python", os.X_OK)


def run_command(folder: Path) -> str:
    """Return what the command of this environment prints when started in a folder."""
    command = [str(Path(sys.executable).parent / "finetune"), "--version"]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, check=True).stdout


def test_the_command_uses_the_code_of_the_current_tree(tmp_path: Path) -> None:
    """A queued experiment runs in a copy of the tree with the copy's code; elsewhere, the tree of .venv is used."""
    assert run_command(tmp_path) == f"finetune {VERSION}\n"
    package = tmp_path / "src/finetune"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('of the copy')\n", encoding="utf-8")
    assert run_command(tmp_path) == "of the copy\n"
