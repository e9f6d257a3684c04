"""Access values in nested mappings by a sequence of keys, and as dotted keys."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def dig(content: Any, place: Sequence[str]) -> Any:
    """Return the value under these nested keys, or None."""
    for key in place:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
