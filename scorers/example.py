"""A scorer of your own to start from: the words that an answer shares with the reference."""

from typing import Any


def share_of_words(answer: str, reference: str, example: dict[str, Any]) -> float:  # noqa: ARG001
    """The share of the reference's words that stand in the answer, 0 to 1; case and order say nothing.

    `example` is the whole test example, as a line of data/prepared/test.jsonl holds it.
    """
    wanted = set(reference.lower().split())
    found = wanted & set(answer.lower().split())
    return len(found) / len(wanted) if wanted else 0.0
