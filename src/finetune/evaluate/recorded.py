"""A side whose answers were recorded elsewhere: read once, and paired with the test set.

One row of the file; `prompt` may replace `id`, and `first_seconds`, `tokens` and `finished` are optional:

    {"id": "9f2c01…", "text": "ValueError", "seconds": 20.1, "first_seconds": 0.6, "tokens": 3, "finished": true}

`out/predictions.jsonl` of another run of this repository is accepted as well: its candidate is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.evaluate import RecordedSpec
from finetune.console import short
from finetune.errors import DataError
from finetune.evaluate.answers import Timed
from finetune.files.hashing import sha256_file
from finetune.records.examples import Answer, Example, text_key
from finetune.records.io import read_jsonl

LARGEST = 10**9  # seconds or tokens of one answer; a larger number is a mistake


@dataclass(frozen=True)
class RecordedSide:
    """Answers by example id, and their seconds if recorded."""

    described: dict[str, Any]
    answers: dict[str, Answer]
    timed: dict[str, Timed]

    def time(self, example: Example) -> Timed | None:
        """Return the recorded time of this answer, or None."""
        return self.timed.get(example.id)


def open_recorded(form: RecordedSpec, root: Path, examples: Sequence[Example]) -> RecordedSide:
    """Read the recorded answers to all test examples. Raise DataError if the file differs or lacks an answer."""
    path = check_recorded(form, root)
    rows = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        key, answer, timed = _read_row(f"{path}:{number}", row)
        if key in rows:
            raise DataError(f"{path}:{number}", f"a second answer to {key!r}", "keep one")
        rows[key] = (answer, timed)
    taken = {example.id: _find(rows, example, path) for example in examples}
    check_pairing(rows, examples, path)
    times = {name: timed for name, (_, timed) in taken.items() if timed is not None}
    if times and len(times) < len(taken):
        raise DataError(
            f"{path}",
            f"only {len(times)} of {len(taken)} test examples have seconds",
            "give them for all examples, or for none",
        )
    described = {"form": "recorded", "name": form.name, "recorded": True, "sha256": form.sha256}
    answers = {name: answer for name, (answer, _) in taken.items()}
    return RecordedSide(described, answers, times)


def check_pairing(rows: Mapping[str, Any], examples: Sequence[Example], path: Path) -> None:
    """Raise DataError if a row, identified by its prompt, would match several prompts that end in the same text."""
    claimed: dict[str, set[bytes]] = {}
    for example in examples:
        if example.id not in rows:
            claimed.setdefault(example.prompt[-1].text.strip(), set()).add(text_key(example.prompt))
    for prompt, keys in claimed.items():
        if len(keys) > 1:
            raise DataError(
                f"{path}", f"{len(keys)} test prompts end in {short(prompt)!r}", "identify these rows by id"
            )


def check_recorded(form: RecordedSpec, root: Path) -> Path:
    """Return the file. Raise DataError if it is missing, or does not match the hash in params.yaml."""
    path = root / form.path
    if not path.is_file():
        raise DataError(path, "no such file", "evaluate.baseline.path names it")
    found = sha256_file(path)
    if found != form.sha256:
        raise DataError(
            path,
            f"its sha256 is {found}, but evaluate.baseline.sha256 is {form.sha256}",
            "if you changed it on purpose, update the key",
        )
    return path


def _find(rows: dict[str, tuple[Answer, Timed | None]], example: Example, path: Path) -> tuple[Answer, Timed | None]:
    found = rows.get(example.id) or rows.get(example.prompt[-1].text.strip())
    if found is None:
        raise DataError(
            path,
            f"has no answer for the test example {example.id} ({example.source}:{example.line})",
            "it was recorded on a different test set, or its rows lack the id or the exact prompt",
        )
    return found


def _read_row(where: str, row: dict[str, Any]) -> tuple[str, Answer, Timed | None]:
    """Return the example's id or prompt, the answer, and its time if there is one."""
    if isinstance(row.get("candidate"), dict):
        row = {**row["candidate"], "id": row.get("id")}
    key, text, tokens, finished = (row.get(name) for name in ("id", "text", "tokens", "finished"))
    key = key if key is not None else row.get("prompt")
    if not isinstance(key, str) or not isinstance(text, str):
        raise DataError(where, "needs id (or prompt) and text, both strings")
    if not isinstance(tokens, int | None) or isinstance(tokens, bool) or not 0 <= (tokens or 0) < LARGEST:
        raise DataError(f"{where}", "tokens must be an integer from 0 to 1,000,000,000", "omit unknown values")
    if not isinstance(finished, bool | None):
        raise DataError(where, "finished must be true or false", "omit unknown values")
    if not isinstance(row.get("failed"), str | None):
        raise DataError(where, "failed must be a string with the reason", "omit it for rows with an answer")
    seconds, first = (row.get(name) for name in ("seconds", "first_seconds"))
    for name, value in (("seconds", seconds), ("first_seconds", first)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST
        if value is not None and not number:
            raise DataError(
                where,
                f"{name} must be a number of seconds from 0 to 1,000,000,000",
                f"found {short(repr(value))}",
            )
    timed = None if seconds is None else Timed(float(seconds), None if first is None else float(first), tokens, text)
    return key.strip(), Answer(text, tokens, finished, failed=row.get("failed")), timed
