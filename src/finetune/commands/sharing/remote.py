"""`finetune push` and `finetune pull`: transfer a finished run between machines over a DVC remote, verified on both.

git carries the code, the params and dvc.lock; the remote carries the files listed in dvc.lock. DVC's run cache stays
local: it lists earlier runs of each stage without their outputs, which a push does not send, and HTTP remotes do not
support it. The files of dvc.lock are enough for `dvc repro` to consider all stages up to date.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.commands.sharing.leaks import redacted, secrets_of
from finetune.commands.sharing.stored import (
    Stored,
    complete,
    damaged,
    forget_lists,
    listed,
    require_in_place,
    require_manifests,
    stored_files,
)
from finetune.console import gigabytes, say, short
from finetune.errors import ConfigError, DataError, InterruptedRunError, MachineError
from finetune.files.run_lock import pipeline_lock
from finetune.hardware.host import ask
from finetune.paths import Paths
from finetune.processes.running import require_idle

HEARTBEAT = 30.0  # seconds between progress lines of a long transfer
OWN_END = 2.0  # seconds for DVC to end after a Ctrl-C of the terminal, which it also received
PATIENCE = 20.0  # seconds for DVC to end after our signal
FORCE = " Use `--force` to force."  # DVC's advice when it leaves a changed file alone
Settings = Mapping[str, str]


def push(root: Path) -> None:
    """Upload the files listed in dvc.lock, after verifying that they are the outputs of the run.

    Raises ConfigError without a remote or while a stage runs; DataError if the run is unfinished or a file is damaged.
    In both cases nothing is uploaded.
    """
    paths = Paths(root)
    require_idle(paths)
    remote, settings = read_remote(root)
    with pipeline_lock(paths.work / "pipeline.lock", "push"):
        require_finished(root, "push")
        require_manifests(paths)
        files = stored_files(root)
        require_whole(root, files)
        say(f"push: {format_amount(root, files)} to the remote {remote}")
        code, text = run_dvc(root, ["push"], settings, "push")
        absent = [] if code else fill_gaps(root, remote, files, settings)
        if code or absent:
            show(root, text)
            what = (
                f"{listed(absent)} was not uploaded"
                if absent
                else "DVC could not upload everything (see its messages above)"
            )
            raise MachineError(
                "push", what, "uploaded files are kept: fix the cause, then run ./finetune push again to resume"
            )
    say(f"push: done; the run is on the remote {remote}")
    remind_of_git(root)


def pull(root: Path) -> None:
    """Fetch the files listed in dvc.lock, verify every byte, and only then put them in place.

    Raises ConfigError without a remote, while a stage runs, or if a local file would be lost; DataError if the remote
    lacks a file or holds a damaged one. In both cases the working tree is unchanged.
    """
    paths = Paths(root)
    require_idle(paths)
    remote, settings = read_remote(root)
    if not (root / "dvc.lock").is_file():
        remedy = "git pull a commit that has a run, then run ./finetune pull"
        raise ConfigError("dvc.lock", "is missing: this commit has no run", remedy)
    with pipeline_lock(paths.work / "pipeline.lock", "pull"):
        files = fetch(root, settings, remote)
        code, text = run_dvc(root, ["checkout"], settings, "pull")
        if code:
            show(root, text)
            raise ConfigError(
                "pull",
                "the files listed above were changed here and exist nowhere else, so they were not overwritten",
                "move or remove them, then ./finetune pull",
            )
        require_in_place(root, files)
        require_manifests(paths)
        require_finished(root, "pull")
    say(f"pull: done; {format_amount(root, files)} from the remote {remote} are in place and verified")
    say("  dvc repro has nothing left to run; ./finetune report shows the verdict")


def fetch(root: Path, settings: Settings, remote: str) -> list[Stored]:
    """Fetch into the cache until it holds every file undamaged; return the files. Raise DataError otherwise.

    A damaged object is removed and fetched once more, because it may have been damaged locally.
    """
    say(f"pull: fetching from the remote {remote}")
    for last in (False, True):
        code, text = run_dvc(root, ["fetch"], settings, "pull")
        files = stored_files(root)
        broken, absent = damaged(files), [file.name for file in files if not file.cached.is_file()]
        for file in broken:
            file.cached.unlink(missing_ok=True)
        if last or not broken:
            break
    if broken or code or absent:
        forget_lists(root)
    if broken:
        places = listed(f"files/md5/{file.object_name[:2]}/{file.object_name[2:]}" for file in broken)
        raise DataError(
            f"{listed(file.name for file in broken)}",
            f"damaged in the remote {remote} ({places} there)",
            "no file was replaced: delete that object there, run ./finetune push on the machine that has "
            "the run, then ./finetune pull again",
        )
    if code or absent:
        show(root, text)
        what = f"{listed(absent)} could not be fetched" if absent else "DVC could not fetch everything"
        raise DataError(
            "pull",
            f"{what} from the remote {remote} (see the messages above); if they are missing there, "
            "run ./finetune push on the machine that has the run (first delete there what DVC calls corrupted)",
            "then run ./finetune pull again to resume",
        )
    return files


# ------------------------------------------------------------------------------------------------------------- checks


def read_remote(root: Path) -> tuple[str, Settings]:
    """Return the default remote's name and DVC's merged configuration. Raise ConfigError if there is no remote."""
    lines = ask_dvc(root, "config", "--list").splitlines()
    settings = {key: value for key, _, value in (line.partition("=") for line in lines)}
    remote = settings.get("core.remote")
    if not remote:
        raise ConfigError(
            "",
            "no DVC remote is set up",
            "add one with dvc remote add -d store URL (a folder, s3://, gs://, ssh://, ...), and git "
            "commit .dvc/config for the other machine",
        )
    return remote, settings


def require_finished(root: Path, command: str) -> None:
    """Raise DataError if dvc.lock does not match the working tree: a stage has not run, or an input has changed."""
    found = json.loads(ask_dvc(root, "status", "--json") or "{}")
    if not found:
        return
    stages = "; ".join(f"{stage}: {listed(changes_of(entries))}" for stage, entries in found.items())
    after = "make repro finishes it, then ./finetune push" if command == "push" else "git pull, or make repro"
    raise DataError("dvc.lock", f"does not match the files here ({stages})", after)


def changes_of(entries: list[Any]) -> list[str]:
    """Summarize in a few words each why `dvc status` considers a stage outdated."""
    found = []
    for entry in entries:  # `{"changed outs": {"out/adapter": "deleted"}}`, or "changed command"
        changes = next(iter(entry.values())) if isinstance(entry, dict) else {}
        found += [f"{name} {state}" for name, state in changes.items()] or [str(entry)]
    return found


def require_whole(root: Path, files: list[Stored]) -> None:
    """Raise DataError if an object in DVC's cache does not match its hash: a push would spread the damage unnoticed."""
    broken = damaged(files)
    if broken:
        places = listed(os.path.relpath(file.cached, root) for file in broken)
        raise DataError(
            f"{listed(file.name for file in broken)}",
            "damaged in DVC's cache; nothing was uploaded",
            f"remove {places}, run dvc commit --force to store it again from the working tree, then ./finetune push",
        )


