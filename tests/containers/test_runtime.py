"""Where commands run, which errors are reported before the start, and which exit codes are returned."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.cli.main import all_commands, main
from finetune.containers import runtime
from finetune.containers.command_line import SCRATCH
from finetune.containers.images import image_name
from finetune.containers.runtime import command_code, engine_for, require_ready, runtime_of
from finetune.errors import ConfigError, FinetuneError, InterruptedRunError, MachineError
from finetune.files.run_lock import Holder, pipeline_lock, read_holder
from finetune.hardware.locks import lock_files, locks_sha256
from tests.builders.container_tree import config
from tests.builders.container_tree import tree as tree
from tests.builders.small_run import ROOT, params
from tests.builders.waiting import PATIENCE

# ------------------------------------------------------------------------------------------------- which runtime


@pytest.mark.parametrize(
    ("in_params", "environment", "expected"),
    [
        ("podman", {}, "podman"),
        ("podman", {"FINETUNE_RUNTIME": "native"}, "native"),
        ("native", {"FINETUNE_RUNTIME": "docker"}, "docker"),
        ("podman", {"FINETUNE_IMAGE": "finetune-cpu:1", "FINETUNE_RUNTIME": "docker"}, "native"),
    ],
)
def test_params_set_where_stages_run(in_params: str, environment: dict[str, str], expected: str) -> None:
    """params.yaml sets the default, RUNTIME= overrides it, and inside a project image no container is started."""
    assert runtime_of(config(runtime=in_params), environment) == expected


def test_an_invalid_runtime_and_a_mac_are_refused() -> None:
    """An invalid value must not run natively; a container cannot reach a Mac's GPU."""
    with pytest.raises(ConfigError, match=r"^RUNTIME=dcoker: is not one of native, docker, podman$"):
        runtime_of(config(), {"FINETUNE_RUNTIME": "dcoker"})
    with pytest.raises(ConfigError, match=r"params.yaml: runtime: must be 'native', 'docker' or 'podman'"):
        config(runtime="buildah")
    with pytest.raises(ConfigError, match=r"can't use its GPU; use native"):
        config(environment="apple")
    with pytest.raises(ConfigError, match=r"RUNTIME=docker: containers on a Mac can't use its GPU; use native"):
        runtime_of(config(environment="apple", runtime="native"), {"FINETUNE_RUNTIME": "docker"})


def test_planning_commands_run_where_packages_are(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop can plan for an H100; a host with DVC only runs the plan in the image."""
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(runtime, "run", lambda engine, name, words, config, root: sent.append((engine, name)) or 7)
    monkeypatch.chdir(tree)
    (tree / "recipes").mkdir()
    (tree / "params.yaml").write_text(json.dumps(params(runtime="podman")), encoding="utf-8")
    assert main(["recipes"]) == 0
    assert sent == []
    monkeypatch.setattr(runtime, "has_packages", lambda: False)
    assert main(["plan"]) == 7
    assert main(["train"]) == 7
    assert main(["recipes", "--table"]) == 7
    assert sent == [("podman", "plan"), ("podman", "train"), ("podman", "recipes")]
    assert main(["recipes"]) == 0
    with pytest.raises(MachineError, match=r"^plan: the packages of the stages are not installed; run make setup"):
        engine_for("plan", config(runtime="native"))


def test_every_command_declares_where_it_runs() -> None:
    """Exactly the commands that may run in a container need torch; others would fail on a host without it."""
    found: dict[str | None, set[str]] = {}
    for _, commands in all_commands():
        for one in commands:
            found.setdefault(one.needs, set()).add(str(one.name))
    stages = {"prepare", "validate", "train", "evaluate", "decide"}
    assert found["run"] == stages | {"check", "merge", "verify", "chat", "join"}
    assert found["ahead"] == {"plan", "rehearse"}


# -------------------------------------------------------------------------------------------- missing prerequisites

ENGINE = """#!{python}
import json, os, signal, sys, time
words = sys.argv[1:]
state = json.load(open({state!r}))
open({log!r}, "a").write(json.dumps(words) + "\\n")
if "complaint" in state:
    sys.exit(state["complaint"])
if words[:2] == ["image", "inspect"]:
    if state["labels"] is None:
        sys.exit("Error: No such image: " + words[-1])
    config = {{"Labels": state["labels"]}}
    print(json.dumps([{{"Id": "sha256:1a2b", "Size": 5, "Created": "2026-01-01", "Config": config}}]))
elif words[0] == "images":
    print("localhost/finetune-cpu:0123456789ab")
elif words[0] == "run":
    def stop(number, frame):
        os.write(1, f"saved at {{signal.Signals(number).name}}\\n".encode())  # print is not reentrant
        sys.exit(5)
    if state.get("early"):  # as podman does, which is creating the container still
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        print("started", flush=True)
        time.sleep(3600)
    if state.get("waits"):
        started = next(word for word in words if word.startswith("FINETUNE_STARTED=")).partition("=")[2]
        scratch = next(word for word in words if word.endswith("target={scratch}")).split("source=")[1].split(",")[0]
        open(os.path.join(scratch, os.path.basename(started)), "w").close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, stop)
        print("started", flush=True)
        time.sleep(3600)
    sys.exit(state["code"])
