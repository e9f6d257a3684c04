"""push and pull: a run that was made in one clone stands in another one, proven; nothing damaged is passed on or put in
place, and nothing of the user's is lost."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from finetune.commands.sharing.leaks import redacted, secrets_of
from finetune.commands.sharing.remote import changes_of
from finetune.commands.sharing.stored import listed
from finetune.pipeline.outputs import md5
from tests.builders.runs_repository import commit, environment, finetune, outputs, run
from tests.builders.shared_run import finished, rewrite
from tests.builders.waiting import wait_for


def dvc(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that calls DVC ten times and more, each a second or two."""
    return pytest.mark.slow(pytest.mark.end_to_end(test))


WEIGHTS = "out/adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository A, whose run is pushed to `store`; not to be changed."""
    place = tmp_path_factory.mktemp("shared")
    root = finished(place / "A")
    (root / ".gitignore").write_text("out/\nreports/\nwork/\ndata/prepared/\ndata/validated/\n", encoding="utf-8")
    run(root, "git", "init", "-q", "-b", "main")
    run(root, "dvc", "init", "-q")
    run(root, "dvc", "commit", "-q", "--force")
    commit(root, "the run")
    return place


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Path:
    """A copy of it, whose remote is its own `store`; the repository A, not pushed."""
    root = tmp_path / "place"
    shutil.copytree(shared, root, symlinks=True)
    run(root / "A", "dvc", "remote", "add", "-q", "-d", "store", str(root / "store"))
    commit(root / "A", "a remote")
    return root


def clone(place: Path, name: str = "B") -> Path:
    """A fresh clone of A: the code and dvc.lock, nothing that DVC keeps."""
    run(place, "git", "clone", "-q", str(place / "A"), name)
    return place / name


def objects(place: Path) -> dict[str, Path]:
    """The remote's objects by their MD5."""
    files = [path for path in (place / "store").rglob("*") if path.is_file()]
    return {(path.parent.name + path.name): path for path in files}


def object_of(place: Path, name: str) -> Path:
    """The remote's object of a file of A."""
    return objects(place)[md5(place / "A" / name)]


def damage(path: Path) -> None:
    """Other bytes of the same length under the same name."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)


# ------------------------------------------------------------------------------------------------------------ there


@dvc
def test_a_run_goes_to_another_machine_and_stands_there(place: Path) -> None:
    """Pushed, cloned, pulled: the same bytes, proven by the manifests, and nothing is left to run."""
    told = finetune(place / "A", "push")
    assert "push: done; the remote store has the run" in told
    assert "there: git pull, then ./finetune pull" in told
    there = clone(place)
    told = finetune(there, "pull")
    assert "are in place, as their manifests say" in told
    assert outputs(there) == outputs(place / "A")
    before = {path: (there / path).stat().st_mtime_ns for path in outputs(there)}
    assert "Data and pipelines are up to date." in run(there, "dvc", "repro")
    assert {path: (there / path).stat().st_mtime_ns for path in outputs(there)} == before
    assert run(there, "git", "status", "--short") == ""
    assert "done" in finetune(there, "pull")  # again: nothing to do


@dvc
def test_an_older_run_is_replaced_by_the_one_of_the_commit(place: Path) -> None:
    """What DVC keeps can be had again, so it needs no question; rows that a .dvc file names go along."""
    finetune(place / "A", "push")
    there = clone(place)
    finetune(there, "pull")
    rewrite(place / "A/reports/summary.md", "of the adapter", "once more, of the adapter")
    run(place / "A", "dvc", "commit", "-q", "--force")
    (place / "A/rows.jsonl").write_text("{}\n" * 9, encoding="utf-8")
    run(place / "A", "dvc", "add", "-q", "rows.jsonl")
    commit(place / "A", "another run")
    finetune(place / "A", "push")
    run(there, "git", "pull", "-q")
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")
    assert (there / "rows.jsonl").read_text(encoding="utf-8") == "{}\n" * 9


# --------------------------------------------------------------------------------------------------- before a push


@dvc
def test_push_says_what_it_lacks(place: Path) -> None:
    """No remote; a run that is not finished; a change that git does not have."""
    root = place / "A"
    run(root, "dvc", "remote", "remove", "-q", "store")
    told = finetune(root, "push", code=2)
    assert "error: no DVC remote is set up; dvc remote add -d store URL names one" in told
    assert "no DVC remote is set up" in finetune(root, "pull", code=2)
    run(root, "git", "checkout", "-q", ".dvc/config")

    rewrite(root / "params.yaml", "learning_rate: 2.0e-3", "learning_rate: 1.0e-3")
    told = finetune(root, "push", code=3)
    assert "error: dvc.lock: does not match the files here (" in told
    assert "train: params.yaml" in told
    assert "make repro finishes it, then ./finetune push" in told
    run(root, "git", "checkout", "-q", "params.yaml")
    assert not (place / "store").exists()

    (root / "data/raw/README.txt").write_text("x", encoding="utf-8")
    (root / "notes.txt").write_text("x", encoding="utf-8")
    run(root, "dvc", "commit", "-q", "--force")
    told = finetune(root, "push")
    assert (
        "warning: not committed, so the other machine won't have it: data/raw/README.txt, dvc.lock, notes.txt" in told
    )


@dvc
def test_push_uploads_nothing_that_is_damaged(place: Path) -> None:
    """Neither from DVC's cache, which nobody would notice, nor what a manifest or a report does not know."""
    root = place / "A"
    digest = md5(root / WEIGHTS)
    cached = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    damage(cached)
    told = finetune(root, "push", code=3)
    assert f"error: {WEIGHTS}: damaged in DVC's cache; nothing was uploaded; remove .dvc/cache/files/md5/" in told
    assert not (place / "store").exists()
    cached.unlink()  # as it says
    run(root, "dvc", "commit", "-q", "--force")
    assert md5(cached) == digest

    damage(root / WEIGHTS)
    run(root, "dvc", "commit", "-q", "--force")
    told = finetune(root, "push", code=3)
    assert "adapter_model.safetensors: is not the file that was published" in told
    assert not (place / "store").exists()


