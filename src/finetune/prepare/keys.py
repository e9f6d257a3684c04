"""Hashes of 64 bits that stand for rows: what is the same, who belongs together, and in which order to choose.

Two of a million different rows share one with a chance of 3 in 100 million, so a hash is taken for what it stands for.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune.records import Message, plain_turn

Keys = npt.NDArray[np.uint64]


def text_hash(text: str | bytes) -> int:
    """A hash of one text."""
    raw = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def conversation_hashes(agent: str, messages: Sequence[Message]) -> tuple[int, int]:
    """Two hashes, in which white space does not count: of agent and conversation, by which copies are found; and of the
    prompt (all but the last turn) without the system's part, by which leaks are."""
    turns = [plain_turn(message) for message in messages]
    spoken = turns[1:] if messages[0].role == "system" else turns
    return text_hash("\x1f".join([agent, *turns])), text_hash("\x1f".join(spoken[:-1]))


def shuffled(keys: Keys, seed: int, purpose: str) -> Keys:
    """For each key a number that looks random and depends on key, seed and purpose alone (SplitMix64's finalizer,
    Steele, Lea and Flood 2014): sorted by it, rows are in an order that no other row has a say in."""
    mixed = keys ^ np.uint64(text_hash(f"{seed}/{purpose}"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
