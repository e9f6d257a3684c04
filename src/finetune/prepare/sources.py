"""Source files, read row by row; a row that is no JSON object comes out as a BadRow with its line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import DataConfig, Source
from finetune.errors import DataError
from finetune.records import parse_json


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a source file."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that holds no row, and why."""

    line: int
    why: str


def source_path(data: DataConfig, source: Source, root: Path) -> Path:
    """The source's file; DataError where it is missing, no file, or outside the data folder."""
    folder = root / data.directory
    path = folder / source.path
    if not path.exists():
        raise DataError(f"{path}: no such file; data.sources names it as {source.name!r}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path}: lies outside {folder}, where DVC does not watch it; move it in")
    if not path.is_file():
        raise DataError(f"{path}: is no file; data.sources must name one file a source")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; put rows into it or take {source.name!r} out of data.sources")
    return path


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a JSONL file in order; empty lines are passed over, as are a byte order mark and CR before LF."""
    try:
        lines = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    with lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _parse_line(number, raw)


def _parse_line(number: int, raw: bytes) -> Row | BadRow:
    try:
        fields = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(number, f"not UTF-8 at byte {error.start}")
    except ValueError as error:
        return BadRow(number, f"broken JSON: {error}")
    if not isinstance(fields, dict):
        return BadRow(number, f"a JSON object is expected, not {type(fields).__name__}")
    return Row(number, fields)
