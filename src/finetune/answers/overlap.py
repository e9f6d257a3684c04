"""Scores between 0 and 1 by the words and letters shared by answer and reference: chrF, BLEU, ROUGE-L.

    reference "the cat sat on the mat"   answer "the cat on the mat" -> chrF 0.74, BLEU 0.41, ROUGE-L 0.91

Equal texts have 1 in all of them, even without words. BLEU is a metric of a complete set (`finetune.score.metrics`);
that of one answer is only for inspecting answers.
"""

from functools import cache
from typing import Any


def chrf(answer: str, reference: str) -> float:
    """Return chrF with sacrebleu's defaults: up to six letters in a row, recall with double weight (Popović 2015)."""
    if answer.strip() == reference.strip():
        return 1.0
    return float(_sacrebleu("CHRF").sentence_score(answer, [reference]).score) / 100


def bleu(answer: str, reference: str) -> float:
    """Return BLEU of one answer with sacrebleu's defaults, without n-gram orders that a short text cannot have."""
    if answer.strip() == reference.strip():
        return 1.0
    score = _sacrebleu("BLEU", effective_order=True).sentence_score(answer, [reference]).score
    return min(float(score) / 100, 1.0)  # floating point gives up to 100.00000000000004


@cache
def _sacrebleu(name: str, **settings: Any) -> Any:
    from sacrebleu import metrics

    return getattr(metrics, name)(**settings)


def rouge_l(answer: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words (Lin 2004), like rouge-score's `rougeL`.

    Equal to it for English text, which a test compares. There are two differences: words may have letters of any
    alphabet, whereas rouge-score finds no words in Russian or Chinese; and rouge-score's table of word pairs takes
    minutes for a thousand long answers.
    """
    from rapidfuzz.distance import LCSseq

    if answer.strip() == reference.strip():
        return 1.0
    given, wanted = words(answer), words(reference)
    common = LCSseq.similarity(given, wanted)
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def words(text: str) -> list[str]:
    """Return words in lower case: runs of letters and digits; in scripts without spaces, each character."""
    matched: list[str] = _word_pattern().findall(text.lower())
    return matched


@cache
def _word_pattern() -> Any:
    import regex

    alone = r"\p{Han}\p{Hiragana}\p{Katakana}"
    return regex.compile(rf"(?V1)[{alone}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{alone}]]+")
