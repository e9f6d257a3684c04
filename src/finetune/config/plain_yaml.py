"""A stranger's YAML, looked through before it is loaded: a few lines of it can stand for gigabytes or end the stack.

The parser's events come one by one from a flat loop, so nothing of the file is built, nested or repeated here.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent

from finetune.config.loading import read_yaml
from finetune.errors import DataError

MOST_BYTES = 512 << 10  # our dvc.lock has 30 kB
MOST_EVENTS = 25_000  # scalars, brackets and the like: about a second of parsing; our dvc.lock has 2600
MOST_DEPTH = 50


def read_plain(path: Path, name: str) -> Any:
    """The file's content, as `read_yaml` has it; DataError, which calls the file by `name`, where it is not plain."""
    if path.is_file():  # where it is not, read_yaml says so
        require_plain(path, name)
    return read_yaml(path)


def require_plain(path: Path, name: str) -> None:
    """DataError unless loading and comparing a YAML file takes about as long as reading it.

    Of broken YAML what comes before the fault is looked at, which is as far as loading gets.
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
        return  # read_yaml says where it is broken
    except (ValueError, ArithmeticError, LookupError) as error:  # the parser lets these out, of escapes and the like
        raise DataError(name, f"is not readable YAML ({type(error).__name__})") from None


def require_literal(event: Any, name: str) -> None:
    """DataError for what makes a short text a large value: aliases, and the base-60 numbers of YAML 1.1."""
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
    """The line that an event begins in, for a person."""
    return int(event.start_mark.line) + 1
