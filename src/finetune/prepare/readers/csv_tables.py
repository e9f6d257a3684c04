"""CSV and TSV: a header, then records as in RFC 4180, in which quoted text may span several lines."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import DataError
from finetune.prepare.readers.batches import BadRow, Batch, Row, grouped, too_large
from finetune.prepare.readers.compression import Compression, OpenText, open_text


@dataclass(frozen=True, slots=True)
class RecordsBatch:
    """Some records of a CSV file, each with the line where it starts."""

    read_bytes: int
    header: tuple[str, ...]
    records: tuple[tuple[int, list[str]], ...]

    def rows(self) -> list[Row | BadRow]:
        """Return the rows; every value is text."""
        return [self._row(line, values) for line, values in self.records]

    def _row(self, line: int, values: list[str]) -> Row | BadRow:
        if len(values) != len(self.header):
            fields = "1 field" if len(values) == 1 else f"{len(values)} fields"
            return BadRow(line, f"has {fields}, the header has {len(self.header)}")
        if wrong := _not_utf8(self.header, values):
            return BadRow(line, f"not UTF-8 in {wrong!r}")
        return Row(line, dict(zip(self.header, values, strict=True)))


def _not_utf8(header: Iterable[str], values: list[str]) -> str | None:
    """Return the first field with a byte that is not UTF-8; such bytes were kept as lone surrogates."""
    if "".join(values).isascii():
        return None
    for name, value in zip(header, values, strict=True):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return name
    return None


class _RecordLines:
    """The lines of a CSV file for its parser; raises DataError once a record is too large."""

    def __init__(self, source: OpenText, max_row_bytes: int) -> None:
        self._source, self._max = source, max_row_bytes
        self.line = self.size = 0
        self.start = 1

    def start_record(self) -> None:
        """Start a new record."""
        self.size, self.start = 0, self.line + 1

    def __iter__(self) -> Iterator[str]:
        while read := self._source.stream.readline(self._max + 2):
            self.line += 1
            self.size += len(read)
            if self.size > self._max and self.size - len(read) + len(read.rstrip(b"\r\n")) > self._max:
                place = f"{self._source.where}:{self.start}"
                what = f"the record starting here is {too_large(self._max)}, or has an unclosed quote"
                raise DataError(place, what, "fix it, or write the file as JSON lines")
            yield read.decode("utf-8", "surrogateescape")


def read_table(path: Path, compression: Compression | None, delimiter: str, max_row_bytes: int) -> Iterator[Batch]:
    """Yield batches of a file with a header."""
    with open_text(path, compression) as source:
        lines = _RecordLines(source, max_row_bytes)
        records = _records(source.where, lines, delimiter, max_row_bytes)
        header = _header(source.where, next(records, None))
        for group in grouped(records, lambda record: len(record[1]) + sum(map(len, record[1]))):
            yield RecordsBatch(source.read_bytes, header, tuple(group))


def _records(where: str, lines: _RecordLines, delimiter: str, max_row_bytes: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line where it starts; empty lines are skipped."""
    csv.field_size_limit(max_row_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_record()
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                what = "a quote opened in this record is never closed; close it"
            else:
                reason = str(error).partition(" - ")[0]
                what = f"is broken, at line {lines.line} ({reason}); quote its fields and double the quotes inside them"
            raise DataError(f"{where}:{lines.start}", what) from None
        if values is None:
            return
        if values:
            yield lines.start, values


def _header(where: str, record: tuple[int, list[str]] | None) -> tuple[str, ...]:
    if record is None:
        raise DataError(where, "has no header", "the first line must name the columns")
    line, names = record
    place = f"{where}:{line}"
    if "" in names:
        raise DataError(place, f"column {names.index('') + 1} has no name", "the first line must name all columns")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(place, f"two columns have the name {twice!r}", "give each column a unique name")
    if _not_utf8(names, names) is not None:
        raise DataError(place, "the header is not UTF-8", "save the file as UTF-8")
    return tuple(names)
