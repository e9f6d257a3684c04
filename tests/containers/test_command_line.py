"""The container of a command: its permissions, mounts and network."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.containers.command_line import (
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
from finetune.containers.images import Engine
from finetune.errors import ConfigError
from tests.builders.container_tree import config
from tests.builders.container_tree import tree as tree

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


# ------------------------------------------------------------------------------------------------ the command line


PODMAN, ROOTLESS = Engine("podman", True, False), Engine("podman", True, True)
DOCKER, ROOTLESS_DOCKER = Engine("docker", False, False), Engine("docker", False, True)


def line_of(tree: Path, engine: Engine = PODMAN, command: str = "train", **changes: Any) -> list[str]:
    """Return the container's command line for a command."""
    order = Order(engine, "1a2b3c", command, ("--debug", command), config(**changes), tree)
    return command_line(order, tree / "work/t")


def test_the_container_has_minimal_permissions(tree: Path) -> None:
    """It has its own user, no capabilities, no privilege escalation, no writable place but the mounts, no network."""
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


def test_gpus_are_requested_by_each_engines_option(tree: Path) -> None:
    """docker uses its toolkit, podman CDI."""
    line = line_of(tree, DOCKER, environment="cuda")
    assert line[line.index("--gpus") + 1] == "all"
    line = line_of(tree, environment="cuda")
    assert line[line.index("--device") + 1] == "nvidia.com/gpu=all"


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        (PODMAN, {"--user=1234:5678", "--group-add=7777"}),
        (DOCKER, {"--user=1234:5678", "--group-add=7777"}),
        (ROOTLESS, {"--user=1234:5678", "--userns=keep-id", "--group-add=keep-groups"}),
        (ROOTLESS_DOCKER, {"--user=0:0"}),
    ],
)
def test_files_belong_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, options: set[str]
) -> None:
    """Otherwise files would belong to root or to an unknown number; files shared in a group stay readable."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 5678)
    monkeypatch.setattr(os, "getgroups", lambda: [5678, 7777])
    found = {word for word in boundaries(engine, tmp_path) if word.startswith(("--user", "--group"))}
    assert found == options


def test_root_creates_files_of_the_trees_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo make repro` must not leave root's files in a user's folder."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_uid=1234, st_gid=5678))
    assert "--user=1234:5678" in boundaries(DOCKER, tmp_path)


def test_no_secret_is_in_the_command_line(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the machine can read it: only names are passed, and only to commands with a network."""
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
    """Libraries look up the user's name, which a numeric id may lack."""
    import getpass

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert f"USER=user{os.getuid()}" in variables(config(), network=False)


def test_variables_of_the_node_reach_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a cluster sets for each node reach the training in the container."""
    given = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "NCCL_DEBUG": "INFO", "PATH": "/bin", "OMP_NUM_THREADS": ""}
    assert passed_on(config(), given, network=True) == ["MASTER_ADDR", "NCCL_DEBUG", "NODE_RANK"]


# ------------------------------------------------------------------------------------------------------- mounts


def test_the_cache_is_writable_only_with_a_network(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline the cache is read-only, so that a stage cannot damage it; online it is writable, and created."""
    cache = tmp_path / "cache/hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home/token"))
    assert mounts(config(), tree, network=False) == [Mount(tree, True)]
    assert mounts(config(), tree, network=True)[-1] == Mount(cache, True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(SECRET, encoding="utf-8")
    assert mounts(config(), tree, network=False)[-1] == Mount(cache, False)
    assert mounts(config(), tree, network=True)[-1] == Mount(tmp_path / "home/token", False)


def test_outside_paths_are_mounted_under_their_own_names(tree: Path, tmp_path: Path) -> None:
    """Checkpoints, data, a base or DVC's cache may be elsewhere: links and params lead to their original paths."""
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


def test_a_base_behind_links_is_mounted_completely(tree: Path, tmp_path: Path) -> None:
    """The Hub's cache consists of links, and may be one itself; every path on the way must be mounted."""
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


def test_recorded_answers_elsewhere_are_mounted(tree: Path, tmp_path: Path) -> None:
    """The recorded baseline may be in another project."""
    path = tmp_path / "answers.jsonl"
    path.touch()
    recorded = {"form": "recorded", "name": "old", "path": str(path), "sha256": "a" * 64}
    assert Mount(path, False) in mounts(config(evaluate__baseline=recorded), tree, network=False)


def test_test_set_uses_are_counted_in_the_git_repository(tree: Path, tmp_path: Path) -> None:
    """A queued experiment runs in DVC's copy; a project may be inside a repository, or in a worktree."""
    (tree / ".git").mkdir()
    copy, project = tree / ".dvc/tmp/exps/tmp1", tree / "models/project"
    for folder in (copy, project):
        folder.mkdir(parents=True)
    assert {Mount(tree / "data", True), Mount(tree / ".git", True)} <= set(mounts(config(), copy, network=False))
    assert Mount(tree / ".git", True) in mounts(config(), project, network=False)
    (tree / ".git").rmdir()
    shared = tmp_path / "main/.git"
    (shared / "worktrees/tree").mkdir(parents=True)
    (shared / "worktrees/tree/commondir").write_text("../..\n", encoding="utf-8")
    (tree / ".git").write_text(f"gitdir: {shared}/worktrees/tree\n", encoding="utf-8")
    assert Mount(shared, True) in mounts(config(), tree, network=False)


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("/opt", "/opt: would hide /opt/finetune, which contains the packages of the image; move it"),
        ("/srv/a,b", "/srv/a,b: a folder with a comma or a quote in its path can't be mounted; rename it"),
    ],
)
def test_a_path_that_cannot_be_mounted_is_reported(root: str, told: str) -> None:
    """A mount over the packages would hide those of the image; a comma would end the option."""
    with pytest.raises(ConfigError) as refused:
        mounts(config(), Path(root), network=False)
    assert str(refused.value) == told


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
def test_only_commands_that_need_a_network_get_one(
    tree: Path, command: str, changes: dict[str, Any], needed: bool
) -> None:
    """Other commands have no network, which proves that a run depends only on local files."""
    assert needs_network(config(**changes), command, tree) is needed


def test_a_base_in_the_cache_needs_no_network(tree: Path, tmp_path: Path) -> None:
    """This holds once the base is fully downloaded at its revision."""
    from tests.builders.small_run import build_base

    given = config(model__base="org/model", model__revision="b" * 40)
    assert needs_network(given, "train", tree)
    folder = tmp_path / f"cache/hub/models--org--model/snapshots/{'b' * 40}"
    build_base(folder)
    assert not needs_network(given, "train", tree)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert needs_network(given, "train", tree), "a download that was cut off is no base"
