"""Near-duplicates of texts: word shingles, MinHash signatures in bands, and the similarity that decides.

Two texts are near-duplicates if their sets of word shingles (runs of `shingle_words` words, in lower case) have a
Jaccard similarity of at least `threshold`. MinHash (rensa) proposes pairs, and misses one at the threshold with a
probability below 1%; the exact similarity of the shingles decides, so no row is dropped by an estimate.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import regex

from finetune.records.examples import Message

BandHashes = npt.NDArray[np.uint64]  # (texts, bands)

MISSED_AT_THRESHOLD = 0.01
SEED = 20240229  # of the permutations, arbitrary: it changes the proposed pairs, not the exact measure

# Scripts without spaces between words: each letter counts as a word.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORDS = regex.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")


class NearSettings(Protocol):
    """The definition of near-duplicates: the section `data.duplicates` of params.yaml."""

    @property
    def threshold(self) -> float:
        """The minimum Jaccard similarity of two near-duplicates."""

    @property
    def shingle_words(self) -> int:
        """The words per shingle."""

    @property
    def permutations(self) -> int:
        """The number of MinHash permutations."""


def spoken_text(messages: Sequence[Message]) -> str:
    """Return the text of user, assistant and tools, which filters and near-duplicates examine."""
    return "\n".join(message.text for message in messages if message.role != "system")


def words_of(text: str) -> list[str]:
    """Return the words in lower case; in scripts without spaces, the letters."""
    return text.lower().split() if text.isascii() else WORDS.findall(text.lower())


def shingles(text: str, words: int) -> list[str]:
    """Return all runs of `words` words; for a shorter text, the text itself."""
    found = words_of(text)
    if len(found) <= words:
        return [" ".join(found)]
    return list(map(" ".join, zip(*(found[at:] for at in range(words)), strict=False)))


def bands_of(settings: NearSettings) -> tuple[int, int]:
    """Return (bands, rows per band) of the index: the longest bands that miss less than 1% of pairs at the threshold.

    A pair of similarity s shares a band of r rows with probability s^r (Leskovec, Rajaraman and Ullman, Mining of
    Massive Datasets, 3.4.2); longer bands propose fewer false pairs.
    """
    for rows in range(settings.permutations, 1, -1):
        bands = settings.permutations // rows
        if (1 - settings.threshold**rows) ** bands <= MISSED_AT_THRESHOLD:
            return bands, rows
    return settings.permutations, 1


def band_hashes(texts: Sequence[str], settings: NearSettings) -> BandHashes:
    """Return one hash per text and band, (texts, bands); texts that share one in a band are proposed as a pair."""
    from rensa import RMinHash

    bands, rows = bands_of(settings)
    if not texts:
        return np.empty((0, bands), np.uint64)
    sets = [shingles(text, settings.shingle_words) for text in texts]
    digests = RMinHash.digest_matrix_from_token_sets(sets, bands * rows, SEED).to_rows()
    minima = np.array(digests, np.uint64).reshape(len(texts), bands, rows)
    found = np.zeros((len(texts), bands), np.uint64)
    for at in range(rows):
        found = (found ^ minima[:, :, at]) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found


def similarity(one: set[str], other: set[str]) -> float:
    """Return the Jaccard similarity of two sets of shingles."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)
