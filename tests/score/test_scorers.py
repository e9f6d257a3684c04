"""Scorers: right and wrong answers, and robustness against arbitrary text."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from finetune.answers.matching import contains, exact_match, last_number, normalized_match, numeric
from finetune.answers.overlap import bleu, chrf, rouge_l, words
from finetune.answers.structured import find_calls, python_parses, same_calls
from finetune.records.examples import Example, Message
from finetune.score.scoring import Scored, Scorers
from tests.builders.asked_scorers import KINDS, MakeExample, answers, asked, built

ANYTHING = st.text(max_size=200) | st.text(alphabet="{}[]\",:0123456789.e-% \n\\`(a'b\x00\ud800é\u0301", max_size=300)
HOSTILE = [
    "",
    " \n\t",
    "\x00" * 100_000,
    "\ud800" * 50_000,
    "a" + "\u0301\u0323" * 50_000,
    "{" * 200_000,
    "[" * 200_000,
    '{"' * 100_000,
    '{"a":' * 40_000,
    "(" * 150_000,
    "-" * 150_000 + "1",
    "x" + ".y" * 60_000,
    "+".join("1" * 60_000),
    "1" * 300_000,
    "1,234" * 30_000,
    "1e999",
    "1e" + "9" * 100_000,
    "a" * 200_000 + "!",
    "```python\n" * 10_000,
    "[" + "1," * 100_000,
]


# --------------------------------------------------------------------------------------------------- right and wrong


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "right"),
    [
        ("exact_match", "ValueError", " ValueError\n", True),
        ("exact_match", "ValueError", "ValueError.", False),
        ("exact_match", "ValueError", "valueerror", False),
        ("normalized_match", "the café", "The  Cafe!", True),
        ("normalized_match", "cafe\u0301", "caf\u00e9", True),
        ("normalized_match", "cat", "cart", False),
        ("normalized_match", "A", "a.", True),  # a choice, not an article
        ("normalized_match", "A", "the", False),
        ("normalized_match", "!?", "?!", False),  # punctuation counts if there is nothing else
        ("contains", "ValueError", "it raises a valueerror, always", True),
        ("contains", "ValueError", "TypeError", False),
        ("contains", "", "anything", False),
        ("regular_expression", "Answer: 42", "So the answer  42 it is", True),
        ("regular_expression", "Answer: 42", "Answer: 43", False),
        ("numeric", "It is 1234.5", "about $1,234.50", True),
        ("numeric", "1234567", "1'234'567", True),
        ("numeric", "-5", "minus: \u22125", True),
        ("numeric", "0.5", "50 %", True),
        ("numeric", "50%", "50", True),
        ("numeric", "50%", "5000%", False),
        ("numeric", "3", "5-3", True),
        ("numeric", "1e3", "1000.0", True),
        ("numeric", "7", "no idea", False),
        ("numeric", "7", "NaN or infinity", False),
        ("numeric", "9" * 60 + "1", "9" * 60 + "2", True),  # within the relative tolerance
        ("json_valid", "{}", '{"city": "Bern", "celsius": 12.5}', True),
        ("json_valid", "{}", '{"city": "Bern", "celsius": "12"}', False),
        ("json_valid", "{}", '{"city": "Bern", "celsius": 1, "x": 1}', False),
        ("json_valid", "{}", '{"city": "Bern", "celsius": NaN}', False),
        ("json_valid", "{}", '{"city": "Bern", "city": "Basel", "celsius": 1}', False),
        ("json_valid", "{}", "", False),
        ("python_parses", "", "x = 1", True),
        ("python_parses", "", " x = '\\d'", True),  # gives a warning, but is valid Python
        ("python_parses", "", "Here:\n```python\ndef f():\n    return 1\n```\nDone.", True),
        ("python_parses", "", "def f(:", False),
        ("python_parses", "", "# nothing", False),
        ("python_parses", "", "", False),
        ("classification", "KeyError", "KeyError ", True),
        ("classification", "KeyError", "a KeyError", False),
    ],
)
def test_answers_are_right_or_wrong(kind: str, reference: str, answer: str, right: bool, example: MakeExample) -> None:
    """The scorers are those of KINDS, with one line per case."""
    made = [example(answer=reference), example(answer="Answer: other 1")]
    scored = built(made, it=asked(kind)).score(made, answers(answer, "x"), answers(answer, "x"), {})
    (found,) = scored.candidate[0].scores.values()
    assert found == float(right)


def test_the_larger_tolerance_applies() -> None:
    """The tolerance is relative to the reference, and includes both ends."""
    assert numeric("1.1", "1", absolute_tolerance=0.1, relative_tolerance=0.0)
    assert not numeric("1.11", "1", absolute_tolerance=0.1, relative_tolerance=0.0)
    assert numeric("110", "100", absolute_tolerance=0.1, relative_tolerance=0.1)
    assert not numeric("111", "100", absolute_tolerance=0.1, relative_tolerance=0.1)
    assert not numeric("9" * 60 + "1", "9" * 60 + "2", absolute_tolerance=0.0, relative_tolerance=0.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("v2", None), ("1.2.3", "1.2"), ("...5", "5"), ("-.5", "-0.5")),
        *(("1,2345", "2345"), ("is 5.", "5"), ("1-2-3", "3")),
    ],
)
def test_the_last_number_is_found(text: str, number: str | None) -> None:
    """Versions, ranges and full stops are not part of a number."""
    found = last_number(text)
    assert (found and str(found[0])) == number


@given(ANYTHING, ANYTHING)
def test_exact_implies_the_laxer_matches(answer: str, reference: str) -> None:
    """Each scorer is laxer than the previous one and accepts everything that it accepts."""
    ignore = ["case", "punctuation", "articles", "accents"]
    for text in (reference, f" {reference}\n", answer):
        if exact_match(text, reference):
            assert normalized_match(text, reference, [])
            assert contains(text, reference, ignore_case=False)
            assert min(chrf(text, reference), bleu(text, reference), rouge_l(text, reference)) == 1.0
            assert last_number(reference) is None or numeric(text, reference, 0.0, 0.0) or "e" in text.lower()
        if normalized_match(text, reference, []):
            assert normalized_match(text, reference, ["accents"])
        if contains(text, reference, ignore_case=False):
            assert contains(text, reference, ignore_case=True)
    assert normalized_match(reference, reference, ignore)


# ------------------------------------------------------------------------------------------------------- tool calls

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}}}
CALLS = Message("assistant", "", (CALL,))
TEXT = '{"city":"Bern","days":2}'
PLAIN = '{"name": "weather", "arguments": {"days": 2.0, "city": "Bern"}}'


@pytest.mark.parametrize(
    "answer",
    [
        CALLS.text,
        PLAIN,
        f"I look it up.\n<tool_call>\n{PLAIN}\n</tool_call>",
        f"[TOOL_CALLS] [{PLAIN}]",
        PLAIN.replace("arguments", "parameters"),
        json.dumps({"tool_calls": [{**CALL, "function": {"name": "weather", "arguments": TEXT}}]}),
        f"{{not json}} [1, 2] {PLAIN}",
    ],
)
def test_a_call_is_found_in_every_wrapping(answer: str) -> None:
    """The tags that a template puts around a call do not matter."""
    assert same_calls(answer, CALLS)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The weather is fine.",
        PLAIN + PLAIN,
        PLAIN.replace("Bern", "Basel"),
        PLAIN.replace("2.0", "true"),
        PLAIN.replace("2.0", '"2"'),
        PLAIN.replace("weather", "news"),
        PLAIN.replace(', "city": "Bern"', ""),
        PLAIN[:-1],
    ],
)
def test_a_different_call_is_wrong(answer: str) -> None:
    """Cases: another name, another value or type, an additional call, or none."""
    assert not same_calls(answer, CALLS)


def test_calls_are_compared_in_order_and_text_has_none() -> None:
    """If the reference has no calls, any text without calls is right."""
    second = {"type": "function", "function": {"name": "news", "arguments": {}}}
    both = Message("assistant", "", (CALL, second))
    other = '{"name": "news", "arguments": {}}'
    assert same_calls(PLAIN + other, both)
    assert not same_calls(other + PLAIN, both)
    assert same_calls("Hello.", Message("assistant", "Hi."))
    assert not same_calls(PLAIN, Message("assistant", "Hi."))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_arguments_are_equal_to_themselves(value: Any) -> None:
    """This holds for all JSON values; NaN is not one."""
    call = {"function": {"name": "f", "arguments": {"x": value}}}
    text = json.dumps({"name": "f", "arguments": {"x": value}})
    assert same_calls(text, Message("assistant", "", (call,))) == ("NaN" not in text)


# ------------------------------------------------------------------------------------------------------------ texts

ENGLISH = st.lists(st.sampled_from(["the", "Cat", "sat,", "on", "mat.", "it's", "2", "-"]), max_size=12).map(" ".join)


@given(ENGLISH, ENGLISH)
def test_rouge_l_equals_rouge_scores(answer: str, reference: str) -> None:
    """In English the figure is equal, although computed bit-parallel by rows and not by cells."""
    if answer.strip() != reference.strip():
        expected = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
        assert rouge_l(answer, reference) == pytest.approx(expected)


def test_words_of_every_alphabet_are_found() -> None:
    """rouge-score would find no words in these alphabets, and give 0 for nearly right answers."""
    assert words("Привет, naïve 漢字!") == ["привет", "naïve", "漢", "字"]
    assert rouge_l("добрый день", "добрый вечер") == 0.5


@given(ANYTHING, ANYTHING)
def test_similarities_lie_between_0_and_1(answer: str, reference: str) -> None:
    """This holds for arbitrary texts."""
    for similarity in (chrf, bleu, rouge_l):
        assert 0.0 <= similarity(answer, reference) <= 1.0


# ---------------------------------------------------------------------------------------------------- hostile answers


@pytest.fixture(scope="module")
def ready() -> tuple[Scorers, list[Example]]:
    """Return every scorer except the judge, and one example that all of them can score."""
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = (Message("user", "Hi"), Message("assistant", "answer: 1", (call,)))
    other = (Message("user", "Ho"), Message("assistant", "answer: 2"))
    made = [Example("1", "rows", 1, "a", messages), Example("2", "rows", 2, "a", other)]
    return built(made, **{kind: asked(kind) for kind in KINDS}), made


def checked(scored: Scored, count: int) -> None:
    """Check that all scores exist and are within the bounds of their metrics."""
    assert not scored.problems
    for answer in scored.candidate:
        assert len(answer.scores) == count
        assert all(value is not None and 0.0 <= value <= 1.0 for value in answer.scores.values())


@given(text=ANYTHING)
def test_arbitrary_text_is_scored(text: str, ready: tuple[Scorers, list[Example]]) -> None:
    """Whatever a model answers, every scorer returns a score."""
    scorers, made = ready
    checked(scorers.score(made, answers(text, text), answers(text, text), {}), len(KINDS))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_hostile_texts_are_scored_quickly(text: str, ready: tuple[Scorers, list[Example]]) -> None:
    """Megabytes of brackets, marks, digits and nesting are scored as wrong within seconds by all scorers together."""
    scorers, made = ready
    started = time.process_time()
    checked(scorers.score(made[:1], answers("x"), answers(text), {}), len(KINDS))
    assert time.process_time() - started < 15


def test_the_search_for_calls_is_not_quadratic() -> None:
    """Each text starts a thousand truncated values; parsing all of them would take minutes."""
    started = time.process_time()
    assert find_calls(("[[" + "1," * 1000) * 500) == []
    assert len(find_calls(f"{PLAIN}\n" * 20_000)) == 20_000
    assert time.process_time() - started < 10


@pytest.mark.parametrize("source", ["9" * 5000, "'a' " * 40_000, "a" * 300_000, "f'{" * 100, "\x00", "x = '\ud800'"])
def test_python_is_parsed_but_not_run(source: str) -> None:
    """Limits of Python's parser do not raise an error."""
    assert python_parses(source) in (True, False)


def test_ten_thousand_short_answers_take_seconds(ready: tuple[Scorers, list[Example]]) -> None:
    """All 13 scorers on 800 answers give more than 10,000 scores."""
    scorers, made = ready
    many = [made[0]] * 800
    replies = answers(*(f"The answer: {number}, by and large, in so many words." for number in range(800)))
    started = time.process_time()
    scorers.score(many, replies, replies, {})
    assert time.process_time() - started < 20
