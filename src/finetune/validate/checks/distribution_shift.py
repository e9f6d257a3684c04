"""Check that test rows resemble training rows in script, vocabulary and length.

A shift is reported if it is large and cannot be due to chance: each measure has a minimum effect, and a p-value that 1
in 1,000 test sets of the same kind would reach.
"""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from statistics import median

import numpy as np
import regex

from finetune.config.types import Split
from finetune.records.examples import Example, text_key
from finetune.records.near_duplicates import SPACELESS, spoken_text
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CHANCE = 0.001
LEAST_SCRIPTS = 0.1  # total variation: the share of test rows in a script that is rarer in train
# Measured on four sources of English rows: the share of unknown words differs by at most 0.01 for a random test set, by
# 0.17 to 0.88 for rows on another subject, by 0.6 for the same sentences in German.
LEAST_WORDS = 0.2
LEAST_LENGTHS = 0.2  # Kolmogorov-Smirnov D; between two of those sources it is 0.28 to 0.8
LETTERS_READ = 2000  # of a row, to determine its script and its words

LETTERS = regex.compile(rf"(?V1)[{SPACELESS}]|[\p{{L}}--[{SPACELESS}]]+")

CODES |= {
    "language-shift": Code("warning", "verdict", "Test rows use different scripts or words than train rows."),
    "length-shift": Code("warning", "verdict", "Test rows differ in length from train rows."),
}


def check_shift(splits: Mapping[Split, Sequence[Example]]) -> list[Finding]:
    """Find differences in kind between test rows and training rows."""
    if not splits["train"] or not splits["test"]:
        return []
    train, test = ([spoken_text(example.messages) for example in splits[name]] for name in ("train", "test"))
    halves = [int.from_bytes(text_key(example.messages)[:1]) % 2 == 0 for example in splits["train"]]
    language = [*_scripts(train, test)] or [*_words(train, halves, test)]  # another script implies other words
    return [*language, *_lengths(train, test)]


def _scripts(train: Sequence[str], test: Sequence[str]) -> Iterator[Finding]:
    """Compare the script of each row, so that long rows count once; effect: total variation, chance: chi-square."""
    from scipy.stats import chi2_contingency

    known, tested = (Counter(script_of(text) for text in texts) for texts in (train, test))
    scripts = sorted(known | tested)
    shares = {name: (known[name] / len(train), tested[name] / len(test)) for name in scripts}
    distance = sum(abs(before - after) for before, after in shares.values()) / 2
    if len(scripts) < 2 or distance < LEAST_SCRIPTS:
        return
    table = np.array([[counts[name] for name in scripts] for counts in (known, tested)])
    if chi2_contingency(table).pvalue > CHANCE:
        return
    moved = sorted(scripts, key=lambda name: (-round(abs(shares[name][0] - shares[name][1]), 9), name))[:3]
    summary = ", ".join(f"{name} {shares[name][0]:.0%} of train, {shares[name][1]:.0%} of test" for name in moved)
    what = f"the scripts of the rows differ by {distance:.0%} (total variation): {summary}"
    fix = "add train rows that resemble the test rows"
    yield Finding("language-shift", "data/prepared/test.jsonl", what, fix)


def script_of(text: str) -> str:
    """Return the script of most letters in Unicode's terms (LATIN, CYRILLIC, CJK), or `none` without letters."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text[:LETTERS_READ])) else "none"
    found = Counter(_script(letter) for letter in text[:LETTERS_READ] if letter.isalpha())
    return min(found, key=lambda name: (-found[name], name), default="none")


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "none").split()[0]


def _words(train: Sequence[str], halves: Sequence[bool], test: Sequence[str]) -> Iterator[Finding]:
    """Compare the share of words unknown to one half of train between test rows and rows of the other half.

    The other half shows how many words are new even in similar rows: with names and numbers, possibly most of them.
    """
    from scipy.stats import mannwhitneyu

    of_train = [words_in(text) for text in train]
    known: set[str] = set().union(*(words for words, half in zip(of_train, halves, strict=True) if half))
    alike = _unknown([words for words, half in zip(of_train, halves, strict=True) if not half], known)
    tested = _unknown([words_in(text) for text in test], known)
    if not alike or not tested:
        return
    before, after = float(np.mean(alike)), float(np.mean(tested))
    if after - before < LEAST_WORDS or mannwhitneyu(tested, alike, alternative="greater").pvalue > CHANCE:
        return
    what = (
        f"{after:.0%} of a test row's words do not occur in one half of train, compared with {before:.0%} for "
        "rows of the other half: a different language or subject"
    )
    fix = "add train rows that resemble the test rows"
    yield Finding("language-shift", "data/prepared/test.jsonl", what, fix)


def words_in(text: str) -> set[str]:
    """Return the distinct words of letters, in lower case."""
    return set(LETTERS.findall(text[:LETTERS_READ].lower()))


def _unknown(rows: Sequence[set[str]], known: set[str]) -> list[float]:
    """Return the share of unknown words of each row that has words."""
    return sorted(len(words - known) / len(words) for words in rows if words)


def _lengths(train: Sequence[str], test: Sequence[str]) -> Iterator[Finding]:
    from scipy.stats import ks_2samp

    before, after = (sorted(map(len, texts)) for texts in (train, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns when it approximates
        found = ks_2samp(before, after)
    if found.statistic < LEAST_LENGTHS or found.pvalue > CHANCE:
        return
    what = (
        f"test rows have {median(after):,.0f} characters at the median, train rows {median(before):,.0f}; the "
        f"Kolmogorov-Smirnov distance is {found.statistic:.0%}"
    )
    fix = "split both from the same rows (data.split), or add train rows of these lengths"
    yield Finding("length-shift", "data/prepared/test.jsonl", what, fix)
