"""The pipeline in real containers: a complete small run by an unknown user without a network, stopped and resumed.

The image is built on the stand-in of tests/builders/standin.py: this tests the Dockerfile's steps and the wrapper, but
not the official base."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.small_run import ROOT, small_tree, write_params
from tests.builders.standin import (
    SECRET,
    built_image,
    engine_environment,
    require_tools,
    stand_in_environment,
    workplace,
)

pytestmark = [pytest.mark.images, pytest.mark.slow]

FOREIGN = 54321  # a user and group unknown to host and image
STAGES = ("prepare", "validate", "train", "evaluate", "decide")
# If containers run inside a container (as in CI), podman's defaults need too many permissions.
CONTAINERS = """[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment of a host with podman, the image, and only the packages of requirements/base.lock."""
    require_tools()
    request.getfixturevalue("early_build")
    built_image("cpu")
    folder = tmp_path_factory.mktemp("host")
    (folder / "containers.conf").write_text(CONTAINERS, encoding="utf-8")
    tree = folder / "finetune"
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    environment = {**os.environ, "PYTHON": sys.executable, "FINETUNE_RUNTIME": "podman"}
    done = subprocess.run([tree / "requirements/setup.sh", "auto", "none"], env=environment, check=False)
    assert done.returncode == 0
    assert (tree / ".venv/installed-run").read_text(encoding="utf-8").startswith("base ")
    path = os.pathsep.join([str(tree / ".venv/bin"), os.environ["PATH"]])
    own = {"CONTAINERS_CONF": str(folder / "containers.conf"), "DVC_NO_ANALYTICS": "1", "HF_HOME": str(folder / "hf")}
    plain = {key: value for key, value in engine_environment(workplace()).items() if not key.startswith("FINETUNE_")}
    return plain | own | {"PATH": path, "PYTHONPATH": "src", "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}


def run(host: dict[str, str], root: Path, *command: str, code: int = 0, **environment: str) -> str:
    """Run a command on the host and return its output. Other exit codes fail."""
    done = subprocess.run(
        command, cwd=root, env=host | environment, capture_output=True, text=True, timeout=1200, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(command)}: exit {done.returncode}\n{output}"
    assert SECRET not in output
    return output


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Create a small run with podman: sixty rows, a random base, a DVC repository."""
    return small_tree(tmp_path / "small", runtime="podman")


def native(host: dict[str, str]) -> dict[str, str]:
    """Return the environment of a host with all packages."""
    return host | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{host['PATH']}"}


def read(path: Path) -> dict[str, Any]:
    """Read a report."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_a_complete_run_by_a_foreign_user_without_a_network(host: dict[str, str], small: Path) -> None:
    """The run goes from raw rows to a verdict with access to the mounts only, and equals a native run."""
    subprocess.run(["chown", "-R", f"{FOREIGN}:{FOREIGN}", small], check=True)
    for stage in STAGES:
        began = time.monotonic()
        run(host, small, "python", "-m", "finetune", stage)
        print(f"{stage}: {time.monotonic() - began:.1f} s in its container")
    assert read(small / "reports/decision.json")["verdict"] in ("deploy", "iterate", "abort")
    found = list(small.rglob("*"))
    foreign = [path for path in found if (path.lstat().st_uid, path.lstat().st_gid) != (FOREIGN, FOREIGN)]
    assert foreign == [], "root's files stay in the user's tree"
    assert not list((small / "work").glob("train-*")), "scratch stays behind"
    assert not any(SECRET.encode() in path.read_bytes() for path in found if path.is_file())
    image = read(small / "reports/train_cost.json")["machine"]["image"]
    assert image == built_image("cpu").name
    assert image in (small / "reports/report.html").read_text(encoding="utf-8")
    assert run(host, small, "podman", "ps", "--all", "--quiet") == ""
    adapter = read(small / "reports/train.json")["adapter_sha256"]
    write_params(small, runtime="native")
    for name in ("work", "out"):
        shutil.rmtree(small / name)
    run(native(host), small, "python", "-m", "finetune", "train")
    assert read(small / "reports/train.json")["adapter_sha256"] == adapter, "natively it is another one"


def test_dvc_treats_native_and_container_runs_alike(host: dict[str, str], small: Path) -> None:
    """A host with DVC only considers results from containers valid for a native run."""
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        run(host, small, *command)
    output = run(host, small, "dvc", "repro")
    assert "> finetune train" in output
    write_params(small, runtime="native")
    assert "up to date" in run(host, small, "dvc", "status"), "the runtime is no part of the result"
    output = run(host, small, "python", "-m", "finetune", "train", code=4)
    assert output == "error: train: the packages of the stages are not installed; run make setup RUNTIME=native\n"


def test_an_interrupted_container_saves_and_resumes(host: dict[str, str], small: Path) -> None:
    """After finetune stop, SIGTERM, and SIGKILL of the wrapper, the adapter equals that of an undisturbed run."""
    write_params(small, runtime="podman", train__num_train_epochs=120)
    for stage in ("prepare", "validate", "train"):
        run(host, small, "python", "-m", "finetune", stage)
    undisturbed = read(small / "out/adapter/manifest.json")["adapter_sha256"]
    shutil.rmtree(small / "work")
    shutil.rmtree(small / "out")
    for end in (stop_it, terminate_it, kill_it):
        before = steps_done(small)
        process = subprocess.Popen(
            ["python", "-m", "finetune", "train"], cwd=small, env=host, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_until(lambda past=before: steps_done(small) > past, process)
        end(host, small, process)
        wait_until(lambda: run(host, small, "podman", "ps", "--quiet") == "", None)
        output = process.communicate()[0].decode()
        assert process.returncode in (5, -9), output
        assert list((small / "work/checkpoints").glob("*/checkpoint-*")), output
        assert not (small / "out/adapter").exists()
    output = run(host, small, "python", "-m", "finetune", "train")
    assert "resumes from work/checkpoints" in output
    assert read(small / "out/adapter/manifest.json")["adapter_sha256"] == undisturbed


def stop_it(host: dict[str, str], root: Path, process: "subprocess.Popen[bytes]") -> None:
    """Stop the run from another terminal, as a user does."""
    assert "train stopped at step" in run(host, root, "python", "-m", "finetune", "stop")


def terminate_it(host: dict[str, str], root: Path, process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM, as a scheduler does."""
    process.terminate()


def kill_it(host: dict[str, str], root: Path, process: "subprocess.Popen[bytes]") -> None:
    """Send SIGKILL, as the kernel does when memory runs out; the lock refuses a second start meanwhile."""
    process.kill()


def steps_done(root: Path) -> int:
    """Return the step in the status file."""
    path = root / "work/status.json"
    return int(read(path).get("step") or 0) if path.exists() else 0


def wait_until(done: Callable[[], bool], process: "subprocess.Popen[bytes] | None") -> None:
    """Wait; fail if a process ends first, or after ten minutes."""
    end = time.monotonic() + 600
    while not done():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_container_is_isolated(host: dict[str, str], small: Path) -> None:
    """It has no network, writes only to the tree, has no privileges, and gets no secret of the caller."""
    (small / "src/finetune/prepare/stage.py").write_text(SPY, encoding="utf-8")
    run(host, small, "python", "-m", "finetune", "prepare", OMP_NUM_THREADS="2")
    found = read(small / "reports/spy.json")
    assert found["written"] == ["/tmp", str(small)]
    assert found["network"] is False
    assert found["interfaces"] == ["lo"]
    assert found["capabilities"] == "0000000000000000"
    assert found["secrets"] == []
    assert found["offline"] == "1"
    assert found["threads"] == "2"
    assert found["first"].endswith("tini")


SPY = """
import json, os, socket
from pathlib import Path

def run(config, paths):
    written = []
    for place in ("/", "/opt/finetune", "/usr/bin", "/tmp", "/root", str(Path.cwd())):
        try:
            Path(place, "written").write_text("x")
            written.append(place)
        except OSError:
            pass
    try:
        socket.create_connection(("1.1.1.1", 53), timeout=3).close()
        network = True
    except OSError:
        network = False
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {
        "written": written,
        "network": network,
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "capabilities": status["CapEff"].strip(),
        "secrets": [name for name, value in os.environ.items() if "secret" in value],
        "offline": os.environ.get("HF_HUB_OFFLINE"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "first": Path("/proc/1/cmdline").read_bytes().split(b"\\0")[0].decode(),
    }
    paths.reports.mkdir(exist_ok=True)
    Path(paths.reports, "spy.json").write_text(json.dumps(found))
"""


def test_commands_in_the_image_use_its_packages(host: dict[str, str], small: Path) -> None:
    """Jobs on clusters need no set-up and no second Python; an image with other locks is refused."""
    line = [
        "podman",
        "run",
        "--rm",
        "--pull=never",
        "--network=none",
        f"--volume={small}:{small}",
        f"--workdir={small}",
    ]
    line += [f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp", built_image("cpu").name]
    assert "nothing is running in this folder" in run(host, small, *line, "./finetune", "status")
    assert not (small / ".venv").exists()
    (small / "requirements/cpu.lock").write_text("changed\n", encoding="utf-8")
    for command, code in ((["./finetune", "status"], 4), (["make", "setup"], 2)):
        assert "was built from locks that differ from requirements/" in run(host, small, *line, *command, code=code)
    output = run(host, small, "python", "-m", "finetune", "prepare", code=4)
    assert f"({built_image('cpu').name} was built from different locks); make image-cpu builds it" in output


def test_the_stand_in_contains_the_secret() -> None:
    """The engine settings of these tests contain the secret that the tests search for."""
    require_tools()
    assert SECRET in Path(stand_in_environment("cpu")["PIP_CONF"]).read_text(encoding="utf-8")
