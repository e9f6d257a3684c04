"""Containers of rows, read as a stream: JSON lines, JSON arrays, CSV, TSV, Parquet, Arrow and `datasets` folders.

Memory use does not depend on the size of the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.errors import DataError
from finetune.prepare.readers.arrow_rows import arrow_file, file_batches, parquet_file
from finetune.prepare.readers.batches import Batch
from finetune.prepare.readers.compression import COMPRESSIONS, Compression, read_errors_at
from finetune.prepare.readers.csv_tables import read_table
from finetune.prepare.readers.datasets_folder import is_dataset_folder, read_folder, shards
from finetune.prepare.readers.json_text import kind_of_json, read_array, read_lines

Kind = Literal["jsonl", "json_array", "csv", "tsv", "parquet", "arrow", "folder"]

KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json_array",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


@dataclass(frozen=True, slots=True)
class Container:
    """The type of a file, and its compression."""

    kind: Kind
    compression: Compression | None = None

    @property
    def by_line(self) -> bool:
        """Whether rows are identified by their lines; otherwise by their numbers."""
        return self.kind in ("jsonl", "csv", "tsv")


def detect_container(path: Path) -> Container:
    """Determine the type of a file by its name (for .json also by its beginning). Raise DataError if it is unknown."""
    if is_dataset_folder(path):
        return Container("folder")
    suffix = path.suffix.lower()
    compression = COMPRESSIONS.get(suffix)
    kind = KINDS.get(Path(path.stem).suffix.lower() if compression else suffix)
    if kind is None or path.is_dir():
        known = f"{', '.join(KINDS)} (each optionally followed by {' or '.join(COMPRESSIONS)})"
        remedy = f"supported: {known}, and folders written by datasets' save_to_disk"
        raise DataError(path, "has an unsupported format", remedy)
    return Container(kind_of_json(path, compression) if kind == "json_array" else kind, compression)


def disk_bytes(path: Path, container: Container, part: str | None = None) -> int:
    """Return the bytes on disk, which the last batch's `read_bytes` reaches apart from an end marker."""
    with read_errors_at(str(path)):
        files = shards(path, part) if container.kind == "folder" else [path]
        return sum(file.stat().st_size for file in files)


def read_batches(path: Path, container: Container, max_row_bytes: int, part: str | None = None) -> Iterator[Batch]:
    """Yield the batches of a file in order. Raise DataError if it cannot be read or is malformed from some point on.

    A single malformed row is not an error here: it is returned as a BadRow.
    """
    if part is not None and container.kind != "folder":
        raise DataError(path, f"is a single file, so it has no part {part!r}", "remove `part` from its source")
    compression = container.compression
    match container.kind:
        case "jsonl":
            return read_lines(path, compression, max_row_bytes)
        case "json_array":
            return read_array(path, compression, max_row_bytes)
        case "csv" | "tsv":
            return read_table(path, compression, "," if container.kind == "csv" else "\t", max_row_bytes)
        case "parquet":
            return file_batches(path, compression, parquet_file, max_row_bytes)
        case "arrow":
            return file_batches(path, compression, arrow_file, max_row_bytes)
        case "folder":
            return read_folder(path, part, max_row_bytes)
