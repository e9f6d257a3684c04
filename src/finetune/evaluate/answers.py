"""All answers of one side, kept batch by batch, so that a kill loses one batch and no more.

The spool in `work/evaluate` is named by all that determines the answers; a line is one batch and its hash. A torn or
damaged one is asked again, and so is one with a failed answer: the next start may have more room.
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
    """A side that answers when asked: a model of this process, or a server."""

    @property
    def described(self) -> dict[str, Any]:
        """What the report says of it."""

    @property
    def origin(self) -> dict[str, Any]:
        """What else its answers depend on."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it generates with."""

    def length(self, example: Example) -> int:
        """How long the prompt is, for batches of like length."""

    def answer(self, examples: Sequence[Example], seed: int) -> list[Answer]:
        """The answers to one batch."""


def answer_all(
    side: Answering, examples: Sequence[Example], batch_size: int, seed: int, folder: Path, determines: dict[str, Any]
) -> list[Answer]:
    """One side's answers in the order of the examples; longest batches first, so that no memory shows at once.

    `determines` is what they depend on beside the side itself: test set, versions and arithmetic.
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
            found = side.answer([examples[at] for at in batch], seed + number)
            answers = {examples[at].id: answer for at, answer in zip(batch, found, strict=True)}
            kept = {name: asdict(answer) for name, answer in answers.items()}
            line = json.dumps({"sha256": sha256_answers(kept), "answers": kept})
            file.write(f"\n{line}\n".encode())  # a torn line before it stays a line of its own
            file.flush()
            done |= answers
    return [done[example.id] for example in examples]


def read_spool(path: Path) -> dict[str, Answer]:
    """The answers that an earlier start has kept, by example id, without lines that are not as they were written."""
    found: dict[str, Answer] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                kept = parse_json(line)
                if kept["sha256"] == sha256_answers(kept["answers"]):
                    found |= {name: Answer(**answer) for name, answer in kept["answers"].items()}
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # empty, torn by a kill, or damaged
    return found


def sha256_answers(kept: dict[str, Any]) -> str:
    """The hash of answers as JSON, which may hold halves of letters."""
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class UnansweredError(Exception):
    """A prompt of the latency pass that a side gave no answer to; the text says why."""


@dataclass(frozen=True)
class Timed:
    """Seconds in all and to the first token, new tokens with the end token, the text; None is not known."""

    seconds: float
    first: float | None
    tokens: int | None
    text: str


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions in batches of like length, longest first; ties in their order."""
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