@dvc
def test_nothing_is_shared_while_a_stage_runs(place: Path) -> None:
    """It would be half of one run and half of another."""
    held = (
        "from pathlib import Path; import time; from finetune.files.run_lock import pipeline_lock\n"
        "with pipeline_lock(Path('work/pipeline.lock'), 'train'): print('held', flush=True); time.sleep(3600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", held], cwd=place / "A", env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for command in ("push", "pull"):
            assert "stage train" in finetune(place / "A", command, code=2)
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------------------------------------------- after a pull


def damage_lists(place: Path) -> list[Path]:
    """The lists of all folders, the one kind of object that DVC checks itself."""
    found = [path for name, path in objects(place).items() if name.endswith(".dir")]
    for path in found:
        damage(path)
    return found


def damage_weights(place: Path) -> list[Path]:
    """A file that DVC takes for good."""
    stored = object_of(place, WEIGHTS)
    damage(stored)
    return [stored]


def lose_weights(place: Path) -> list[Path]:
    """A push that broke off, or a cleaning with too broad a hand."""
    stored = object_of(place, WEIGHTS)
    stored.unlink()
    return [stored]


NOT_FETCHED = "could not be fetched from the remote store"


@dvc
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            damage_weights,
            [f"error: {WEIGHTS}: damaged in the remote store ({{where}} there); nothing was put in place"],
        ),
        (damage_lists, [".dir is corrupted", NOT_FETCHED, "what DVC calls corrupted, delete there first"]),
        (lose_weights, ["{where}", f"error: pull: out/adapter {NOT_FETCHED}", "push on the machine that has the run"]),
    ],
)
def test_what_is_spoiled_in_the_remote_is_told_and_never_put_in_place(
    place: Path, spoil: Callable[[Path], list[Path]], told: list[str]
) -> None:
    """The object to delete is named, and after the repair a push uploads it, though DVC believes that it is there."""
    finetune(place / "A", "push")
    spoiled, there = spoil(place), clone(place)
    said = finetune(there, "pull", code=3)
    for text in told:
        assert text.format(where=spoiled[0].relative_to(place / "store").as_posix()) in said
    assert outputs(there) == {}
    for path in spoiled:
        path.unlink(missing_ok=True)  # as it says
    assert "push: done" in finetune(place / "A", "push")
    assert all(path.is_file() for path in spoiled)
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")


@dvc
def test_what_is_damaged_here_alone_is_fetched_anew(place: Path) -> None:
    """The remote's copy is whole, so nobody needs to do anything."""
    finetune(place / "A", "push")
    there = clone(place)
    run(there, "dvc", "fetch", "-q")
    digest = md5(place / "A" / WEIGHTS)
    damage(there / ".dvc/cache/files/md5" / digest[:2] / digest[2:])
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")


