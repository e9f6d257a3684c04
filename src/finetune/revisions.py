"""What an earlier run left: files of a git revision or of one of DVC's experiments, out of DVC's cache."""

from pathlib import Path

from finetune.artifacts import publish_directory
from finetune.errors import DataError


def fetch_directory(root: Path, revision: str, path: Path, target: Path) -> None:
    """Copy a folder as it was at a revision (a commit, a tag, an experiment's name) to `target`.

    DataError where there is no such revision, it had no such folder, or DVC's cache has not kept it.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        files = DVCFileSystem(str(root), rev=revision)
        with publish_directory(target) as folder:
            for source in files.find(path.as_posix()):
                place = folder / Path(source).relative_to(path if not source.startswith("/") else f"/{path}")
                place.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(source, str(place))
            if not any(folder.iterdir()):
                raise FileNotFoundError(path)
    except (DvcException, SCMError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} of {revision}: {first}; dvc exp show names the experiments, dvc pull gets what the cache lacks"
        ) from None
