"""64-bit hashes that represent rows: to find equal rows and groups, and to choose rows in a fixed random order.

In a million different rows, two share a hash with a probability of 3 in 100 million, so equal hashes are treated as
equal values.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from finetune.records.examples import Message, Tool, plain_turn

Keys = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]  # (pairs, 2), with the earlier row first


def text_hash(text: str | bytes) -> int:
    """Return a hash of one text."""
    raw = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class ConversationKeys:
    """Hashes of one conversation, ignoring white space."""

    copy: int  # of agent, tools and all turns: equal for copies
    spoken: int  # of all turns except the system prompt
    prompt: int  # the same without the last turn: equal for leaks
    openings: list[int]  # of the turns up to each earlier answer: a row with such a hash is continued here


def conversation_keys(agent: str, messages: Sequence[Message], tools: Sequence[Tool]) -> ConversationKeys:
    """Return the hashes that identify copies, equal prompts and continued conversations."""
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
    """Return for each key a pseudorandom number that depends only on key, seed and purpose.

    Uses SplitMix64's finalizer (Steele, Lea and Flood 2014). Sorted by it, the order of two rows does not depend on
    other rows.
    """
    mixed = keys ^ np.uint64(text_hash(f"{seed}/{purpose}"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def equal_pairs(keys: Keys) -> Pairs:
    """Return pairs of positions with equal keys: each with the first one and with the previous one."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))]
    with_first = np.stack([first, order], axis=1)[~new]
    with_before = np.stack([order[:-1], order[1:]], axis=1)[~new[1:]]
    return np.concatenate([with_first, with_before])


def clusters(size: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return for each of `size` rows the number of its connected component in the graph of the pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    components: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return components
