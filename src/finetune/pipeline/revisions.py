"""Files of an earlier run, from a git revision or a DVC experiment, via git and DVC's cache.

`dvc.api.DVCFileSystem` accepts names of experiments too, and queries a remote if one is configured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, DataError
from finetune.files.atomic import publish_directory
from finetune.hardware.host import ask


@contextmanager
def files_of(root: Path, revision: str) -> Iterator[Any]:
    """Open the files of a revision as a file system. Raise ConfigError if it does not exist."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError, SCMError

    try:
        with Repo(str(root.absolute()), rev=revision) as repository:
            yield DVCFileSystem(repo=repository)
    except RevError:
        raise ConfigError(
            "",
            f"{revision!r} is not an experiment, branch, tag or commit of this repository",
            "./finetune exps lists the experiments; workspace means the working tree",
        ) from None
    except (DvcException, SCMError) as error:
        raise DataError(revision, f"DVC can't read it: {error}") from None


def is_written(files: Any, path: Path) -> bool:
    """Return whether a revision has the file: in git, or as an output with a hash in dvc.lock."""
    if not files.exists(path.as_posix()):
        return False
    known = files.info(path.as_posix())
    return "dvc_info" not in known or "md5" in known["dvc_info"]


def copy_file(files: Any, revision: str, path: Path, target: Path) -> None:
    """Copy one file of a revision. Raise DataError if neither cache nor remote has it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(path.as_posix(), str(target))
    except FileNotFoundError:  # git lists it, but its content is missing everywhere
        raise DataError(
            revision,
            f"{path} is not in DVC's cache here; download it if a remote has it (dvc fetch "
            f"--all-commits; for an experiment: dvc exp pull origin {revision}), or reproduce it ({again(revision)})",
        ) from None


def again(revision: str) -> str:
    """Return the commands that restore a revision's results in the working tree."""
    return f"dvc exp apply {revision} (or git checkout {revision} for a commit), then make repro"


def fetch_directory(root: Path, revision: str, path: Path, target: Path) -> None:
    """Copy a folder of a revision to `target`. Raise DataError if it did not exist or is not stored."""
    with files_of(root, revision) as files, publish_directory(target) as folder:
        names = files.find(path.as_posix()) if is_written(files, path) else []
        for name in names:
            source = Path(name.lstrip("/"))
            copy_file(files, revision, source, folder / source.relative_to(path))
        if not names:
            raise DataError(revision, f"has no {path}: its pipeline did not finish", f"{again(revision)}")


def git_state(root: Path, *, untracked: bool) -> tuple[str | None, bool]:
    """Return (commit, whether tracked or all files are as committed); (None, False) outside of git."""
    git = ("git", "-C", str(root))
    commit = ask(*git, "rev-parse", "HEAD", timeout=60)
    changes = ask(*git, "status", "--porcelain", f"--untracked-files={'normal' if untracked else 'no'}", timeout=60)
    return (None, False) if commit is None or changes is None else (commit, not changes)