@dvc
def test_a_remote_with_nothing_in_it_is_told(place: Path) -> None:
    """Nobody has pushed yet."""
    there = clone(place)
    told = finetune(there, "pull", code=3)
    assert "could not be fetched from the remote store" in told
    run(there, "git", "rm", "-q", "--cached", "dvc.lock")
    (there / "dvc.lock").unlink()
    assert "dvc.lock: is missing: this commit has no run" in finetune(there, "pull", code=2)


@dvc
def test_what_was_changed_here_is_never_overwritten(place: Path) -> None:
    """DVC leaves it, and so do we, without a question that nobody hears."""
    finetune(place / "A", "push")
    there = clone(place)
    finetune(there, "pull")
    (there / "reports/summary.md").write_text("my notes", encoding="utf-8")
    (there / "out/adapter/mine.txt").write_text("mine", encoding="utf-8")
    told = finetune(there, "pull", code=2)
    assert "reports/summary.md" in told
    assert "out/adapter/mine.txt" in told
    assert "--force" not in told
    assert "were changed here and are kept nowhere else, so they were left as they are" in told
    assert (there / "reports/summary.md").read_text(encoding="utf-8") == "my notes"
    assert (there / "out/adapter/mine.txt").read_text(encoding="utf-8") == "mine"


@dvc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_pull_goes_on(place: Path, number: signal.Signals) -> None:
    """Whenever it is killed, the next one ends where the first would have, and no lock stays."""
    finetune(place / "A", "push")
    there = clone(place)
    for moment in (0.0, 1.0, 2.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune", "pull"],
            cwd=there,
            env=environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "pull: asking the remote store\n"
        time.sleep(moment)
        process.send_signal(number)
        told, _ = process.communicate(timeout=120)
        if number != signal.SIGKILL and process.returncode:  # 0: it was quicker than we were
            assert process.returncode == 5, told
            assert "interrupted" in told
            assert "Traceback" not in told
    wait_for(lambda: not dvc_runs(there))  # the orphan of a killed pull ends by itself
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")


def dvc_runs(root: Path) -> bool:
    """Whether a DVC still works in the folder."""
    running = (process.info for process in psutil.process_iter(["cmdline", "cwd"]))
    return any(info["cwd"] == str(root) and "dvc" in (info["cmdline"] or []) for info in running)


# ------------------------------------------------------------------------------------------------------------ secrets


def test_secrets_of_a_remote_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC tells whole addresses in its errors, and a token may stand in an environment variable."""
    monkeypatch.setenv("MY_TOKEN", "environment-secret")
    settings = {
        "core.remote": "store",
        "remote.store.url": "https://anna:hunter22@store.example.org/x?sig=abc",
        "remote.store.password": "hunter22",
        "remote.store.access_key_id": "AKIA0123",
        "remote.store.ask_password": "true-is-no-secret",
        "remote.store.keyfile": "/keys/mine",
    }
    text = (
        "ERROR: https://anna:hunter22@store.example.org/x?sig=abc: 403, key AKIA0123, environment-secret, "
        "ssh://bob@host/path, /keys/mine, true-is-no-secret, hunter22"
    )
    assert redacted(text, secrets_of(settings)) == (
        "ERROR: https://…@store.example.org/x?… 403, key …, …, ssh://…@host/path, /keys/mine, true-is-no-secret, …"
    )


@dvc
@pytest.mark.parametrize(("command", "code"), [("push", 4), ("pull", 3)])
def test_an_error_of_the_remote_tells_no_secret(place: Path, command: str, code: int) -> None:
    """A server that does not answer, with a password in its address."""
    root = place / "A" if command == "push" else clone(place)
    run(root, "dvc", "remote", "modify", "--local", "store", "url", "http://anna:hunter22@127.0.0.1:9/s?sig=sesame")
    told = finetune(root, command, code=code)
    assert "error: " in told
    assert "hunter22" not in told and "sesame" not in told


def test_a_list_names_the_first_few() -> None:
    """A hundred files are no line."""
    assert listed("gfedcba") == "a, b, c, d, e and 2 more"
    assert listed(["b", "a", "a"]) == "a, b"


def test_what_dvc_status_says_is_told_in_words() -> None:
    """Outputs, dependencies and commands, each as DVC's JSON has them."""
    entries = [
        {"changed outs": {"out/adapter": "deleted"}},
        {"changed deps": {"models": "modified"}},
        "changed command",
    ]
    assert changes_of(entries) == ["out/adapter deleted", "models modified", "changed command"]
