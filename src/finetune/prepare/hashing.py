"""Hashes of 64 bits that stand for rows: what is the same, which rows belong together, in which order to choose.

Two of a million different rows share one with a chance of 3 in 100 million, so a hash is taken for what it stands for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from finetune.records.examples import Message, Tool, plain_turn

Keys = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]  # (pairs, 2), each the earlier row first


def text_hash(text: str | bytes) -> int:
    """A hash of one text."""
    raw = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class ConversationKeys:
    """Hashes of one conversation, in which white space does not count."""

    copy: int  # of agent, tools and all turns: copies share it
    spoken: int  # of all turns but the system's
    prompt: int  # the same without the last turn: leaks share it
    openings: list[int]  # of what was spoken up to each earlier answer: a row that is one of these is continued here


def conversation_keys(agent: str, messages: Sequence[Message], tools: Sequence[Tool]) -> ConversationKeys:
    """The hashes by which copies, equal prompts and continued conversations are found."""
    turns = [plain_turn(message) for message in messages]
    start = messages[0].role == "system"
    spoken, roles = turns[start:], [message.role for message in messages[start:]]
    ends = [at + 1 for at, role in enumerate(roles[:-1]) if role == "assistant"]
    return ConversationKeys(
        copy=text_hash("\x1f".join([agent, *turns, *([orjson.dumps(tools).decode()] if tools else [])])),
        spoken=text_hash("\x1f".join(spoken)),
        prompt=text_hash("\x1f".join(spoken[:-1])),
        openings=[text_hash("\x1f".join(spoken[:end])) for end in ends],
    )


def shuffled(keys: Keys, seed: int, purpose: str) -> Keys:
    """For each key a number that looks random and depends on key, seed and purpose alone (SplitMix64's finalizer,
    Steele, Lea and Flood 2014): sorted by it, rows are in an order that no other row has a say in."""
    mixed = keys ^ np.uint64(text_hash(f"{seed}/{purpose}"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def equal_pairs(keys: Keys) -> Pairs:
    """Positions of equal keys: each with the first one and with the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))]
    with_first = np.stack([first, order], axis=1)[~new]
    with_before = np.stack([order[:-1], order[1:]], axis=1)[~new[1:]]
    return np.concatenate([with_first, with_before])


def clusters(size: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """For each of `size` rows the number of the connected component that the pairs put it into."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    found: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
