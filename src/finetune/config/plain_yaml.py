"""Check untrusted YAML before it is loaded: a few lines can expand to gigabytes or exhaust the stack.

The parser's events are read one by one in a flat loop, so nothing of the file is built, nested or repeated here.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent

from finetune.config.loading import read_yaml
from finetune.errors import DataError

MOST_BYTES = 512 << 10  # our dvc.lock has 30 kB
MOST_EVENTS = 25_000  # scalars, brackets and so on: about a second of parsing; our dvc.lock has 2600
MOST_DEPTH = 50


def read_plain(path: Path, name: str) -> Any:
    """Read a file like `read_yaml`. Raise DataError, naming the file as `name`, if it is not plain."""
    if path.is_file():  # if it does not exist, read_yaml reports it
        require_plain(path, name)
    return read_yaml(path)


def require_plain(path: Path, name: str) -> None:
    """Raise DataError unless loading and comparing a YAML file takes about as long as reading it.

    Malformed YAML is checked up to the error, which is as far as loading gets.
    """
    if path.stat().st_size > MOST_BYTES:
        raise DataError(name, f"is larger than {MOST_BYTES} bytes, the limit for params and lock files")
    depth = 0
    try:
        for number, event in enumerate(YAML(typ="safe", pure=True).parse(path.read_text(encoding="utf-8"))):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise DataError(name, f"line {line_of(event)}: is nested too deeply")
            if number > MOST_EVENTS:
                raise DataError(name, f"line {line_of(event)}: has more than {MOST_EVENTS} parts")
            require_literal(event, name)
    except (YAMLError, UnicodeDecodeError):
        return  # read_yaml reports the error
    except (ValueError, ArithmeticError, LookupError) as error:  # raised by the parser for invalid escapes and the like
        raise DataError(name, f"is not readable YAML ({type(error).__name__})") from None


def require_literal(event: Any, name: str) -> None:
    """Raise DataError for short text with a large value: aliases, and the base-60 numbers of YAML 1.1."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
        raise DataError(
            name,
            f"line {line_of(event)}: has an anchor or an alias, which is not allowed in a bundle",
            "on the machine that has the run, write the value out in params.yaml, then run dvc commit -f",
        )
    if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
        raise DataError(
            name, f"line {line_of(event)}: requires a YAML version other than 1.2, which is not allowed in a bundle"
        )


def line_of(event: Any) -> int:
    """Return the line where an event begins, counted from 1."""
    return int(event.start_mark.line) + 1
