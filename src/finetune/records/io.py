"""Write and read examples, predictions and timings as JSON lines."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from finetune.errors import DataError
from finetune.files.strict_json import parse_json
from finetune.records.examples import Answer, Example, Prediction, Timing, to_message

Item = TypeVar("Item")
AGAIN = "run the stage that writes it again"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of an earlier stage's file, one per line. Raise DataError with file and line."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}", f"broken JSON ({error})", AGAIN) from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}", "not a JSON object", AGAIN)
                yield row
    except FileNotFoundError:
        raise DataError(path, "no such file", "run the stage that writes it (dvc repro)") from None
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not UTF-8 ({error.reason})", AGAIN) from None


def to_json_lines(rows: Iterable[Any]) -> Iterator[str]:
    """Format dataclass instances as JSON lines. Raise ValueError for NaN or infinity."""
    for row in rows:
        content = row.to_json() if isinstance(row, Example) else asdict(row)
        yield json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def read_examples(path: Path) -> list[Example]:
    """Read the examples of one split. Raise DataError for an invalid line."""
    return list(_parse(path, _example))


def read_predictions(path: Path) -> list[Prediction]:
    """Read evaluate's predictions. Raise DataError for an invalid line."""
    sides = ("baseline", "candidate")
    return list(_parse(path, lambda row: Prediction(**(row | {side: Answer(**row[side]) for side in sides}))))


def read_timings(path: Path) -> list[Timing]:
    """Read evaluate's raw latencies. Raise DataError for an invalid line."""
    return list(_parse(path, lambda row: Timing(**row)))


def _example(row: dict[str, Any]) -> Example:
    messages = tuple(to_message(message) for message in row["messages"])
    return Example(**{**row, "messages": messages, "tools": tuple(row.get("tools", ()))})


def _parse(path: Path, build: Callable[[dict[str, Any]], Item]) -> Iterator[Item]:
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            yield build(row)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path}:{number}", f"not in the format of this version ({error})", AGAIN) from None
