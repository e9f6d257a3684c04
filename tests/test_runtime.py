"""Where commands run: which container, what it may see, which errors are told first, and whose exit codes come back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune import container, runtime
from finetune.artifacts import pipeline_lock
from finetune.config import Config, parse_config
from finetune.container import (
    SCRATCH,
    Mount,
    Order,
    boundaries,
    command_line,
    mounts,
    needs_network,
    passed_on,
    variables,
)
from finetune.errors import ConfigError, FinetuneError, InterruptedRunError, MachineError
from finetune.images import Engine, image_name, lock_files, locks_sha256
from finetune.runtime import command_code, engine_for, require_ready, runs_here, runtime_of
from tests.small_run import ROOT, params

LOCKS = ("cpu", "torch-cpu", "cuda", "apple", "base")
SECRET = "hf_thisIsNobodysToken"
JUDGE = {
    "scorer": "judge",
    "of": None,
    "url": "http://localhost:8000/v1",
    "model": "m",
    "api_key_variable": "JUDGE_KEY",
    "timeout_seconds": 5.0,
    "instructions": "Prefer the better.",
}


def config(**changes: Any) -> Config:
    """The small params in podman, with changes."""
    return parse_config(params(**{"runtime": "podman", **changes}), "params.yaml")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working tree with locks of its own and a base in a folder; nothing of the caller's environment."""
    root = tmp_path / "tree"
    (root / "requirements").mkdir(parents=True)
    for name in LOCKS:
        (root / f"requirements/{name}.lock").write_text(f"{name}==1.0\n", encoding="utf-8")
    for folder in ("base", "data/raw", "models", "work", ".dvc"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    for name in (runtime.OVERRIDE, runtime.OTHER_IMAGE, runtime.INSIDE, "HF_TOKEN", *container.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    return root


# ------------------------------------------------------------------------------------------------- which runtime


def test_params_say_where_stages_run() -> None:
    """params.yaml is the rule, RUNTIME= the exception, and inside an image of ours nothing is started again."""
    assert runtime_of(config(), {}) == "podman"
    assert runtime_of(config(), {"FINETUNE_RUNTIME": "native"}) == "native"
    assert runtime_of(config(runtime="native"), {"FINETUNE_RUNTIME": "docker"}) == "docker"
    assert runtime_of(config(), {"FINETUNE_IMAGE": "finetune-cpu:1", "FINETUNE_RUNTIME": "docker"}) == "native"


def test_a_word_that_is_no_runtime_is_told() -> None:
    """Not a silent native run."""
    with pytest.raises(ConfigError, match=r"^RUNTIME=dcoker: is none of native, docker, podman$"):
        runtime_of(config(), {"FINETUNE_RUNTIME": "dcoker"})
    with pytest.raises(ConfigError, match=r"params.yaml: runtime: must be 'native', 'docker' or 'podman'"):
        config(runtime="buildah")


def test_a_mac_has_no_containers() -> None:
    """Its GPU can't be reached from one, whoever asks."""
    with pytest.raises(ConfigError, match=r"can't reach its GPU; use native"):
        config(environment="apple")
    with pytest.raises(ConfigError, match=r"RUNTIME=docker: a container on a Mac can't reach its GPU; use native"):
        runtime_of(config(environment="apple", runtime="native"), {"FINETUNE_RUNTIME": "docker"})


def test_what_looks_ahead_runs_where_packages_are(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for an H100 is made on a laptop; a host that has nothing but DVC sends it into the image."""
    assert runs_here("plan")
    assert runs_here("status")
    assert not runs_here("train")
    monkeypatch.setattr(runtime, "has_packages", lambda: False)
    assert not runs_here("plan")
    assert runs_here("status")
    assert engine_for("plan", config()) == "podman"
    with pytest.raises(MachineError, match=r"^plan: the packages of the stages are not installed here; run make setup"):
        engine_for("plan", config(runtime="native"))


def test_every_command_has_its_place() -> None:
    """A new command is put into one of the kinds: one that needs torch and is in none fails on a bare host."""
    from finetune.__main__ import SMALL_COMMANDS
    from finetune.options import STAGES

    anywhere = {name.split()[0] for name in runtime.ANYWHERE}
    of_host = {
        "gate",
        "report",
        "status",
        "stop",
        "detach",
        "exps",
        "compare",
        "seeds",
        "use",
        "pin",
        "findings",
        "doctor",
    }
    of_host |= {"image", "push", "pull", "bundle", "check-bundle"}
    assert {*STAGES, *SMALL_COMMANDS} == runtime.OF_A_RUN | anywhere | of_host
    assert not of_host & (runtime.OF_A_RUN | anywhere)


# ------------------------------------------------------------------------------------------------ the command line


PODMAN, ROOTLESS = Engine("podman", True, False), Engine("podman", True, True)
DOCKER, ROOTLESS_DOCKER = Engine("docker", False, False), Engine("docker", False, True)


def line_of(tree: Path, engine: Engine = PODMAN, command: str = "train", **changes: Any) -> list[str]:
    """The command line of one command."""
    order = Order(engine, "1a2b3c", command, ("--debug", command), config(**changes), tree)
    return command_line(order, tree / "work/t")


def test_the_container_may_do_nothing_but_its_work(tree: Path) -> None:
    """Its own user, no capabilities, no rights to gain, nothing to write to but the mounts, nobody to talk to."""
    line = line_of(tree)
    assert line[:4] == ["podman", "run", "--rm", "--pull=never"]
    assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"} <= set(line)
    assert f"--user={os.getuid()}:{os.getgid()}" in line
    assert line[line.index("--network") + 1] == "none"
    assert line[-7:] == [f"--workdir={tree}", "1a2b3c", "python", "-m", "finetune", "--debug", "train"]
    assert "--gpus" not in line
    assert f"type=bind,source={tree},target={tree}" in line
    assert f"type=bind,source={tree / 'work/t'},target={SCRATCH}" in line
    assert "--tmpfs=/tmp" in line
    assert "HF_HUB_OFFLINE=1" in line


def test_gpus_are_asked_for_in_each_engines_words(tree: Path) -> None:
    """docker by its toolkit, podman by CDI."""
    line = line_of(tree, DOCKER, environment="cuda")
    assert line[line.index("--gpus") + 1] == "all"
    line = line_of(tree, environment="cuda")
    assert line[line.index("--device") + 1] == "nvidia.com/gpu=all"


def test_podman_without_root_keeps_the_callers_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the caller's files would belong to root in there, and new ones to a number that nobody has."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    assert {"--userns=keep-id", f"--user=1234:{os.getgid()}"} <= set(boundaries(ROOTLESS, tmp_path))
    assert "--userns=keep-id" not in boundaries(DOCKER, tmp_path)
    assert "--user=0:0" in boundaries(ROOTLESS_DOCKER, tmp_path)


def test_the_callers_groups_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache or a project that is shared by a group stays readable."""
    monkeypatch.setattr(os, "getgroups", lambda: [os.getgid(), 7777])
    assert "--group-add=7777" in boundaries(DOCKER, tmp_path)
    assert "--group-add=keep-groups" in boundaries(ROOTLESS, tmp_path)
    assert f"--group-add={os.getgid()}" not in boundaries(DOCKER, tmp_path)


def test_root_works_for_the_owner_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo make repro` must not leave root's files in a user's folder."""

    class Owned:
        st_uid, st_gid = 1234, 5678

    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path: Owned)
    assert "--user=1234:5678" in boundaries(DOCKER, tmp_path)


def test_no_secret_stands_in_the_command_line(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the machine can read it: names alone, and only where the command may talk to anybody."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    changes = {"model__base": "org/model", "evaluate__scorers": {"judged": JUDGE, "exact_match": EXACT}}
    online = line_of(tree, command="evaluate", **changes)
    assert SECRET not in " ".join(online)
    assert {"HF_TOKEN", "WANDB_API_KEY", "JUDGE_KEY"} <= set(online)
    offline = line_of(tree)
    assert not {"HF_TOKEN", "WANDB_API_KEY", "JUDGE_KEY"} & set(offline)


EXACT = {"scorer": "exact_match", "of": None}


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries ask for the name, and a number need not have one."""
    import getpass

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert f"USER=user{os.getuid()}" in variables(config(), network=False)


def test_the_launcher_tells_nodes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster sets for a node reaches the training in the container."""
    given = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "NCCL_DEBUG": "INFO", "PATH": "/bin", "OMP_NUM_THREADS": ""}
    assert passed_on(config(), given, network=True) == ["MASTER_ADDR", "NCCL_DEBUG", "NODE_RANK"]


# ------------------------------------------------------------------------------------------------------- mounts


def test_the_cache_is_written_to_only_with_a_network(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline it is read, so a stage can't spoil it; online it is filled, and made where there is none."""
    cache = tmp_path / "cache/hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert mounts(config(), tree, network=False) == [Mount(tree, True)]
    assert mounts(config(), tree, network=True)[-1] == Mount(cache, True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(SECRET, encoding="utf-8")
    assert mounts(config(), tree, network=False)[-1] == Mount(cache, False)
    assert mounts(config(), tree, network=True)[-1] == Mount(tmp_path / "home/token", False)


def test_what_lies_outside_is_seen_under_its_own_path(tree: Path, tmp_path: Path) -> None:
    """Checkpoints on another disk, data and a base elsewhere, DVC's cache: links and params lead there."""
    places = {name: tmp_path / name for name in ("checkpoints", "rows", "llama", "dvc-cache")}
    for place in places.values():
        place.mkdir()
    (tree / "work/checkpoints").symlink_to(places["checkpoints"])
    (tree / ".dvc/config.local").write_text(f"[cache]\n    dir = {places['dvc-cache']}\n", encoding="utf-8")
    given = config(data__directory=str(places["rows"]), model__base=str(places["llama"]))
    found = mounts(given, tree, network=False)[1:]
    assert {place.source: place.writable for place in found} == {
        places["checkpoints"]: True,
        places["rows"]: False,
        places["llama"]: False,
        places["dvc-cache"]: False,
    }
    assert all(place.target is None for place in found)


def test_a_base_behind_links_is_seen_whole(tree: Path, tmp_path: Path) -> None:
    """The Hub's cache is made of links, and may itself be one to another disk; each name on the way must lead on."""
    disk = tmp_path / "disk/models--org--model"
    for name in ("blobs", f"snapshots/{'b' * 40}"):
        (disk / name).mkdir(parents=True)
    (disk / "blobs/1").write_text("{}", encoding="utf-8")
    (disk / f"snapshots/{'b' * 40}/config.json").symlink_to("../../blobs/1")
    cache = tmp_path / "cache/hub"
    cache.mkdir(parents=True)
    (cache / "models--org--model").symlink_to(disk)
    sources = [
        place.source for place in mounts(config(model__base="org/model", model__revision="b" * 40), tree, network=False)
    ]
    assert {cache, disk / "snapshots" / ("b" * 40), disk / "blobs"} <= set(sources)
    folder = cache / f"models--org--model/snapshots/{'b' * 40}"
    sources = [place.source for place in mounts(config(model__base=str(folder)), tree, network=False)]
    assert {cache, disk / "snapshots" / ("b" * 40), disk / "blobs"} <= set(sources)


def test_recorded_answers_elsewhere_are_seen(tree: Path, tmp_path: Path) -> None:
    """A baseline of another project."""
    path = tmp_path / "answers.jsonl"
    path.touch()
    recorded = {"form": "recorded", "name": "old", "path": str(path), "sha256": "a" * 64}
    assert Mount(path, False) in mounts(config(evaluate__baseline=recorded), tree, network=False)


def test_a_queued_experiment_counts_its_look_where_it_was_queued(tree: Path) -> None:
    """It runs in a copy that DVC makes, and the look belongs to the tree."""
    (tree / ".git").mkdir()
    copy = tree / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    found = mounts(config(), copy, network=False)
    assert {Mount(tree / "data", True), Mount(tree / ".git", True)} <= set(found)


def test_a_project_inside_a_repository_brings_it_along(tree: Path) -> None:
    """git's folder lies above it, and looks are remembered there."""
    (tree / ".git").mkdir()
    project = tree / "models/project"
    project.mkdir()
    assert Mount(tree / ".git", True) in mounts(config(), project, network=False)


def test_the_image_is_not_hidden(tmp_path: Path) -> None:
    """A mount over its packages would leave it without any."""
    with pytest.raises(ConfigError, match=r"/opt: would hide /opt/finetune, where the image has its packages; move it"):
        mounts(config(), Path("/opt"), network=False)


def test_a_worktree_brings_its_repository(tree: Path, tmp_path: Path) -> None:
    """Looks at the test set are remembered there."""
    shared = tmp_path / "main/.git"
    (shared / "worktrees/tree").mkdir(parents=True)
    (shared / "worktrees/tree/commondir").write_text("../..\n", encoding="utf-8")
    (tree / ".git").write_text(f"gitdir: {shared}/worktrees/tree\n", encoding="utf-8")
    assert Mount(shared, True) in mounts(config(), tree, network=False)


def test_a_path_that_can_not_be_mounted_is_told(tmp_path: Path) -> None:
    """A comma would end the option."""
    with pytest.raises(ConfigError, match=r"a,b: a folder with a comma or a quote in its path can't be mounted"):
        mounts(config(), tmp_path / "a,b", network=False)


# ------------------------------------------------------------------------------------------------------ network


@pytest.mark.parametrize(
    ("command", "changes", "needed"),
    [
        ("prepare", {}, False),
        ("prepare", {"data__sources": [{"name": "h", "hub": "org/d", "revision": "a" * 40, "part": "train"}]}, True),
        ("prepare", {"model__base": "org/model"}, False),
        ("prepare", {"model__base": "org/model", "data__filters__tokens": {"min": None, "max": 100}}, True),
        ("validate", {"model__base": "org/model"}, True),
        ("train", {}, False),
        ("train", {"train__report_to": ["tensorboard"]}, False),
        ("train", {"train__report_to": ["wandb"]}, True),
        ("evaluate", {}, False),
        ("evaluate", {"evaluate__scorers": {"judged": JUDGE, "exact_match": EXACT}}, True),
        ("evaluate", {"evaluate__forgetting": {"tasks": ["arc_easy"], "folder": None, "limit": 10}}, True),
        ("decide", {"model__base": "org/model", "train__report_to": ["wandb"]}, False),
        ("check", {"evaluate__scorers": {"judged": JUDGE, "exact_match": EXACT}}, False),
        ("merge", {"evaluate__scorers": {"judged": JUDGE, "exact_match": EXACT}}, False),
        ("verify", {"model__base": "org/model"}, True),
        ("try", {"evaluate__forgetting": {"tasks": ["arc_easy"], "folder": None, "limit": 10}}, False),
    ],
)
def test_the_network_is_there_for_those_who_need_it(
    tree: Path, command: str, changes: dict[str, Any], needed: bool
) -> None:
    """All others are cut off, which is the cheapest proof that a run depends on nothing but what is here."""
    assert needs_network(config(**changes), command, tree) is needed


def test_a_base_in_the_cache_needs_no_network(tree: Path, tmp_path: Path) -> None:
    """Once it was fetched, whole, at its revision."""
    from tests.small_run import build_base

    given = config(model__base="org/model", model__revision="b" * 40)
    assert needs_network(given, "train", tree)
    folder = tmp_path / f"cache/hub/models--org--model/snapshots/{'b' * 40}"
    build_base(folder)
    assert not needs_network(given, "train", tree)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert needs_network(given, "train", tree), "a download that was cut off is no base"


# ------------------------------------------------------------------------------------------------ what is missing

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
        print("saved at", signal.Signals(number).name, flush=True)
        sys.exit(5)
    if state.get("early"):  # as podman does, which is creating the container still
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        print("started", flush=True)
        time.sleep(60)
    if state.get("waits"):
        started = next(word for word in words if word.startswith("FINETUNE_STARTED=")).partition("=")[2]
        scratch = next(word for word in words if word.endswith("target={scratch}")).split("source=")[1].split(",")[0]
        open(os.path.join(scratch, os.path.basename(started)), "w").close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, stop)
        print("started", flush=True)
        time.sleep(60)
    sys.exit(state["code"])
"""


@pytest.fixture
def engine(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A podman that says what its state file says; PATH has nothing else. Gives that file."""
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
    """Tell the fake engine what to answer."""
    state.write_text(json.dumps(content), encoding="utf-8")


def ready(tree: Path, **changes: Any) -> str:
    """The image that would be started."""
    return require_ready("podman", config(**changes), tree)


def refused(tree: Path, engine: str = "podman", **changes: Any) -> str:
    """The error that a person reads."""
    with pytest.raises(MachineError) as caught:
        require_ready(engine, config(**changes), tree)
    return str(caught.value)


def test_the_image_of_these_locks_is_started_by_its_id(tree: Path, engine: Path) -> None:
    """A name could be moved to another image while a run goes on."""
    assert ready(tree) == "1a2b"


def test_an_engine_that_is_not_installed(tree: Path, engine: Path) -> None:
    """It is told which one is."""
    told = refused(tree, "docker")
    assert told == (
        "runtime: docker is not installed here; use RUNTIME=podman, which is, or add RUNTIME=native to the command"
    )


def test_no_engine_at_all(tree: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to get one."""
    monkeypatch.setenv("PATH", "")
    assert "podman is not installed here; install it (https://podman.io" in refused(tree)


def test_an_image_that_is_missing(tree: Path, engine: Path) -> None:
    """And which other ones there are: the locks have changed since."""
    say(engine, labels=None)
    name = image_name("cpu", tree)
    assert refused(tree) == (
        f"runtime: podman has no image {name} (finetune-cpu:0123456789ab was built from other locks); "
        "make image-cpu builds it"
    )


def test_an_image_of_other_locks(tree: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name says, as one that was fetched from elsewhere."""
    say(engine, labels={"finetune.locks": "0" * 64})
    monkeypatch.setenv(runtime.OTHER_IMAGE, "registry.example/ours:1")
    assert refused(tree) == (
        "runtime: image registry.example/ours:1 was built from other locks than those in requirements/; "
        "make image-cpu builds it anew"
    )


def test_a_daemon_that_does_not_answer(tree: Path, engine: Path) -> None:
    """And how to start it."""
    say(engine, complaint="Cannot connect to the daemon. Is the daemon running?")
    assert "podman is installed but not running; start it" in refused(tree)


def test_a_gpu_that_is_not_there(tree: Path, engine: Path) -> None:
    """Before the container is started, which would say it in the engine's words."""
    say(engine, labels={"finetune.locks": locks_sha256("cuda", tree)})
    assert "this machine has no NVIDIA driver (nvidia-smi)" in refused(tree, environment="cuda")


def test_a_tree_that_can_not_be_written(tree: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that is read-only, or another user's."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or Path(path) != tree)
    assert refused(tree) == (
        f"{tree}: can't be written to by user {os.getuid()}; change its owner, or mount it writable"
    )


def test_locks_are_known_by_their_bytes(tree: Path) -> None:
    """Any change of any lock of the environment, and of no other, is another image."""
    before = {name: image_name(name, tree) for name in ("cpu", "cuda")}
    lock_files("cpu", tree)[0].write_text("torch==9\n", encoding="utf-8")
    assert image_name("cpu", tree) != before["cpu"]
    assert image_name("cuda", tree) == before["cuda"]


# -------------------------------------------------------------------------------------------- running to the end


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
def test_the_commands_exit_code_comes_back(tree: Path, engine: Path, code: int) -> None:
    """DVC and schedulers go by it."""
    say(engine, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=code)
    assert runtime.run("podman", "train", ["train"], config(), tree) == code
    assert list((tree / "work").iterdir()) == [], "the scratch folder stays behind"


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (125, MachineError, "podman could not start the container"),
        (127, MachineError, "the container could not run it"),
        (137, MachineError, "its container was killed .* the same command goes on from what is kept"),
        (-9, MachineError, "its container was killed"),
        (143, InterruptedRunError, "its container was stopped .* the same command goes on from what is kept"),
        (-15, InterruptedRunError, "its container was stopped"),
    ],
)
def test_what_the_engine_or_a_signal_ended_is_told(code: int, error: type[FinetuneError], text: str) -> None:
    """With the exit code that says whether it can go on."""
    with pytest.raises(error, match=text):
        command_code(code, "podman", "train")


def start(tree: Path, **how: Any) -> "subprocess.Popen[str]":
    """The stage train of a tree, whose container has started."""
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
    """The container saves at its step's end, and its exit code says so."""
    labels = {"finetune.locks": locks_sha256("cpu", tree)}
    say(engine, labels=labels, code=0, waits=True)
    process = start(tree)
    process.send_signal(getattr(signal, name))
    told, _ = process.communicate(timeout=30)
    assert (told, process.returncode) == (f"saved at {name}\n", 5)


def test_a_signal_that_comes_too_early_is_no_success(tree: Path, engine: Path) -> None:
    """An engine that is still creating the container ends with 0: DVC would take the stage for done."""
    say(engine, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=0, early=True)
    process = start(tree)
    process.terminate()
    assert process.wait(timeout=30) == 5
    calls = [json.loads(line) for line in (engine.parent / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    assert calls[-1][:2] == ["rm", "--force"], "a container that was created stays behind"


def test_nohup_is_honoured(tree: Path, engine: Path) -> None:
    """A lost terminal does not end what was told to go on without one."""
    say(engine, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=0, waits=True)
    process = start(tree, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    assert process.communicate(timeout=30)[0] == "saved at SIGTERM\n"


def test_a_killed_wrapper_takes_its_container_along(tree: Path, engine: Path) -> None:
    """SIGKILL can't be passed on: the engine gets SIGTERM from the kernel, and the training saves."""
    say(engine, labels={"finetune.locks": locks_sha256("cpu", tree)}, code=0, waits=True)
    process = start(tree)
    process.kill()
    began = time.monotonic()
    assert process.stdout is not None
    assert process.stdout.read() == "saved at SIGTERM\n"  # to the end of the pipe, which the engine held
    assert time.monotonic() - began < 20
    process.wait()


def test_make_stop_finds_the_process_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers in a container mean nothing outside: the lock names the process on the host, which passes signals on."""
    monkeypatch.setenv("FINETUNE_PROCESS", "4321")
    with pipeline_lock(tmp_path / "pipeline.lock", "train"):
        assert (tmp_path / "pipeline.holder").read_text(encoding="utf-8") == "stage train (process 4321)"
