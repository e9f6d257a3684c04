"""One answer by itself, and what it took."""

from dataclasses import dataclass


class UnansweredError(Exception):
    """A prompt of the latency pass that a side gave no answer to; the text says why."""


@dataclass(frozen=True)
class Timed:
    """Seconds in all and to the first token, new tokens with the end token, the text; None is not known."""

    seconds: float
    first: float | None
    tokens: int | None
    text: str
