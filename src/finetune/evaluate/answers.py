"""All answers of one side, stored batch by batch, so that an interruption loses at most one batch.

The spool in `work/evaluate` is named by everything that determines the answers; each line is one batch with its hash.
Incomplete or damaged batches are generated again, and so are batches with a failed answer, because the next run may
have more memory.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.console import progress
from finetune.files.hashing import sha256_json
from finetune.files.strict_json import parse_json
from finetune.records.examples import Answer, Example


class Answering(Protocol):
    """A side that generates answers: a model in this process, or a server."""

    @property
    def described(self) -> dict[str, Any]:
        """The side's entry in the report."""

    @property
    def origin(self) -> dict[str, Any]:
        """What its answers depend on in addition."""

    @property
    def settings(self) -> dict[str, Any]:
        """The generation settings."""

    def length(self, example: Example) -> int:
        """Return the length of the prompt, for batches of similar length."""

    def answer(self, examples: Sequence[Example], seed: int) -> list[Answer]:
        """Return the answers to one batch."""


def answer_all(
    side: Answering, examples: Sequence[Example], batch_size: int, seed: int, folder: Path, determines: dict[str, Any]
) -> list[Answer]:
    """Return one side's answers in the order of the examples; the longest batches run first, to fail early.

    `determines` is what the answers depend on besides the side itself: test set, versions and arithmetic.
    """
    key = {
        **determines,
        "side": side.described,
        "origin": side.origin,
        "settings": side.settings,
        "batch_size": batch_size,
        "seed": seed,
    }
    spool = folder / f"{sha256_json(key)[:32]}.jsonl"
    done = read_spool(spool)
    batches = list(batches_by_length([side.length(example) for example in examples], batch_size))
    spool.parent.mkdir(parents=True, exist_ok=True)
    with spool.open("ab") as file:
        for number, batch in enumerate(progress(batches, f"answers of {side.described['name']}")):
            if all(examples[at].id in done and done[examples[at].id].failed is None for at in batch):
                continue
            answered = side.answer([examples[at] for at in batch], seed + number)
            answers = {examples[at].id: answer for at, answer in zip(batch, answered, strict=True)}
            kept = {name: asdict(answer) for name, answer in answers.items()}
            line = json.dumps({"sha256": sha256_answers(kept), "answers": kept})
            file.write(f"\n{line}\n".encode())  # an incomplete line before it stays a separate line
            file.flush()
            done |= answers
    return [done[example.id] for example in examples]


def read_spool(path: Path) -> dict[str, Answer]:
    """Return the answers of an earlier run by example id, ignoring damaged lines."""
    answered: dict[str, Answer] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                kept = parse_json(line)
                if kept["sha256"] == sha256_answers(kept["answers"]):
                    answered |= {name: Answer(**answer) for name, answer in kept["answers"].items()}
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # empty, incomplete after a kill, or damaged
    return answered


def sha256_answers(kept: dict[str, Any]) -> str:
    """Return the hash of answers as JSON, which may contain lone surrogates."""
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class UnansweredError(Exception):
    """A side did not answer a prompt of the latency pass; the text gives the reason."""


@dataclass(frozen=True)
class Timed:
    """Total seconds, seconds to the first token, new tokens with the end token, and the text; None means unknown."""

    seconds: float
    first: float | None
    tokens: int | None
    text: str


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield positions in batches of similar length, longest first, with ties in their original order."""
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
