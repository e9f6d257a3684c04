"""Stratified splits: the same shares in every stratum, and no prompt in two splits.

Examples with one prompt (whatever their answers) form a group, and a group goes into one split as a whole. Groups are
ordered by a hash of seed and prompt, so the split does not depend on the order of the rows.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from finetune.config import SPLITS, Split, SplitShares
from finetune.records import Example, text_key


def split_examples(examples: Sequence[Example], shares: SplitShares, seed: int) -> dict[Split, list[Example]]:
    """Each example in exactly one split, every split in the order of the input."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        groups[text_key(example.prompt)].append(position)
    strata: dict[str, list[bytes]] = defaultdict(list)
    for key, members in groups.items():
        strata[min(getattr(examples[at], shares.stratify_by) for at in members)].append(key)
    chosen: dict[int, Split] = {}
    for keys in strata.values():
        keys.sort(key=lambda key: hashlib.sha256(seed.to_bytes(8, "big") + key).digest())
        for name, part in _cut(keys, shares).items():
            for key in part:
                chosen |= dict.fromkeys(groups[key], name)
    return {name: [example for at, example in enumerate(examples) if chosen[at] == name] for name in SPLITS}


def _cut(keys: list[bytes], shares: SplitShares) -> dict[Split, list[bytes]]:
    """The keys cut by the shares, rounded by largest remainder so that none is lost."""
    exact = {name: getattr(shares, name) * len(keys) for name in SPLITS}
    sizes = {name: int(exact[name]) for name in SPLITS}
    by_remainder = sorted(SPLITS, key=lambda name: exact[name] - sizes[name], reverse=True)
    for name in by_remainder[: len(keys) - sum(sizes.values())]:
        sizes[name] += 1
    parts: dict[Split, list[bytes]] = {}
    start = 0
    for name in SPLITS:
        parts[name] = keys[start : start + sizes[name]]
        start += sizes[name]
    return parts
