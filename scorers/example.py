"""An example to start from: the share of the reference's words that an answer contains."""

from typing import Any


def share_of_words(answer: str, reference: str, example: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the share of the reference's words that occur in the answer, 0 to 1, regardless of case and order.

    `example` is the complete test example, a line of data/prepared/test.jsonl.
    """
    expected = set(reference.lower().split())
    shared = expected & set(answer.lower().split())
    return len(shared) / len(expected) if expected else 0.0
