"""push and pull move a run from one clone to another and verify it: no damaged file is passed on or put in place, and
no local change is lost."""

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
    """Mark a test that calls DVC ten times or more, at one or two seconds each."""
    return pytest.mark.slow(pytest.mark.end_to_end(test))


WEIGHTS = "out/adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with repository A, whose run is pushed to `store`; tests must not change it."""
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
    """Return a copy of the shared folder with its own remote `store`; repository A is not pushed."""
    root = tmp_path / "place"
    shutil.copytree(shared, root, symlinks=True)
    run(root / "A", "dvc", "remote", "add", "-q", "-d", "store", str(root / "store"))
    commit(root / "A", "a remote")
    return root


def clone(place: Path, name: str = "B") -> Path:
    """Make a fresh clone of A: the code and dvc.lock, without DVC's files."""
    run(place, "git", "clone", "-q", str(place / "A"), name)
    return place / name


def objects(place: Path) -> dict[str, Path]:
    """Return the remote's objects by their MD5."""
    files = [path for path in (place / "store").rglob("*") if path.is_file()]
    return {(path.parent.name + path.name): path for path in files}


def object_of(place: Path, name: str) -> Path:
    """Return the remote's object for a file of A."""
    return objects(place)[md5(place / "A" / name)]


def damage(path: Path) -> None:
    """Overwrite a file with other bytes of the same length."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)


# -------------------------------------------------------------------------------------------------- push and pull


@dvc
def test_a_run_is_pushed_and_pulled_into_another_clone(place: Path) -> None:
    """After push, clone and pull, the bytes are the same, the manifests agree, and no stage needs to run."""
    told = finetune(place / "A", "push")
    assert "push: done; the run is on the remote store" in told
    assert "on the other machine: git pull, then ./finetune pull" in told
    there = clone(place)
    told = finetune(there, "pull")
    assert "are in place and verified" in told
    assert outputs(there) == outputs(place / "A")
    before = {path: (there / path).stat().st_mtime_ns for path in outputs(there)}
    assert "Data and pipelines are up to date." in run(there, "dvc", "repro")
    assert {path: (there / path).stat().st_mtime_ns for path in outputs(there)} == before
    assert run(there, "git", "status", "--short") == ""
    assert "done" in finetune(there, "pull")  # the second pull has nothing to do


@dvc
def test_pull_replaces_an_older_run(place: Path) -> None:
    """Files that DVC stores are replaced without a question; rows tracked by a .dvc file are pulled too."""
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
def test_push_reports_missing_prerequisites(place: Path) -> None:
    """Cases: no remote, an unfinished run, a change that is not committed to git."""
    root = place / "A"
    run(root, "dvc", "remote", "remove", "-q", "store")
    told = finetune(root, "push", code=2)
    assert "error: no DVC remote is set up; add one with dvc remote add -d store URL" in told
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
def test_push_uploads_no_damaged_file(place: Path) -> None:
    """push checks DVC's cache, whose damage would stay unnoticed, and files against manifest and report."""
    root = place / "A"
    digest = md5(root / WEIGHTS)
    cached = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    damage(cached)
    told = finetune(root, "push", code=3)
    assert f"error: {WEIGHTS}: damaged in DVC's cache; nothing was uploaded; remove .dvc/cache/files/md5/" in told
    assert not (place / "store").exists()
    cached.unlink()  # the remedy in the message
    run(root, "dvc", "commit", "-q", "--force")
    assert md5(cached) == digest

    damage(root / WEIGHTS)
    run(root, "dvc", "commit", "-q", "--force")
    told = finetune(root, "push", code=3)
    assert "adapter_model.safetensors: differs from the published file" in told
    assert not (place / "store").exists()


@dvc
def test_nothing_is_shared_while_a_stage_runs(place: Path) -> None:
    """A run in progress would be shared half old, half new."""
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
    """Damage the directory lists, the only objects that DVC verifies itself."""
    found = [path for name, path in objects(place).items() if name.endswith(".dir")]
    for path in found:
        damage(path)
    return found


def damage_weights(place: Path) -> list[Path]:
    """Damage a file that DVC accepts unchecked."""
    stored = object_of(place, WEIGHTS)
    damage(stored)
    return [stored]


