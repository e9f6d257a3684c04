"""Sources: where the rows are, what identifies them, and their batches. Only data that DVC tracks is read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune.config.data import DataConfig, Source
from finetune.errors import DataError
from finetune.files.hashing import files_in, sha256_file, sha256_folder
from finetune.prepare.readers.arrow_rows import arrow_batches
from finetune.prepare.readers.batches import Batch
from finetune.prepare.readers.compression import COMPRESSIONS
from finetune.prepare.readers.datasets_folder import is_dataset_folder
from finetune.prepare.readers.detect import detect_container, disk_bytes, read_batches

HUB_ROWS = 1_000  # rows read at once
HUB_BYTES = 10**9  # assumed size of a Hub dataset, which is unknown before it is fetched
NEVER_WATCHED = (".git", ".hg", ".dvc")  # folders that DVC always ignores
USUAL_EXPANSION = 5  # of compressed text


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened source: its identity, and its batches, which can be read once."""

    where: str  # the path, or hub:org/name@revision
    sha256: str | None  # of the file or folder; a Hub dataset is identified by its revision
    revision: str | None
    bytes: int  # on disk: the final value of the batches' `read_bytes`
    by_line: bool  # whether rows are identified by their lines, not by their numbers
    batches: Iterator[Batch]

    def at(self, line: int) -> str:
        """Return the place of a row for messages: `path:LINE` if lines identify rows, else `path: row N`."""
        return f"{self.where}:{line}" if self.by_line else f"{self.where}: row {line}"


def open_source(data: DataConfig, source: Source, root: Path) -> Opened:
    """Open the source. Raise DataError if it is missing, outside the data folder, or of no known format."""
    if source.hub is not None:
        return _open_hub(source, data.max_row_bytes)
    path = source_path(data, source, root)
    container = detect_container(path)
    try:
        digest = sha256_folder(path) if path.is_dir() else sha256_file(path)
    except OSError as error:
        raise DataError(path, f"can't be read ({error.strerror})", "check its permissions and its disk") from None
    size = disk_bytes(path, container, source.part)
    batches = read_batches(path, container, data.max_row_bytes, source.part)
    return Opened(str(path), digest, revision=None, bytes=size, by_line=container.by_line, batches=batches)


def source_path(data: DataConfig, source: Source, root: Path) -> Path:
    """Return the source's file or `datasets` folder. Raise DataError if it is invalid or outside the data folder."""
    assert source.path is not None, f"{source.name} is not a file"
    folder = root / data.directory
    try:
        return _checked(folder / source.path, folder, source.name)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, NUL in it, no rights, a cycle of links
        reason = (isinstance(error, OSError) and error.strerror) or error
        what = f"{folder}: the path {source.path[:80]!r} in it can't be checked ({reason})"
        raise DataError("", what, f"data.sources names it as {source.name!r}") from None


def _checked(path: Path, folder: Path, name: str) -> Path:
    """Return the path. Raise DataError if it is not allowed, and the system's error if that cannot be determined."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(path, "no such file", f"data.sources names it as {name!r}") from None
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    if hidden := next((part for part in parts if part in NEVER_WATCHED), None):
        raise DataError(
            path, f"DVC does not track anything in a folder named {hidden}", "move it to another place in the folder"
        )
    ignoring = [place / ".dvcignore" for place in (folder, *path.parents) if place.is_relative_to(folder)]
    if present := [file for file in ignoring if file.is_file()]:
        raise DataError(
            present[0], "may hide changed rows from DVC", "remove it; use the .dvcignore in the top folder instead"
        )
    for inside in [path, *(path.rglob("*") if is_dataset_folder(path) else ())]:
        if not inside.resolve().is_relative_to(folder.resolve()):
            raise DataError(inside, f"is outside {folder}, where DVC does not track it", "move it in")
        if inside != path and inside.is_symlink() and inside.is_dir():
            raise DataError(inside, "is a link to a folder; DVC would not hash its files", "put the folder here")
    if not path.is_file() and not is_dataset_folder(path):
        raise DataError(path, "is not a file", "each entry of data.sources must name one file")
    if not (path.stat().st_size if path.is_file() else files_in(path)):
        raise DataError(path, "is empty", f"add rows to it or remove {name!r} from data.sources")
    return path


def work_bytes(data: DataConfig, root: Path) -> int:
    """Estimate the bytes of all sources; an unreadable one counts 0, and reading it reports the reason.

    Decides whether starting worker processes pays off, so that unknown sizes count as large.
    """
    return sum(HUB_BYTES if item.path is None else _work(root / data.directory / item.path) for item in data.sources)


def _work(path: Path) -> int:
    try:
        if is_dataset_folder(path):
            return sum(file.stat().st_size for file in files_in(path))
        expansion = USUAL_EXPANSION if path.suffix.lower() in COMPRESSIONS else 1
        return expansion * path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):
        return 0


def _open_hub(source: Source, max_row_bytes: int) -> Opened:
    where = f"hub:{source.hub}@{source.revision}"
    dataset = _load_hub(source, where)
    files = [Path(file["filename"]) for file in dataset.cache_files]
    # `datasets` keeps each revision in a folder of its name. Without the Hub it returns the last fetched one, and for a
    # name such as `json`, which is one of its readers, local files.
    if any(source.revision not in file.parts for file in files):
        raise DataError(
            where,
            "the loaded data is not from this revision",
            "check the connection to the Hub and the name (org/name)",
        )
    size = sum(file.stat().st_size for file in files)
    batches = arrow_batches(_hub_batches(dataset, size), where, max_row_bytes)
    return Opened(where, sha256=None, revision=source.revision, bytes=size, by_line=False, batches=batches)


def _load_hub(source: Source, where: str) -> Any:
    """Load the dataset from the Hub or from the cache. Only data files are accepted, never a program."""
    import datasets  # takes seconds, which a source on disk need not wait for

    assert source.hub is not None, f"{source.name} is a file"
    if os.path.lexists(source.hub):
        kind = "folder" if Path(source.hub).is_dir() else "file"
        what = f"{source.hub} is also a local {kind}, which would be read instead of the Hub"
        remedy = "move it into data.directory and use path, so that DVC tracks it, or move it away"
        raise DataError("hub", what, remedy)
    try:
        return datasets.load_dataset(source.hub, name=source.subset, split=source.part, revision=source.revision)
    except Exception as error:  # errors of network, Hub, files and dataset have no common class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        part = f"part {source.part!r}" + (f" of subset {source.subset!r}" if source.subset else "")
        advice = "check its name, revision, subset and part, and the connection (private datasets need HF_TOKEN)"
        raise DataError(where, f"{part} can't be loaded ({reason})", advice) from None


def _hub_batches(dataset: Any, size: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    done = 0
    for table in dataset.with_format("arrow").iter(batch_size=HUB_ROWS):
        for batch in table.to_batches():
            done += batch.num_rows
            yield batch, size * done // len(dataset)
