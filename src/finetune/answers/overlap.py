"""Scores between 0 and 1 by the words and letters that an answer shares with the reference: chrF, BLEU, ROUGE-L.

    reference "the cat sat on the mat"   answer "the cat on the mat" -> chrF 0.74, BLEU 0.41, ROUGE-L 0.91

The same text is 1 in all of them, also where it has no word. BLEU is a figure of a whole set
(`finetune.score.metrics`); that of one answer is for looking at answers.
"""

from functools import cache
from typing import Any


def chrf(answer: str, reference: str) -> float:
    """chrF with sacrebleu's defaults: letters up to six in a row, recall twice as heavy (Popović 2015)."""
    if answer.strip() == reference.strip():
        return 1.0
    return float(_sacrebleu("CHRF").sentence_score(answer, [reference]).score) / 100


def bleu(answer: str, reference: str) -> float:
    """BLEU of one answer with sacrebleu's defaults, orders of n-grams that a short text can't have left out."""
    if answer.strip() == reference.strip():
        return 1.0
    score = _sacrebleu("BLEU", effective_order=True).sentence_score(answer, [reference]).score
    return min(float(score) / 100, 1.0)  # 100.00000000000004 is as far as floats go


@cache
def _sacrebleu(name: str, **settings: Any) -> Any:
    from sacrebleu import metrics

    return getattr(metrics, name)(**settings)


def rouge_l(answer: str, reference: str) -> float:
    """The F-measure of the longest common subsequence of words (Lin 2004), as rouge-score's `rougeL` has it.

    The same figure for English text, which a test compares. Two things differ: a word may have letters of any alphabet,
    where rouge-score sees no word at all in Russian or Chinese; and rouge-score's table of words by words takes minutes
    for a thousand long answers.
    """
    from rapidfuzz.distance import LCSseq

    if answer.strip() == reference.strip():
        return 1.0
    given, wanted = words(answer), words(reference)
    common = LCSseq.similarity(given, wanted)
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def words(text: str) -> list[str]:
    """Words in lower case: runs of letters and digits; of scripts without spaces, each sign by itself."""
    found: list[str] = _word_pattern().findall(text.lower())
    return found


@cache
def _word_pattern() -> Any:
    import regex

    alone = r"\p{Han}\p{Hiragana}\p{Katakana}"
    return regex.compile(rf"(?V1)[{alone}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{alone}]]+")
