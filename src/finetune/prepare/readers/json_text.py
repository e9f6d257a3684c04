"""JSON: one object per line, or an array of objects that is read as a stream, element by element."""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from finetune.errors import DataError
from finetune.files.strict_json import parse_json
from finetune.prepare.readers.batches import BadRow, Batch, Row, grouped, too_large
from finetune.prepare.readers.compression import Compression, OpenText, open_text

PIECE = 1 << 18  # bytes read from a file at once
MOST_READ = 1 << 24  # at once, however large a row may be

# Finds only the end of an element; duplicate keys, NaN and numbers are checked by parse_json.
ENDS = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
SPACE = re.compile(r"[ \t\n\r]*")
# Characters. An error this close to the end of the buffer may be a token cut in two; only strings can be longer than
# the longest other token, an escaped pair such as `\ud83d\ude00`.
LONGEST_TOKEN = 16
ADVICE = "the rest of the file can't be read: fix it, or write the file as JSON lines"


def _parse_object(line: int, text: bytes | str) -> Row | BadRow:
    """Parse the row in a line or an element; `line` is the number that identifies it."""
    try:
        fields = parse_json(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        return BadRow(line, f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadRow(line, f"broken JSON: {error.msg.removesuffix(' at')} at character {error.pos}")
    except ValueError as error:
        return BadRow(line, f"broken JSON: {error}")
    if not isinstance(fields, dict):
        return BadRow(line, f"expected a JSON object, found {type(fields).__name__}")
    return Row(line, fields)


@dataclass(frozen=True, slots=True)
class LinesBatch:
    """Some lines of a file as bytes; a line that is too large is replaced by an empty one."""

    read_bytes: int
    first: int
    lines: bytes
    bad: tuple[BadRow, ...]

    def rows(self) -> list[Row | BadRow]:
        """Parse one object per line; empty lines are skipped."""
        bad = {row.line: row for row in self.bad}
        result: list[Row | BadRow] = []
        for line, text in enumerate(self.lines.split(b"\n"), self.first):
            if line in bad:
                result.append(bad[line])
            elif text.strip():
                result.append(_parse_object(line, text.removesuffix(b"\r")))
        return result


def read_lines(path: Path, compression: Compression | None, max_row_bytes: int) -> Iterator[Batch]:
    """Yield batches of a file with one object per line."""
    with open_text(path, compression) as source:
        first = 1
        for lines in grouped(_lines(source.stream, max_row_bytes), lambda line: len(line or b"")):
            why = f"is {too_large(max_row_bytes)}"
            bad = tuple(BadRow(number, why) for number, line in enumerate(lines, first) if line is None)
            yield LinesBatch(source.read_bytes, first, b"".join(line or b"\n" for line in lines), bad)
            first += len(lines)


def _lines(stream: BinaryIO, max_row_bytes: int) -> Iterator[bytes | None]:
    """Yield each line with its end, or None for one that is too large, which is never held completely."""
    while line := stream.readline(max_row_bytes + 2):
        if len(line) <= max_row_bytes or len(line.rstrip(b"\r\n")) <= max_row_bytes:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(PIECE)
        yield None


@dataclass(frozen=True, slots=True)
class ElementsBatch:
    """Some elements of a JSON array, each with the line where it starts."""

    read_bytes: int
    first: int  # number of the first element
    elements: tuple[tuple[int, str], ...]

    def rows(self) -> list[Row | BadRow]:
        """Parse one object per element, identified by its number; its line is kept for messages."""
        result: list[Row | BadRow] = []
        for number, (line, text) in enumerate(self.elements, self.first):
            row = _parse_object(number, text)
            if isinstance(row, Row):
                result.append(Row(number, row.fields, starts_at=line))
            else:
                result.append(BadRow(number, f"{row.why} (line {line})"))
        return result


class _Window:
    """The part of a text that is currently in memory."""

    def __init__(self, source: OpenText) -> None:
        self.where, self._stream = source.where, source.stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read = source.start
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def fill(self, size: int) -> None:
        """Read until at least `size` characters from `at` on, or all that are left, are in memory."""
        while len(self.text) - self.at < size and not self.ended:
            start = self._read - len(self._decoder.getstate()[0])
            read = self._stream.read(max(PIECE, min(size, MOST_READ)))
            self._read += len(read)
            try:
                more = self._decoder.decode(read, final=not read)
            except UnicodeDecodeError as error:
                raise DataError(self.where, f"not UTF-8 at byte {start + error.start}", "save it as UTF-8") from None
            self.text, self.at, self.ended = self.text[self.at :] + more, 0, not read

    def move(self, to: int) -> None:
        """Skip the text up to `to`."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def place(self, at: int | None = None) -> str:
        """Return file and line of the current position, or of another one in memory."""
        return f"{self.where}:{self.line + (0 if at is None else self.text.count(chr(10), self.at, at))}"

    def next_letter(self) -> str:
        """Return the next character that is not white space, or an empty string at the end."""
        while True:
            self.move(SPACE.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.fill(1)


def read_array(path: Path, compression: Compression | None, max_row_bytes: int) -> Iterator[Batch]:
    """Yield batches of a file that contains one array."""
    with open_text(path, compression) as source:
        first = 1
        for elements in grouped(_elements(_Window(source), max_row_bytes), lambda element: len(element[1])):
            yield ElementsBatch(source.read_bytes, first, tuple(elements))
            first += len(elements)


def _elements(window: _Window, max_row_bytes: int) -> Iterator[tuple[int, str]]:
    """Yield line and text of each element. Raise DataError if the array is malformed."""
    if window.next_letter() != "[":
        raise DataError(window.place(), "no JSON array starts here", ADVICE)
    window.move(window.at + 1)
    number, letter = 0, window.next_letter()
    while letter != "]":
        number += 1
        end = _element_end(window, number, max_row_bytes)
        yield window.line, window.text[window.at : end]
        window.move(end)
        letter = window.next_letter()
        if letter == "":
            raise _cut_off(window, number)
        if letter not in ",]":
            raise DataError(window.place(), f"no comma after element {number}", ADVICE)
        if letter == ",":
            window.move(window.at + 1)
            window.next_letter()
    window.move(window.at + 1)
    if window.next_letter():
        raise DataError(window.place(), "there is data after the end of the array", ADVICE)


def _element_end(window: _Window, number: int, max_row_bytes: int) -> int:
    """Return the end of the element at `window.at`; more than its limit is held, so it ends there or is too large."""
    window.fill(max_row_bytes + LONGEST_TOKEN + 1)
    element = f"element {number} of the array"
    try:
        _, end = ENDS.raw_decode(window.text, window.at)
    except RecursionError:
        raise DataError(window.place(), f"{element} is nested too deeply", ADVICE) from None
    except json.JSONDecodeError as error:
        end = len(window.text)
        if error.pos < end - LONGEST_TOKEN and not error.msg.startswith("Unterminated string"):
            what = f"{element} is broken JSON ({error.msg})"
            raise DataError(window.place(error.pos), what, ADVICE) from None
        if window.ended:
            raise _cut_off(window, number) from None
    size = end - window.at
    if 4 * size > max_row_bytes:  # a character takes up to four bytes
        size = len(window.text[window.at : end].encode("utf-8"))
    if size > max_row_bytes:
        raise DataError(window.place(), f"{element} is {too_large(max_row_bytes)}, or is not closed", ADVICE)
    return end


def _cut_off(window: _Window, number: int) -> DataError:
    what = f"the file ends in or after element {number}, before `]`"
    return DataError(window.place(len(window.text)), what, ADVICE)


def kind_of_json(path: Path, compression: Compression | None) -> Literal["jsonl", "json_array"]:
    """Return whether a .json file is an array or lines of objects. Raise DataError if it is neither."""
    with open_text(path, compression) as source:
        while not (line := source.stream.readline(PIECE)).strip():
            if not line:
                raise DataError(path, "contains only whitespace", "add rows to it or remove it from data.sources")
        text = line.strip().decode("utf-8", "replace")
        if text.startswith("["):
            return "json_array"
        if not text.startswith("{"):
            raise DataError(path, "is neither a JSON array of objects nor JSON lines in UTF-8")
        try:
            ENDS.decode(text)
        except json.JSONDecodeError as error:
            # An object that is still open at the end of the line: the file is pretty-printed.
            if error.pos >= len(text) and line.endswith(b"\n") and source.stream.read(PIECE).strip():
                remedy = "write an array of objects or one object per line"
                raise DataError(path, "is a single JSON object over several lines", remedy) from None
        except RecursionError:
            pass  # an error in this line, which affects only this line
    return "jsonl"
