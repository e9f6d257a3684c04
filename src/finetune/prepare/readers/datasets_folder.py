"""Folders written by `save_to_disk` of `datasets`: one dataset or several splits, in shards of Arrow files."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from finetune.errors import DataError
from finetune.files.strict_json import parse_json
from finetune.prepare.readers.arrow_rows import arrow_batches, arrow_file
from finetune.prepare.readers.batches import Batch
from finetune.prepare.readers.compression import read_errors_at

DATASET, DATASETS = "state.json", "dataset_dict.json"  # the file that marks one dataset, or one with several splits


def is_dataset_folder(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of `datasets`."""
    return (path / DATASET).is_file() or (path / DATASETS).is_file()


def read_folder(path: Path, part: str | None, max_row_bytes: int) -> Iterator[Batch]:
    """Yield batches of all shards in order."""
    with read_errors_at(str(path)):
        yield from arrow_batches(_shard_batches(shards(path, part)), str(path), max_row_bytes)


def _shard_batches(files: list[Path]) -> Iterator[tuple[pa.RecordBatch, int]]:
    before = 0
    for shard in files:
        with read_errors_at(str(shard)):
            size = shard.stat().st_size
            for batch, share in arrow_file(shard, str(shard)):
                yield batch, before + int(size * share)
        before += size


def shards(path: Path, part: str | None) -> list[Path]:
    """Return the files of a `datasets` folder, or of one split in it. Raise DataError if there are none."""
    folder = path
    if (path / DATASETS).is_file():
        splits = _listed(path / DATASETS, "splits")
        if part not in splits:
            reason = "it names none" if part is None else f"it has no {part!r}"
            raise DataError(
                path, f"has the parts {', '.join(splits)}, and {reason}", "set `part` of its source to one of them"
            )
        folder = path / part
    elif part is not None:
        raise DataError(
            path, f"is a single dataset without parts, so it has no part {part!r}", "remove `part` from its source"
        )
    return [folder / name for name in _listed(folder / DATASET, "_data_files")]


def _listed(path: Path, key: str) -> list[str]:
    """Return the names listed in one of the folder's metadata files."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        names = [item if isinstance(item, str) else item["filename"] for item in content[key]]
        if content.get("_indices_data_files") or any(Path(name).name != name for name in names):
            raise ValueError("its rows are not stored in order in data files of the same folder")
    except FileNotFoundError:
        raise DataError(path, "is missing", "save the dataset again (save_to_disk)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(path, f"is broken ({error})", "save the dataset again (save_to_disk)") from None
    return names
