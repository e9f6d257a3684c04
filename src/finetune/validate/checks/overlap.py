"""Check the splits against each other: rows in both train and a held-out split, identical or nearly so."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import nsmallest
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.config.data import DuplicateConfig
from finetune.config.types import Split
from finetune.config.validate import ValidateParams
from finetune.records.examples import Example, plain_turn, text_key
from finetune.records.near_duplicates import BandHashes, band_hashes, shingles, similarity, spoken_text
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

HELD_OUT: tuple[Split, ...] = ("validation", "test")
NEAR_CODES = {"validation": "split-near-overlap", "test": "test-near-overlap"}
AGAIN = "run prepare again (dvc repro -f -s prepare)"
OTHER_ANSWER = "have a prompt that also occurs in train with a different answer"
TEXTS_AT_ONCE = 2000  # whose shingles are in memory at a time
# Measure only this many of a row's candidates, those that share the most bands with it. If nearly all rows follow one
# long template, complete buckets would otherwise be measured in vain.
MOST_PROPOSALS = 20

Counts = npt.NDArray[np.int64]

CODES |= {
    "split-overlap": Code("error", "verdict", "A held-out row also occurs in train.", binding=True, in_params=False),
    "split-same-prompt": Code(
        "error", "verdict", "A test prompt occurs in train with a different answer.", binding=True, in_params=False
    ),
    "split-near-overlap": Code("warning", "verdict", "A held-out row nearly duplicates a train row."),
    "test-near-overlap": Code("error", "verdict", "A test row nearly duplicates a train row.", in_params=False),
}


def check_overlap(params: ValidateParams, splits: Mapping[Split, Sequence[Example]]) -> list[Finding]:
    """Find rows of a held-out split whose prompt, or nearly the same complete text, is also in train."""
    answers: dict[bytes, set[str]] = {}
    for example in splits["train"]:
        answers.setdefault(prompt_key(example), set()).add(plain_turn(example.messages[-1]))
    texts = [spoken_text(example.messages) for example in splits["train"]]
    findings = []
    for name in HELD_OUT:
        copies: list[Example] = []
        other_answers: list[Example] = []
        rest: list[Example] = []
        for example in splits[name]:
            known = answers.get(prompt_key(example))
            same = known is not None and plain_turn(example.messages[-1]) in known
            (rest if known is None else copies if same else other_answers).append(example)
        near = near_copies([spoken_text(example.messages) for example in rest], texts, params.data.duplicates)
        known_by = (
            ("split-overlap", copies, "also occur in train, prompt and answer", f"{AGAIN}; it keeps them apart"),
            ("split-same-prompt", other_answers, OTHER_ANSWER, f"{AGAIN}; it keeps rows of one prompt together"),
            (NEAR_CODES[name], [rest[at] for at in near], *_near(params.data.duplicates)),
        )
        for code, found, what, fix in known_by:
            if found:
                what = f"{_share(found, splits[name])} {what} ({some_ids(found)})"
                findings.append(Finding(code, f"data/prepared/{name}.jsonl", what, fix))
    return findings


def prompt_key(example: Example) -> bytes:
    """Hash the turns before the answer without the system prompt: the same question has the same hash."""
    spoken = [message for message in example.prompt if message.role != "system"]
    return text_key(spoken or example.prompt)


def _near(settings: DuplicateConfig) -> tuple[str, str]:
    """Return a description of near copies, and the setting that separates them."""
    what = f"share {settings.threshold:.0%} or more of their word shingles with a row of train"
    if settings.near == "ignore":
        return what, "set data.duplicates.near: group to keep near copies in one split, or drop"
    # prepare looked for them, but its buckets missed these
    return what, f"set data.duplicates.permutations: {2 * settings.permutations}, so that prepare finds more of them"


def _share(found: Sequence[Example], split: Sequence[Example]) -> str:
    return f"{len(found):,} of {len(split):,} rows ({100 * len(found) / len(split):.3g}%)"


def some_ids(examples: Sequence[Example]) -> str:
    """Return up to three ids, independent of the order of the rows."""
    more = ", …" if len(examples) > 3 else ""
    return f"ids {', '.join(nsmallest(3, (example.id for example in examples)))}{more}"


def near_copies(held_out: Sequence[str], known: Sequence[str], settings: DuplicateConfig) -> list[int]:
    """Return the indices of `held_out` texts whose similarity to one of `known` is at least the threshold.

    As in prepare, bands propose candidates and the exact similarity decides, so that there are no false positives and
    few misses.
    """
    known = sorted(set(known))  # a fixed order: the choice of measured pairs must not depend on the rows' order

    @lru_cache(maxsize=1000)
    def shingles_of(at: int) -> set[str]:
        return set(shingles(known[at], settings.shingle_words))

    found = []
    proposed = propose(_bands(held_out, settings), _bands(known, settings))
    for row, candidates in proposed:
        own = set(shingles(held_out[row], settings.shingle_words))
        if any(similarity(own, shingles_of(at)) >= settings.threshold for at in candidates):
            found.append(row)
    return found


def _bands(texts: Sequence[str], settings: DuplicateConfig) -> BandHashes:
    pieces = [texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE)]
    return np.concatenate([band_hashes(piece, settings) for piece in pieces or [[]]])


def propose(held_out: BandHashes, known: BandHashes) -> Iterator[tuple[int, list[int]]]:
    """Yield for each row of `held_out` the most similar candidates in `known` that share a band with it, best first."""
    pairs = np.concatenate([_in_one_bucket(held_out[:, at], known[:, at]) for at in range(known.shape[1])])
    pairs, bands = np.unique(pairs, axis=0, return_counts=True)
    pairs = pairs[np.lexsort((pairs[:, 1], -bands, pairs[:, 0]))]
    rows, starts = np.unique(pairs[:, 0], return_index=True)
    for row, candidates in zip(rows.tolist(), np.split(pairs[:, 1], starts[1:]), strict=False):
        yield row, candidates[:MOST_PROPOSALS].tolist()


def _in_one_bucket(held_out: npt.NDArray[Any], known: npt.NDArray[Any]) -> Counts:
    """Count pairs (row of held_out, row of known) with equal hashes; of a large bucket, only a spread-out sample."""
    order = np.argsort(known, kind="stable")
    first, end = (np.searchsorted(known[order], held_out, side) for side in ("left", "right"))
    taken = np.minimum(end - first, MOST_PROPOSALS)
    rows = np.repeat(np.arange(len(held_out)), taken)
    step = np.arange(len(rows)) - np.repeat(np.cumsum(taken) - taken, taken)
    inside = step * (end - first)[rows] // taken[rows]
    return np.stack([rows, order[first[rows] + inside]], axis=1)
