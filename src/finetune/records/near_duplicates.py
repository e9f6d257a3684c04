"""Near-duplicates of texts: word shingles, MinHash signatures in bands, and the similarity that decides.

Two texts are near-duplicates when their sets of word shingles (runs of `shingle_words` words, in lower case) have a
Jaccard similarity of at least `threshold`. MinHash (rensa) proposes pairs, and lets one at the threshold pass
with a chance below 1%; the similarity that decides is counted on the shingles: no row is dropped by an estimate.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import regex

from finetune.records.examples import Message

BandHashes = npt.NDArray[np.uint64]  # (texts, bands)

MISSED_AT_THRESHOLD = 0.01
SEED = 20240229  # of the permutations: any number; another one proposes other pairs, the exact measure decides alike

# Scripts that put no space between words: each of their letters counts as a word.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORDS = regex.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")


class NearSettings(Protocol):
    """What counts as near: the section `data.duplicates` of params.yaml."""

    @property
    def threshold(self) -> float:
        """The least Jaccard similarity of two near-duplicates."""

    @property
    def shingle_words(self) -> int:
        """Words of a shingle."""

    @property
    def permutations(self) -> int:
        """Of MinHash."""


def spoken_text(messages: Sequence[Message]) -> str:
    """What user, assistant and tools wrote: what filters and near-duplicates look at."""
    return "\n".join(message.text for message in messages if message.role != "system")


def words_of(text: str) -> list[str]:
    """The words in lower case; of scripts that put no space between them, the letters."""
    return text.lower().split() if text.isascii() else WORDS.findall(text.lower())


def shingles(text: str, words: int) -> list[str]:
    """The runs of so many words; of a text with fewer, the text itself."""
    found = words_of(text)
    if len(found) <= words:
        return [" ".join(found)]
    return list(map(" ".join, zip(*(found[at:] for at in range(words)), strict=False)))


def bands_of(settings: NearSettings) -> tuple[int, int]:
    """(bands, rows a band) of the index: the longest bands that still miss less than 1% of the pairs at the threshold.

    A pair of similarity s shares a band of r rows with chance s^r (Leskovec, Rajaraman and Ullman, Mining of Massive
    Datasets, 3.4.2); longer bands propose fewer pairs that are none.
    """
    for rows in range(settings.permutations, 1, -1):
        bands = settings.permutations // rows
        if (1 - settings.threshold**rows) ** bands <= MISSED_AT_THRESHOLD:
            return bands, rows
    return settings.permutations, 1


def band_hashes(texts: Sequence[str], settings: NearSettings) -> BandHashes:
    """For each text one hash a band, (texts, bands); texts that share one in the same band are proposed as a pair."""
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
    """The Jaccard similarity of two sets of shingles."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)
