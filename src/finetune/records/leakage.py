"""What two conversations share: the hash that shows a prompt of train in another split."""

import hashlib
from collections.abc import Iterable, Sequence

from finetune.records.examples import Example, Message


def text_key(messages: Sequence[Message]) -> bytes:
    """A hash that two conversations share when they differ in white space alone; of prompts, it tells leaks."""
    text = "\x1f".join(map(plain_turn, messages))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def plain_turn(message: Message) -> str:
    """Who spoke and what, with every run of white space as one space: what tells turns apart."""
    return f"{message.role}\x1e{' '.join(message.text.split())}"


def leaked(train: Iterable[Example], held_out: Iterable[Example]) -> list[str]:
    """Ids of the held-out examples whose prompt stands in train too."""
    known = {text_key(example.prompt) for example in train}
    return [example.id for example in held_out if text_key(example.prompt) in known]
