"""Sources: where the rows are, what identifies them, and their batches; nothing is read that DVC does not watch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune.artifacts import files_in, sha256_file, sha256_folder
from finetune.config_data import DataConfig, Source
from finetune.errors import DataError
from finetune.prepare.arrow_rows import arrow_batches
from finetune.prepare.batches import Batch
from finetune.prepare.containers import detect_container, disk_bytes, read_batches
from finetune.prepare.datasets_folder import is_dataset_folder

HUB_ROWS = 1_000  # read at once


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that can be read: what it is, and its batches, once."""

    where: str  # the path, or hub:org/name@revision
    sha256: str | None  # of the file or folder; a dataset of the Hub is told by its revision
    revision: str | None
    bytes: int  # on disk: what the last batch's `read_bytes` comes to
    batches: Iterator[Batch]


def open_source(data: DataConfig, source: Source, root: Path) -> Opened:
    """The source, opened; DataError where it is missing, outside the data folder, or nothing that can be read."""
    if source.hub is not None:
        return _open_hub(source, data.max_row_bytes)
    path = source_path(data, source, root)
    container = detect_container(path)
    try:
        digest = sha256_folder(path) if path.is_dir() else sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); see its rights and its disk") from None
    return Opened(
        where=str(path),
        sha256=digest,
        revision=None,
        bytes=disk_bytes(path, container, source.part),
        batches=read_batches(path, container, data.max_row_bytes, source.part),
    )


def source_path(data: DataConfig, source: Source, root: Path) -> Path:
    """The source's file or `datasets` folder; DataError where it is missing, neither, or outside the data folder."""
    assert source.path is not None, f"{source.name} is no file"
    folder = root / data.directory
    path = folder / source.path
    if not path.exists():
        raise DataError(f"{path}: no such file; data.sources names it as {source.name!r}")
    for inside in [path, *(path.rglob("*") if is_dataset_folder(path) else ())]:
        if not inside.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{inside}: lies outside {folder}, where DVC does not watch it; move it in")
        if inside != path and inside.is_symlink() and inside.is_dir():
            raise DataError(f"{inside}: is a link to a folder, whose files would not be hashed; put the folder here")
    if not path.is_file() and not is_dataset_folder(path):
        raise DataError(f"{path}: is no file; data.sources must name one file a source")
    if not (path.stat().st_size if path.is_file() else files_in(path)):
        raise DataError(f"{path}: is empty; put rows into it or take {source.name!r} out of data.sources")
    return path


def _open_hub(source: Source, max_row_bytes: int) -> Opened:
    where = f"hub:{source.hub}@{source.revision}"
    dataset = _load_hub(source, where)
    size = sum(Path(file["filename"]).stat().st_size for file in dataset.cache_files)
    batches = arrow_batches(_hub_batches(dataset, size), where, max_row_bytes)
    return Opened(where, sha256=None, revision=source.revision, bytes=size, batches=batches)


def _load_hub(source: Source, where: str) -> Any:
    """The dataset, from the Hub or from what was fetched before. It has files with rows alone, never a program."""
    import datasets  # takes seconds, which a source on disk need not wait for

    try:
        return datasets.load_dataset(source.hub, name=source.subset, split=source.part, revision=source.revision)
    except Exception as error:  # whatever network, Hub, files and dataset may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        part = f"part {source.part!r}" + (f" of subset {source.subset!r}" if source.subset else "")
        advice = "see its name, revision, subset and part, and the connection (a private one needs HF_TOKEN)"
        raise DataError(f"{where}: {part} can't be loaded ({reason}); {advice}") from None


def _hub_batches(dataset: Any, size: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    done = 0
    for table in dataset.with_format("arrow").iter(batch_size=HUB_ROWS):
        for batch in table.to_batches():
            done += batch.num_rows
            yield batch, size * done // len(dataset)