def lose_weights(place: Path) -> list[Path]:
    """Delete an object, as an interrupted push or a too broad garbage collection does."""
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
            [f"error: {WEIGHTS}: damaged in the remote store ({{where}} there); no file was replaced"],
        ),
        (damage_lists, [".dir is corrupted", NOT_FETCHED, "first delete there what DVC calls corrupted"]),
        (lose_weights, ["{where}", f"error: pull: out/adapter {NOT_FETCHED}", "push on the machine that has the run"]),
    ],
)
def test_damage_in_the_remote_is_reported_and_not_checked_out(
    place: Path, spoil: Callable[[Path], list[Path]], told: list[str]
) -> None:
    """The error names the object to delete; after that a push uploads it, although DVC assumes that it exists."""
    finetune(place / "A", "push")
    spoiled, there = spoil(place), clone(place)
    output = finetune(there, "pull", code=3)
    for text in told:
        assert text.format(where=spoiled[0].relative_to(place / "store").as_posix()) in output
    assert outputs(there) == {}
    for path in spoiled:
        path.unlink(missing_ok=True)  # the remedy in the message
    assert "push: done" in finetune(place / "A", "push")
    assert all(path.is_file() for path in spoiled)
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")


@dvc
def test_local_damage_is_fetched_again(place: Path) -> None:
    """The remote's copy is intact, so pull fetches it without user action."""
    finetune(place / "A", "push")
    there = clone(place)
    run(there, "dvc", "fetch", "-q")
    digest = md5(place / "A" / WEIGHTS)
    damage(there / ".dvc/cache/files/md5" / digest[:2] / digest[2:])
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")


@dvc
def test_an_empty_remote_is_reported(place: Path) -> None:
    """An empty remote means that the run was never pushed."""
    there = clone(place)
    told = finetune(there, "pull", code=3)
    assert "could not be fetched from the remote store" in told
    run(there, "git", "rm", "-q", "--cached", "dvc.lock")
    (there / "dvc.lock").unlink()
    assert "dvc.lock: is missing: this commit has no run" in finetune(there, "pull", code=2)


@dvc
def test_local_changes_are_never_overwritten(place: Path) -> None:
    """A local change is kept, and pull asks no question that a script could not answer."""
    finetune(place / "A", "push")
    there = clone(place)
    finetune(there, "pull")
    (there / "reports/summary.md").write_text("my notes", encoding="utf-8")
    (there / "out/adapter/mine.txt").write_text("mine", encoding="utf-8")
    told = finetune(there, "pull", code=2)
    assert "reports/summary.md" in told
    assert "out/adapter/mine.txt" in told
    assert "--force" not in told
    assert "were changed here and exist nowhere else, so they were not overwritten" in told
    assert (there / "reports/summary.md").read_text(encoding="utf-8") == "my notes"
    assert (there / "out/adapter/mine.txt").read_text(encoding="utf-8") == "mine"


@dvc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_pull_can_be_repeated(place: Path, number: signal.Signals) -> None:
    """A pull killed at any time can be repeated with the same result, and leaves no lock."""
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
        assert process.stdout.readline() == "pull: fetching from the remote store\n"
        time.sleep(moment)
        process.send_signal(number)
        told, _ = process.communicate(timeout=120)
        if number != signal.SIGKILL and process.returncode:  # 0: it finished before the signal
            assert process.returncode == 5, told
            assert "interrupted" in told
            assert "Traceback" not in told
    wait_for(lambda: not dvc_runs(there))  # the orphan of a killed pull ends on its own
    finetune(there, "pull")
    assert outputs(there) == outputs(place / "A")


def dvc_runs(root: Path) -> bool:
    """Return whether a DVC process still works in the folder."""
    running = (process.info for process in psutil.process_iter(["cmdline", "cwd"]))
    return any(info["cwd"] == str(root) and "dvc" in (info["cmdline"] or []) for info in running)


# ------------------------------------------------------------------------------------------------------------ secrets


def test_secrets_of_a_remote_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC's errors contain complete addresses, and environment variables may contain tokens."""
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
def test_errors_of_the_remote_contain_no_secret(place: Path, command: str, code: int) -> None:
    """The server does not answer, and its address contains a password."""
    root = place / "A" if command == "push" else clone(place)
    run(root, "dvc", "remote", "modify", "--local", "store", "url", "http://anna:hunter22@127.0.0.1:9/s?sig=sesame")
    told = finetune(root, command, code=code)
    assert "error: " in told
    assert "hunter22" not in told and "sesame" not in told


def test_a_long_list_is_shortened() -> None:
    """A long list is shortened to its first names."""
    assert listed("gfedcba") == "a, b, c, d, e and 2 more"
    assert listed(["b", "a", "a"]) == "a, b"


def test_dvc_status_is_described_in_words() -> None:
    """Outputs, dependencies and commands are described from DVC's JSON."""
    entries = [
        {"changed outs": {"out/adapter": "deleted"}},
        {"changed deps": {"models": "modified"}},
        "changed command",
    ]
    assert changes_of(entries) == ["out/adapter deleted", "models modified", "changed command"]