def format_amount(root: Path, files: list[Stored]) -> str:
    """Format the number of files and their size."""
    sizes = [path.stat().st_size for file in files if not file.listing and (path := root / file.name).is_file()]
    return f"{len(sizes)} files, {gigabytes(sum(sizes))}"


def remind_of_git(root: Path) -> None:
    """Remind the user of what git has to carry: the other machine needs the commit as well as the files."""
    git = ("git", "-C", str(root))
    changed = ask(*git, "status", "--porcelain", timeout=60)
    if changed is None:
        say("warning: this is not a git repository; the other machine needs the same code, params.yaml and dvc.lock")
    elif changed:
        names = listed(line[3:] for line in changed.splitlines())
        say(f"warning: not committed, so the other machine won't have it: {names}; git add, git commit, git push")
    elif ask(*git, "rev-list", "--count", "@{upstream}..HEAD", timeout=60) not in ("0", None):
        say("warning: git push as well: the other machine needs this commit")
    say("  on the other machine: git pull, then ./finetune pull")


# ---------------------------------------------------------------------------------------------------------------- DVC


def fill_gaps(root: Path, remote: str, files: list[Stored], settings: Settings) -> list[str]:
    """Return what the remote lacks after a push and a second attempt. Raise MachineError, redacted, on failure."""
    try:
        return complete(root, remote, files)
    except Exception as error:  # each kind of remote raises its own errors
        detail = short(redacted(" ".join(str(error).split()), secrets_of(settings)), 300)
        raise MachineError(
            "push", f"the remote {remote} failed ({detail})", "fix the cause, then run ./finetune push again to resume"
        ) from None


def ask_dvc(root: Path, *arguments: str) -> str:
    """Return DVC's standard output. Raise ConfigError with its last message if the command fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        detail = redacted(done.stderr.strip() or f"exit code {done.returncode}", secrets_of({}))
        raise ConfigError(f"dvc {' '.join(arguments)}", " ".join(detail.split()))
    return done.stdout


def run_dvc(root: Path, arguments: list[str], settings: Settings, command: str) -> tuple[int, str]:
    """Run DVC without prompts; return (exit code, redacted output). Raise InterruptedRunError once it has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    seconds = 0.0
    try:
        while True:
            try:
                text, _ = process.communicate(timeout=HEARTBEAT)
                return process.returncode, redacted(text, secrets_of(settings))
            except subprocess.TimeoutExpired:
                seconds += HEARTBEAT
                say(f"  {seconds:.0f} s: dvc {arguments[0]} is running")
    except KeyboardInterrupt:
        end(process)
        raise InterruptedRunError(
            "", f"{command} was interrupted", "transferred files are kept; run the same command again to resume"
        ) from None


def end(process: subprocess.Popen[str]) -> None:
    """Wait until DVC has ended and released its locks; send it a signal if Ctrl-C did not reach it."""
    for number, seconds in ((None, OWN_END), (signal.SIGINT, PATIENCE), (signal.SIGTERM, PATIENCE)):
        if number is not None:
            process.send_signal(number)
        try:
            process.communicate(timeout=seconds)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.communicate()


def show(root: Path, text: str) -> None:
    """Print DVC's messages line by line, with paths relative to the repository and without the advice to force."""
    for line in text.replace(FORCE, "").replace(f"{root.absolute()}/", "").splitlines():
        if line.strip():
            say(f"  dvc: {line.strip()}")