"""


@pytest.fixture
def engine(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake podman on PATH, which answers from a state file; return that file."""
    state, binaries = tmp_path / "state.json", tmp_path / "bin"
    binaries.mkdir()
    text = ENGINE.format(
        python=sys.executable, state=str(state), log=str(tmp_path / "calls.jsonl"), scratch=str(SCRATCH)
    )
    (binaries / "podman").write_text(text, encoding="utf-8")
    (binaries / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(binaries))
    say(state, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=0)
    return state


def say(state: Path, **content: Any) -> None:
    """Set the fake engine's answers."""
    state.write_text(json.dumps(content), encoding="utf-8")


def refused(tree: Path, engine: str = "podman", **changes: Any) -> str:
    """Return the error shown to users."""
    with pytest.raises(MachineError) as caught:
        require_ready(engine, config(**changes), tree)
    return str(caught.value)


def test_the_image_of_these_locks_is_started_by_its_id(tree: Path, engine: Path) -> None:
    """During a run, a name could be moved to another image."""
    assert require_ready("podman", config(), tree) == "1a2b"


NATIVELY = "or run natively: make ... RUNTIME=native, ./finetune --runtime native ..."
MISSING: dict[str, tuple[str, dict[str, Any], str]] = {  # engine, its answers, the error shown to users
    "another engine is installed": (
        "docker",
        {},
        f"runtime: docker is not installed; use RUNTIME=podman, which is installed, {NATIVELY}",
    ),
    "no such image, but one of other locks": (
        "podman",
        {"labels": None},
        (
            "runtime: podman has no image {name} (finetune-cpu:0123456789ab was built from different "
            "locks); make image-cpu builds it"
        ),
    ),
    "an image of that name and of other locks": (
        "podman",
        {"labels": {"finetune.locks": "0" * 64}},
        "runtime: image {name} was built from locks that differ from requirements/; make image-cpu rebuilds it",
    ),
    "no daemon": (
        "podman",
        {"complaint": "Cannot connect to the daemon. Is the daemon running?"},
        "podman is installed but not running; start it: `podman machine start`, or Docker Desktop on a Mac",
    ),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_prerequisites_are_reported(tree: Path, engine: Path, kind: str) -> None:
    """Cases: engine, image and daemon, each with a remedy."""
    requested, answers, message = MISSING[kind]
    if answers:
        say(engine, **answers)
    assert refused(tree, requested) == message.format(name=image_name("cpu", tree))


def test_missing_engines_gpus_and_foreign_images_are_reported(
    tree: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says where to get an engine; a missing GPU is reported before the engine's own error."""
    say(engine, labels={"finetune.locks": locks_sha256("cuda", tree)})
    assert "this machine has no NVIDIA driver (nvidia-smi)" in refused(tree, environment="cuda")
    monkeypatch.setenv(runtime.OTHER_IMAGE, "registry.example/ours:1")
    assert "image registry.example/ours:1 was built from locks that differ" in refused(tree)
    monkeypatch.setenv("PATH", "")
    assert "podman is not installed; install it (https://podman.io" in refused(tree)


def test_a_read_only_tree_is_reported(tree: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount may be read-only, or belong to another user."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or Path(path) != tree)
    assert refused(tree) == (
        f"{tree}: can't be written to by user {os.getuid()}; change its owner, or mount it writable"
    )


def test_locks_are_identified_by_their_bytes(tree: Path) -> None:
    """A change of any lock of the environment, and of no other, requires another image."""
    before = {name: image_name(name, tree) for name in ("cpu", "cuda")}
    lock_files("cpu", tree)[0].write_text("torch==9\n", encoding="utf-8")
    assert image_name("cpu", tree) != before["cpu"]
    assert image_name("cuda", tree) == before["cuda"]


# ---------------------------------------------------------------------------------------------- end of a command


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
def test_the_commands_exit_code_is_returned(tree: Path, engine: Path, code: int) -> None:
    """DVC and schedulers rely on the exit code."""
    say(engine, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=code)
    assert runtime.run("podman", "train", ["train"], config(), tree) == code
    assert list((tree / "work").iterdir()) == [], "the scratch folder stays behind"


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (125, MachineError, "podman could not start the container"),
        (127, MachineError, "the container could not run it"),
        (137, MachineError, "its container was killed .* run the same command again to resume"),
        (-9, MachineError, "its container was killed"),
        (143, InterruptedRunError, "its container was stopped .* run the same command again to resume"),
        (-15, InterruptedRunError, "its container was stopped"),
    ],
)
def test_an_end_by_engine_or_signal_is_reported(code: int, error: type[FinetuneError], text: str) -> None:
    """The exit code says whether the run can be resumed."""
    with pytest.raises(error, match=text):
        command_code(code, "podman", "train")


def start(tree: Path, engine: Path, state: str = "waits", **how: Any) -> "subprocess.Popen[str]":
    """Start the stage train of a tree; its container is waiting, or is still being created."""
    say(engine, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=0, **{state: True})
    (tree / "params.yaml").write_text(json.dumps(params(runtime="podman")), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "train"], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, **how
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_signals_reach_the_command(tree: Path, engine: Path, name: str) -> None:
    """The container saves at the end of its step, and the exit code says so."""
    process = start(tree, engine)
    process.send_signal(getattr(signal, name))
    message, _ = process.communicate(timeout=PATIENCE)
    assert (message, process.returncode) == (f"saved at {name}\n", 5)


def test_a_signal_during_the_start_is_not_a_success(tree: Path, engine: Path) -> None:
    """An engine stopped while creating the container exits with 0, which DVC would take for success."""
    process = start(tree, engine, "early")
    process.terminate()
    assert process.wait(timeout=PATIENCE) == 5
    calls = [json.loads(line) for line in (engine.parent / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    assert calls[-1][:2] == ["rm", "--force"], "a container that was created stays behind"


def test_nohup_is_honoured(tree: Path, engine: Path) -> None:
    """A run started with nohup continues when the terminal closes."""
    process = start(tree, engine, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    assert process.communicate(timeout=PATIENCE)[0] == "saved at SIGTERM\n"


def test_a_killed_wrapper_stops_its_container(tree: Path, engine: Path) -> None:
    """SIGKILL cannot be passed on: the kernel sends the engine SIGTERM, and the training saves."""
    process = start(tree, engine)
    process.kill()
    assert process.stdout is not None
    assert process.stdout.read() == "saved at SIGTERM\n"  # up to the end of the pipe, which the engine held
    process.wait()


def test_stop_signals_the_waiting_host_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process ids in a container have no meaning outside: the lock has the host's, which relays signals."""
    monkeypatch.setenv("FINETUNE_PROCESS", "4321")
    with pipeline_lock(tmp_path / "pipeline.lock", "train"):
        assert read_holder(tmp_path / "pipeline.lock") == Holder("train", 4321)
