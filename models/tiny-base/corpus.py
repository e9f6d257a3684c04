"""The corpus: the standard library's modules without the content of the data set, or text that would reveal it.

Reads CPython's own source with the data set's script, `data/raw/cpython/extract.py`, and removes every row of that data
set from it.
"""

import importlib.util
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "data" / "raw" / "cpython"
LEFT_OUT = ("encodings/",)  # 1.4 MB of character tables: 13% of the bytes, but not code
MIN_TELLING_CHARACTERS = 30  # a shorter text counts as leaked only as a complete quoted string


@dataclass
class Page:
    """The remaining part of one module: its lines by line number."""

    path: str
    lines: dict[int, str]

    @property
    def text(self) -> str:
        """The remaining lines as one text."""
        return "\n".join(self.lines.values()) + "\n"


def load_extract() -> ModuleType:
    """Import the data set's script, which is not in a package."""
    spec = importlib.util.spec_from_file_location("extract", DATA / "extract.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{DATA / 'extract.py'}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_row_texts(extract: ModuleType, sources: list[Any]) -> set[str]:
    """Return every message and docstring of the data set: the last line of each task.

    Raises an error unless the committed rows match the running Python: only then is all leaked text removed.
    """
    with (DATA / "interactions.jsonl").open(encoding="utf-8") as file:
        committed = [json.loads(line) for line in file]
    if committed != [asdict(row) for row in extract.collect_rows(sources)]:
        raise SystemExit("interactions.jsonl: made with a different version of Python; use the one in its README")
    return {row["task"].rsplit("\n", 1)[1].removeprefix("message: ") for row in committed}


def cut_pages(extract: ModuleType, sources: list[Any], texts: set[str]) -> dict[str, Page]:
    """Return the corpus: every module without the content of the data set, or text that would reveal it."""
    pages = [cut_page(extract, source, texts) for source in sources if not source.path.startswith(LEFT_OUT)]
    for page, line in find_leaks(pages, texts):
        page.lines.pop(line, None)
    leaks = find_leaks(pages, texts)
    if leaks:
        raise AssertionError(f"still in the corpus: {[(page.path, line) for page, line in leaks]}")
    return {page.path: page for page in pages}


def cut_page(extract: ModuleType, source: Any, texts: set[str]) -> Page:
    """Remove every raised call, leaving `...`, and every function with a docstring of the data set."""
    lines = dict(enumerate(source.text.split("\n"), start=1))
    for call in extract.find_raised_calls(source):
        statement = lines[call.line]
        drop_lines(lines, call.line, call.last_line)
        if statement.lstrip().startswith("raise"):
            lines[call.line] = statement[: statement.index("raise")] + "..."
    for function in extract.find_documented_functions(source):
        if function.docstring in texts:
            drop_lines(lines, function.line, function.last_line)
    return Page(source.path, dict(sorted(lines.items())))


def drop_lines(lines: dict[int, str], first: int, last: int) -> None:
    """Remove the lines from `first` to `last`, both included."""
    for number in range(first, last + 1):
        lines.pop(number, None)


def find_leaks(pages: list[Page], texts: set[str]) -> list[tuple[Page, int]]:
    """Find the lines that still contain a text of the data set: a long one anywhere, a short one in quotes.

    White space is normalized first, so that texts across line ends are found too.
    """
    places, starts, parts, length = [], [], [], 0
    for page in pages:
        for number, line in page.lines.items():
            squeezed = " ".join(line.split()) + " "
            places.append((page, number))
            starts.append(length)
            parts.append(squeezed)
            length += len(squeezed)
    corpus = "".join(parts)
    leaks = []
    for text in sorted(texts):
        telling = len(text) >= MIN_TELLING_CHARACTERS
        for needle in [text] if telling else [f'"{text}"', f"'{text}'"]:
            at = corpus.find(needle)
            while at != -1:
                last = at + len(needle) - 1
                leaks += places[bisect_right(starts, at) - 1 : bisect_right(starts, last)]
                at = corpus.find(needle, last)
    return leaks
