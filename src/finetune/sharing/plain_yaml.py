"""A stranger's YAML, looked through before it is loaded: a few lines of it can stand for gigabytes or end the stack.

The parser's events come one by one from a flat loop, so nothing of the file is built, nested or repeated here.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent

from finetune.errors import DataError

MOST_BYTES = 512 << 10  # our dvc.lock has 30 kB
MOST_EVENTS = 25_000  # scalars, brackets and the like: about a second of parsing; our dvc.lock has 2600
MOST_DEPTH = 50


def require_plain(path: Path, name: str) -> None:
    """DataError, which calls the file by `name`, unless loading and comparing it takes about as long as reading it.

    Broken YAML passes, as does a file that is absent: whoever loads it says where it is broken.
    """
    if not path.is_file():
        return
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{name}: is larger than {MOST_BYTES} bytes, which no params and no lock are")
    depth = 0
    try:
        events = YAML(typ="safe", pure=True).parse(path.read_text(encoding="utf-8"))
        for number, event in enumerate(events):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MOST_DEPTH or number > MOST_EVENTS:
                what = "is nested too deeply" if depth > MOST_DEPTH else f"has more than {MOST_EVENTS} parts"
                raise DataError(f"{name}: line {line_of(event)}: {what}")
            require_literal(event, name)
    except (YAMLError, ValueError):  # ValueError: no UTF-8, or an escape of no character
        return


def require_literal(event: Any, name: str) -> None:
    """DataError for what makes a short text a large value: aliases, and the base-60 numbers of YAML 1.1."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
        raise DataError(
            f"{name}: line {line_of(event)}: has an anchor or an alias, which no bundle may have; "
            "write the value out in params.yaml, then dvc commit -f"
        )
    if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
        raise DataError(f"{name}: line {line_of(event)}: asks for another YAML than 1.2, which no bundle may")


def line_of(event: Any) -> int:
    """The line that an event begins in, for a person."""
    return int(event.start_mark.line) + 1
