"""Terminal output: lines, tables, progress; and suppression of irrelevant messages of third-party libraries."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Item = TypeVar("Item")
STYLES = {"deploy": "bold green", "iterate": "bold yellow", "abort": "bold red", "pass": "green", "fail": "red"}
STYLES |= {"ok": "green", "missing": "red", "held": "green", "failed": "bold red"}
STYLES |= {"inconclusive": "yellow", "unmeasured": "magenta", "error": "red", "warning": "yellow", "note": "dim"}


def console() -> Console:
    """Return the terminal, or a pipe, on which lines are not folded at 80 columns."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=140)


def printable(text: str) -> str:
    """Make text safe to print: no cursor movement, valid UTF-8; line ends are kept."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def short(name: str, limit: int = 80) -> str:
    """Format a name from a file for one line of text: printable and not too long."""
    plain = printable(name).replace("\n", "\ufffd")
    return plain if len(plain) <= limit else f"{plain[:limit]}…"


def harmless(text: str) -> str:
    """Return text without markup or cursor movement."""
    return escape(printable(text))


def gigabytes(size: float) -> str:
    """Format bytes for readers."""
    return f"{size / 1e9:.2f} GB" if size < 10e9 else f"{size / 1e9:.1f} GB"


def say(text: str) -> None:
    """Print one line for the user."""
    console().print(harmless(text), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; words that name a status are coloured."""
    drawn = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(f"[{STYLES[cell]}]{cell}[/]" if cell in STYLES else harmless(cell) for cell in row))
    console().print()
    console().print(drawn)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; cell text is escaped."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in cells)]


def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Return the same items, with a progress bar on standard error if that is a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, leave=False, mininterval=0.5, disable=None)  # type: ignore[no-any-return]


@contextmanager
def byte_progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar of `total` bytes on standard error, if that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False, mininterval=0.5, disable=None) as bar:
        yield lambda done: (bar.update(done - bar.n), None)[1]


def quiet_libraries() -> None:
    """Suppress progress bars and warnings of libraries that do not concern this run, except with `--debug`.

    Must run before transformers, datasets or bitsandbytes are imported: they read the environment at import.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch").setLevel(logging.ERROR)
