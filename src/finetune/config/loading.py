"""Read YAML 1.2 strictly and build sections from it, with every mistake as a ConfigError."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune.config.errors import Tagged, describe_errors
from finetune.config.types import Section
from finetune.errors import ConfigError

S = TypeVar("S", bound=Section)

MOST_VALUES = 100_000  # in one file: a dozen lines of aliases can expand to billions


def read_yaml(path: Path) -> Any:
    """Read a file as plain Python objects by the rules of YAML 1.2. Raise ConfigError if it cannot be read."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        if _size(content, {}) > MOST_VALUES:
            raise ConfigError(
                f"{path}", f"its aliases expand to more than {MOST_VALUES} values", "write the values out"
            )
        return content
    except FileNotFoundError:
        raise ConfigError(path, "no such file", "run from the root of the repository") from None
    except OSError as error:
        raise ConfigError(path, f"can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, f"is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(path, f"{where}not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # ruamel raises these for invalid escapes, numbers, dates and tags
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ConfigError(path, f"not valid YAML: {why}") from None


def _size(value: Any, known: dict[int, int]) -> int:
    """Count values, with aliases expanded. Raise RecursionError if a value contains itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum([_size(item, known) for item in inside])
    return known[id(value)]


def _lists_to_tuples(value: Any) -> Any:
    """Convert lists to tuples: strict pydantic accepts no list for a tuple, and only tuples are immutable."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_lists_to_tuples(item) for item in value)
    return value


def parse_section(content: Any, kind: type[S], where: str, tagged: Sequence[Tagged] = ()) -> S:
    """Build a section from plain objects of the file `where`. Raise one ConfigError that lists every mistake."""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}", "is empty or not a mapping", f"it must have the sections {', '.join(kind.model_fields)}"
        )
    try:
        return kind.model_validate(_lists_to_tuples(content))
    except ValidationError as error:
        raise ConfigError.of(describe_errors(error, kind, where, tagged)) from None


def load_params(path: Path, kind: type[S]) -> S:
    """Load a stage's part of params.yaml, of which the parent command has checked the complete content."""
    content = read_yaml(path)
    return parse_section({name: content[name] for name in kind.model_fields if name in content}, kind, str(path))
