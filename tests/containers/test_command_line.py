"""The container of a command: what it may do, see and reach."""

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
    """Else they would belong to root, or to a number that nobody has; what is shared by a group stays readable."""
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 5678)
    monkeypatch.setattr(os, "getgroups", lambda: [5678, 7777])
    found = {word for word in boundaries(engine, tmp_path) if word.startswith(("--user", "--group"))}
    assert found == options


def test_root_works_for_the_owner_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo make repro` must not leave root's files in a user's folder."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_uid=1234, st_gid=5678))
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
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home/token"))
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


def test_looks_are_counted_where_git_remembers_them(tree: Path, tmp_path: Path) -> None:
    """A queued experiment runs in a copy that DVC makes; a project lies inside a repository, or in a worktree."""
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
def test_a_path_that_can_not_be_mounted_is_told(root: str, told: str) -> None:
    """A mount over its packages would leave the image without any; a comma would end the option."""
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
def test_the_network_is_there_for_those_who_need_it(
    tree: Path, command: str, changes: dict[str, Any], needed: bool
) -> None:
    """All others are cut off, which is the cheapest proof that a run depends on nothing but what is here."""
    assert needs_network(config(**changes), command, tree) is needed


def test_a_base_in_the_cache_needs_no_network(tree: Path, tmp_path: Path) -> None:
    """Once it was fetched, whole, at its revision."""
    from tests.builders.small_run import build_base

    given = config(model__base="org/model", model__revision="b" * 40)
    assert needs_network(given, "train", tree)
    folder = tmp_path / f"cache/hub/models--org--model/snapshots/{'b' * 40}"
    build_base(folder)
    assert not needs_network(given, "train", tree)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert needs_network(given, "train", tree), "a download that was cut off is no base"
