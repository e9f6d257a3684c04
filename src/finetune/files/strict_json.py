"""Strict JSON as in RFC 8259: no NaN, no infinity, no duplicate keys."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from finetune.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """Read a report of an earlier stage. Raise DataError if it is missing or malformed."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(path, "no such file", "run the stage that writes it (dvc repro)") from None
    except ValueError as error:
        raise DataError(path, f"broken JSON ({error})", "run the stage that writes it again") from None
    if not isinstance(content, dict):
        raise DataError(path, "not a JSON object", "run the stage that writes it again")
    return content


def parse_json(text: str) -> Any:
    """Parse one JSON value strictly by RFC 8259. Raise ValueError for NaN, infinity or duplicate keys."""
    try:
        return _JSON.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return fields


# Created once: json.loads would build such a decoder for every line.
_JSON = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_each_key_once)
