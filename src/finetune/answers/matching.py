"""Scores of 0 or 1 by comparing the answer's text with the reference's, which is all of the assistant's last turn.

    exact_match         "ValueError"  is  " ValueError\\n"              and not  "ValueError."
    normalized_match    "The cafe"    is  "the  café!"                  where all is ignored
    contains            "ValueError"  in  "It raises ValueError."
    regular_expression  "Answer: 42"  as  "So. Answer:  42"             by  Answer:\\s*(\\d+)
    numeric             "1234.5"      is  "about $1,234.50", "50%" is "0.5" and "50"

Each takes any text, whatever its length, without a slow path: a model may answer anything.
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
ASCII_PUNCTUATION = frozenset(string.punctuation)  # some of it, as $ and +, is not punctuation to Unicode
SEPARATORS = ",'_\u2019\u00a0\u202f"  # of thousands; a plain space would join "in 2020 100 people"
NO_SEPARATORS = dict.fromkeys(map(ord, SEPARATORS))
NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)[-+]?"  # so that "5-3" holds no -3, "v2" no 2 and "1.2.3" no 3
    rf"(?:(?:\d{{1,3}}(?P<mark>[{SEPARATORS}])\d{{3}}(?:(?P=mark)\d{{3}})*(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)"
    r"(?:[eE][-+]?\d+)?(?P<percent>\s?%)?"
)
ARITHMETIC = Context(prec=50, traps=[])  # nothing traps: what can't be reckoned with is NaN, which equals nothing


class UnscorableError(Exception):
    """An example that can't be scored, for a reason that lies in its reference; the text says why."""


def exact_match(answer: str, reference: str) -> bool:
    """Whether answer and reference are the same text, white space at the ends apart."""
    return answer.strip() == reference.strip()


def contains(answer: str, reference: str, *, ignore_case: bool) -> bool:
    """Whether the reference stands in the answer; an empty one stands in an empty answer alone."""
    answer, reference = answer.strip(), reference.strip()
    if ignore_case:
        answer, reference = answer.casefold(), reference.casefold()
    return reference in answer if reference else not answer


def normalized_match(answer: str, reference: str, ignore: Collection[str]) -> bool:
    """Whether they are the same text but for white space and what `ignore` names: case, punctuation, articles, accents.

    What would leave nothing of the reference is not ignored: of the choice "A" the article, of "!?" the punctuation.
    """
    for kept in ((), ("articles",), ("articles", "punctuation")):
        left = [name for name in ignore if name not in kept]
        wanted = normalized(reference, left)
        if wanted:
            break
    return normalized(answer, left) == wanted


def normalized(text: str, ignore: Collection[str]) -> str:
    """The text in Unicode's composed form, runs of white space as one space, without what is to be ignored.

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
    """The text with no more than MARKS combining marks in a row; what normalizes it then takes no hostile time."""
    if text.isascii():
        return text
    import regex

    return str(regex.sub(rf"(\p{{M}}{{{MARKS}}})(?=\p{{M}})", "\\1\u034f", text))


def compile_pattern(pattern: str) -> Match:
    """Whether the pattern is found in the answer, and its groups catch what they catch in the reference.

    RE2 takes time linear in the text, which a pattern of Python's `re` need not. ValueError for a bad pattern.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        raise ValueError(error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)) from None

    def matches(answer: str, reference: str) -> bool:
        found = compiled.search(sound(answer))
        if not compiled.groups:
            return found is not None
        wanted = compiled.search(sound(reference))
        if wanted is None:
            raise UnscorableError("the pattern does not match the reference, so there are no groups to compare")
        return found is not None and bool(found.groups() == wanted.groups())

    return matches


def sound(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 has and C++ libraries refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")


def numeric(answer: str, reference: str, absolute_tolerance: float, relative_tolerance: float) -> bool:
    """Whether the last numbers of both differ by no more than the larger tolerance, the relative one of the reference.

    A percent sign divides by 100, or by nothing where only one of the two has it: 50% is 0.5, and 50.
    UnscorableError where the reference contains no number.
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
    """The last number of a text (NaN where it is beyond reckoning), and whether a percent sign follows."""
    last = deque(NUMBER.finditer(text.replace("\u2212", "-")), maxlen=1)
    if not last:
        return None
    found = last[0]
    percent = found["percent"] or ""
    digits = found[0][: len(found[0]) - len(percent)]
    return Decimal(digits.translate(NO_SEPARATORS), ARITHMETIC), bool(percent)


def _percent(value: Decimal, percent: bool) -> Decimal:
    return ARITHMETIC.scaleb(value, Decimal(-2)) if percent else value


def _near(given: Decimal, wanted: Decimal, absolute: float, relative: float) -> bool:
    if not (given.is_finite() and wanted.is_finite()):
        return False
    allowed = ARITHMETIC.multiply(Decimal(str(relative)), wanted.copy_abs())
    allowed = ARITHMETIC.max(allowed, Decimal(str(absolute)))
    return bool(ARITHMETIC.compare(ARITHMETIC.subtract(given, wanted).copy_abs(), allowed) <= 0)
