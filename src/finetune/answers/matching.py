"""Scores of 0 or 1 by comparing the answer's text with the reference's, which is the assistant's complete last turn.

    exact_match         "ValueError"  is  " ValueError\\n"              and not  "ValueError."
    normalized_match    "The cafe"    is  "the  café!"                  where all is ignored
    contains            "ValueError"  in  "It raises ValueError."
    regular_expression  "Answer: 42"  as  "So. Answer:  42"             by  Answer:\\s*(\\d+)
    numeric             "1234.5"      is  "about $1,234.50", "50%" is "0.5" and "50"

Each accepts text of any content and length without slow special cases, because a model may answer anything.
"""

import re
import string
import unicodedata
from collections import deque
from collections.abc import Callable, Collection
from decimal import Context, Decimal

Match = Callable[[str, str], bool]  # answer, reference

MARKS = 30  # combining marks in a row: Unicode's stream-safe form (UAX 15); sorting 100,000 of them takes ten seconds
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
ASCII_PUNCTUATION = frozenset(string.punctuation)  # some of it, e.g. $ and +, is not punctuation in Unicode
SEPARATORS = ",'_\u2019\u00a0\u202f"  # of thousands; a plain space would join "in 2020 100 people"
NO_SEPARATORS = dict.fromkeys(map(ord, SEPARATORS))
NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)[-+]?"  # so that "5-3" contains no -3, "v2" no 2 and "1.2.3" no 3
    rf"(?:(?:\d{{1,3}}(?P<mark>[{SEPARATORS}])\d{{3}}(?:(?P=mark)\d{{3}})*(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)"
    r"(?:[eE][-+]?\d+)?(?P<percent>\s?%)?"
)
ARITHMETIC = Context(prec=50, traps=[])  # no traps: what cannot be computed is NaN, which equals nothing


class UnscorableError(Exception):
    """An example that cannot be scored because of its reference; the text gives the reason."""


def exact_match(answer: str, reference: str) -> bool:
    """Return whether answer and reference are equal, ignoring leading and trailing white space."""
    return answer.strip() == reference.strip()


def contains(answer: str, reference: str, *, ignore_case: bool) -> bool:
    """Return whether the answer contains the reference; only an empty answer contains an empty one."""
    answer, reference = answer.strip(), reference.strip()
    if ignore_case:
        answer, reference = answer.casefold(), reference.casefold()
    return reference in answer if reference else not answer


def normalized_match(answer: str, reference: str, ignore: Collection[str]) -> bool:
    """Return whether both are equal, ignoring white space and what `ignore` lists: case, punctuation, articles,
    accents.

    If ignoring something would leave the reference empty, it is kept: the article in the choice "A", the punctuation in
    "!?".
    """
    for kept in ((), ("articles",), ("articles", "punctuation")):
        left = [name for name in ignore if name not in kept]
        wanted = normalized(reference, left)
        if wanted:
            break
    return normalized(answer, left) == wanted


def normalized(text: str, ignore: Collection[str]) -> str:
    """Return the text in Unicode's composed form, with single spaces and without what is to be ignored.

    The steps for English are those of SQuAD's official evaluation (lower case, punctuation, articles, white space).
    """
    text = unicodedata.normalize("NFD", stream_safe(text))
    if "case" in ignore:
        text = text.casefold()
    if "accents" in ignore:
        text = "".join(sign for sign in text if unicodedata.category(sign) != "Mn")
    if "punctuation" in ignore:
        marks = ASCII_PUNCTUATION | {sign for sign in set(text) if unicodedata.category(sign).startswith("P")}
        text = "".join(sign for sign in text if sign not in marks)
    if "articles" in ignore:
        text = ARTICLES.sub(" ", text)
    return " ".join(unicodedata.normalize("NFC", stream_safe(text)).split())


def stream_safe(text: str) -> str:
    """Limit the text to MARKS consecutive combining marks, so that hostile text cannot slow down normalization."""
    if text.isascii():
        return text
    import regex

    return str(regex.sub(rf"(\p{{M}}{{{MARKS}}})(?=\p{{M}})", "\\1\u034f", text))


def compile_pattern(pattern: str) -> Match:
    """Return a function that checks that the pattern matches the answer with the same groups as in the reference.

    RE2's time is linear in the text, unlike that of Python's `re`. Raises ValueError for an invalid pattern.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        raise ValueError(error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)) from None

    def matches(answer: str, reference: str) -> bool:
        match = compiled.search(sound(answer))
        if not compiled.groups:
            return match is not None
        wanted = compiled.search(sound(reference))
        if wanted is None:
            raise UnscorableError("the pattern does not match the reference, so there are no groups to compare")
        return match is not None and bool(match.groups() == wanted.groups())

    return matches


def sound(text: str) -> str:
    """Remove lone surrogates, which UTF-8 cannot encode and C++ libraries reject."""
    return text.encode("utf-8", "replace").decode("utf-8")


def numeric(answer: str, reference: str, absolute_tolerance: float, relative_tolerance: float) -> bool:
    """Return whether the last numbers of both differ by at most the larger tolerance (relative: to the reference).

    A percent sign divides by 100; if only one of the two has it, either reading may match: 50% is 0.5, and 50. Raises
    UnscorableError if the reference contains no number.
    """
    wanted, given = last_number(reference), last_number(answer)
    if wanted is None:
        raise UnscorableError("the reference contains no number")
    if given is None:
        return False
    readings = [(given[0], wanted[0])]
    if given[1] != wanted[1]:
        readings.append((_percent(*given), _percent(*wanted)))
    return any(_near(first, second, absolute_tolerance, relative_tolerance) for first, second in readings)


def last_number(text: str) -> tuple[Decimal, bool] | None:
    """Return the last number of a text (NaN if it cannot be computed), and whether a percent sign follows."""
    last = deque(NUMBER.finditer(text.replace("\u2212", "-")), maxlen=1)
    if not last:
        return None
    match = last[0]
    percent = match["percent"] or ""
    digits = match[0][: len(match[0]) - len(percent)]
    return Decimal(digits.translate(NO_SEPARATORS), ARITHMETIC), bool(percent)


def _percent(value: Decimal, percent: bool) -> Decimal:
    return ARITHMETIC.scaleb(value, Decimal(-2)) if percent else value


def _near(given: Decimal, wanted: Decimal, absolute: float, relative: float) -> bool:
    if not (given.is_finite() and wanted.is_finite()):
        return False
    allowed = ARITHMETIC.multiply(Decimal(str(relative)), wanted.copy_abs())
    allowed = ARITHMETIC.max(allowed, Decimal(str(absolute)))
    return bool(ARITHMETIC.compare(ARITHMETIC.subtract(given, wanted).copy_abs(), allowed) <= 0)
