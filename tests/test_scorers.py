"""Scorers: what is right and what is wrong, what any text does to them, and what is told before a model is loaded."""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rouge_score.rouge_scorer import RougeScorer

from finetune.config_scorers import AnyScorer, metrics_of
from finetune.errors import ConfigError
from finetune.records import Answer, Example, Message
from finetune.score.matching import contains, exact_match, last_number, normalized_match, numeric
from finetune.score.schemas import make_validator
from finetune.score.scorers import build_scorers
from finetune.score.scoring import Scored, Scorers
from finetune.score.structured import find_calls, python_parses, same_calls
from finetune.score.texts import bleu, chrf, rouge_l, words

ROOT = Path(__file__).parents[1]
MakeExample = Callable[..., Example]
KINDS: dict[str, dict[str, Any]] = {
    "exact_match": {},
    "normalized_match": {"ignore": ["case", "punctuation", "articles", "accents"]},
    "contains": {"ignore_case": True},
    "regular_expression": {"pattern": r"(?i)answer:?\s*(\S+)|(a|a)*(b+)+$"},
    "numeric": {"absolute_tolerance": 0.0, "relative_tolerance": 1e-6},
    "json_valid": {"schema_file": "answer.schema.json"},
    "python_parses": {},
    "tool_calls": {},
    "classification": {"by": "generation", "labels": None},
    "bleu": {},
    "chrf": {},
    "rouge_l": {},
    "function": {"function": "scorers.example.share_of_words", "lowest": 0.0, "highest": 1.0},
}
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


def asked(kind: str, of: list[str] | None = None, **changes: Any) -> Any:
    """A scorer's section as params.yaml gives it."""
    section = {"scorer": kind, "of": of, **KINDS.get(kind, {}), **changes}
    return TypeAdapter(AnyScorer).validate_json(json.dumps(section))


def built(examples: list[Example], root: Path = ROOT, **scorers: Any) -> Scorers:
    """The scorers, ready; each under its name."""
    return build_scorers(scorers, {}, examples, root)


def answers(*texts: str) -> list[Answer]:
    """Answers of these texts."""
    return [Answer(text, tokens=1, finished=True) for text in texts]


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
        ("normalized_match", "!?", "?!", False),  # of nothing but punctuation, the punctuation counts
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
        ("python_parses", "", " x = '\\d'", True),  # warns, and is Python
        ("python_parses", "", "Here:\n```python\ndef f():\n    return 1\n```\nDone.", True),
        ("python_parses", "", "def f(:", False),
        ("python_parses", "", "# nothing", False),
        ("python_parses", "", "", False),
        ("classification", "KeyError", "KeyError ", True),
        ("classification", "KeyError", "a KeyError", False),
    ],
)
def test_right_or_wrong(kind: str, reference: str, answer: str, right: bool, example: MakeExample) -> None:
    """One line an idea; the scorers are those of KINDS."""
    made = [example(answer=reference), example(answer="Answer: other 1")]
    scored = built(made, it=asked(kind)).score(made, answers(answer, "x"), answers(answer, "x"), {})
    (found,) = scored.candidate[0].scores.values()
    assert found == float(right)


def test_tolerance_is_the_larger_one() -> None:
    """Relative to the reference, and both ends belong to it."""
    assert numeric("1.1", "1", absolute_tolerance=0.1, relative_tolerance=0.0)
    assert not numeric("1.11", "1", absolute_tolerance=0.1, relative_tolerance=0.0)
    assert numeric("110", "100", absolute_tolerance=0.1, relative_tolerance=0.1)
    assert not numeric("111", "100", absolute_tolerance=0.1, relative_tolerance=0.1)
    assert not numeric("9" * 60 + "1", "9" * 60 + "2", absolute_tolerance=0.0, relative_tolerance=0.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("v2", None),
        ("1.2.3", "1.2"),
        ("...5", "5"),
        ("-.5", "-0.5"),
        ("1,2345", "2345"),
        ("is 5.", "5"),
        ("1-2-3", "3"),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    """A version, a range and a full stop are no part of a number."""
    found = last_number(text)
    assert (found and str(found[0])) == number


@given(ANYTHING, ANYTHING)
def test_exact_implies_the_laxer_matches(answer: str, reference: str) -> None:
    """Each step forgives more; none takes back what a stricter one has given."""
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
PLAIN = '{"name": "weather", "arguments": {"days": 2.0, "city": "Bern"}}'


@pytest.mark.parametrize(
    "answer",
    [
        CALLS.text,
        PLAIN,
        f"I look it up.\n<tool_call>\n{PLAIN}\n</tool_call>",
        f"[TOOL_CALLS] [{PLAIN}]",
        PLAIN.replace("arguments", "parameters"),
        json.dumps(
            {"tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"city":"Bern","days":2}'}}]}
        ),
        f"{{not json}} [1, 2] {PLAIN}",
    ],
)
def test_a_call_is_found_in_every_wrapping(answer: str) -> None:
    """Which tags a template puts around it says nothing about what is called."""
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
def test_another_call_is_wrong(answer: str) -> None:
    """Another name, another value or type, one call more, or none."""
    assert not same_calls(answer, CALLS)


def test_calls_count_in_their_order_and_text_calls_nothing() -> None:
    """A reference without calls is right as any text without calls."""
    second = {"type": "function", "function": {"name": "news", "arguments": {}}}
    both = Message("assistant", "", (CALL, second))
    other = '{"name": "news", "arguments": {}}'
    assert same_calls(PLAIN + other, both)
    assert not same_calls(other + PLAIN, both)
    assert same_calls("Hello.", Message("assistant", "Hi."))
    assert not same_calls(PLAIN, Message("assistant", "Hi."))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_arguments_are_equal_to_themselves(value: Any) -> None:
    """As JSON writes and reads them, but for NaN, which is none."""
    call = {"function": {"name": "f", "arguments": {"x": value}}}
    text = json.dumps({"name": "f", "arguments": {"x": value}})
    assert same_calls(text, Message("assistant", "", (call,))) == ("NaN" not in text)


# ------------------------------------------------------------------------------------------------------------ texts

ENGLISH = st.lists(st.sampled_from(["the", "Cat", "sat,", "on", "mat.", "it's", "2", "-"]), max_size=12).map(" ".join)


@given(ENGLISH, ENGLISH)
def test_rouge_l_is_rouge_scores(answer: str, reference: str) -> None:
    """In English the same figure, computed row by row as bits and not cell by cell."""
    if answer.strip() != reference.strip():
        expected = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
        assert rouge_l(answer, reference) == pytest.approx(expected)


def test_words_are_of_every_alphabet() -> None:
    """rouge-score would see no word at all here, and give 0 for what is nearly right."""
    assert words("Привет, naïve 漢字!") == ["привет", "naïve", "漢", "字"]
    assert rouge_l("добрый день", "добрый вечер") == 0.5


@given(ANYTHING, ANYTHING)
def test_similarities_lie_between_0_and_1(answer: str, reference: str) -> None:
    """Whatever the texts."""
    for similarity in (chrf, bleu, rouge_l):
        assert 0.0 <= similarity(answer, reference) <= 1.0


# ---------------------------------------------------------------------------------------------------- hostile answers


@pytest.fixture(scope="module")
def ready() -> tuple[Scorers, list[Example]]:
    """Every scorer but the judge, on one example that all of them can score."""
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = (Message("user", "Hi"), Message("assistant", "answer: 1", (call,)))
    other = (Message("user", "Ho"), Message("assistant", "answer: 2"))
    made = [Example("1", "rows", 1, "a", messages), Example("2", "rows", 2, "a", other)]
    return built(made, **{kind: asked(kind) for kind in KINDS}), made


def checked(scored: Scored, count: int) -> None:
    """All scores are there, and within the bounds of their metrics."""
    assert not scored.problems
    for answer in scored.candidate:
        assert len(answer.scores) == count
        assert all(value is not None and 0.0 <= value <= 1.0 for value in answer.scores.values())


@given(text=ANYTHING)
def test_no_text_is_beyond_scoring(text: str, ready: tuple[Scorers, list[Example]]) -> None:
    """A model may answer anything, and each answer gets a score from every scorer."""
    scorers, made = ready
    checked(scorers.score(made, answers(text, text), answers(text, text), {}), len(KINDS))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_hostile_texts_take_no_hostile_time(text: str, ready: tuple[Scorers, list[Example]]) -> None:
    """Megabytes of brackets, marks, digits and nesting: wrong, in seconds, for all scorers together."""
    scorers, made = ready
    started = time.perf_counter()
    checked(scorers.score(made[:1], answers("x"), answers(text), {}), len(KINDS))
    assert time.perf_counter() - started < 15


def test_the_search_for_calls_is_no_quadratic_one() -> None:
    """Each of these starts a thousand values that break off at the end; reading them all would take minutes."""
    started = time.perf_counter()
    assert find_calls(("[[" + "1," * 1000) * 500) == []
    assert len(find_calls(f"{PLAIN}\n" * 20_000)) == 20_000
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("source", ["9" * 5000, "'a' " * 40_000, "a" * 300_000, "f'{" * 100, "\x00", "x = '\ud800'"])
def test_python_is_only_read(source: str) -> None:
    """No limit of the parser is an error of ours."""
    assert python_parses(source) in (True, False)


def test_ten_thousand_short_answers_take_seconds(ready: tuple[Scorers, list[Example]]) -> None:
    """All 13 scorers on 800 answers: more than 10,000 scores."""
    scorers, made = ready
    many = [made[0]] * 800
    told = answers(*(f"The answer: {number}, by and large, in so many words." for number in range(800)))
    started = time.perf_counter()
    scorers.score(many, told, told, {})
    assert time.perf_counter() - started < 20


# --------------------------------------------------------------------------------------------------- keys and failures


def test_only_what_of_names_gets_the_key(example: MakeExample) -> None:
    """By agent or by source; the metric counts the examples with its key."""
    made = [example(agent="a"), example(agent="b", source="more"), example(agent="c", answer="KeyError")]
    scorers = built(
        made,
        some=asked("exact_match", of=["a", "more"]),
        classes=asked("classification", of=["a", "c"]),
    )
    told = answers("ValueError", "x", "ValueError")
    scored = scorers.score(made, told, told, {}).candidate
    assert [answer.scores for answer in scored] == [
        {"some": 1.0, "classes.accuracy": 1.0},
        {"some": 0.0},
        {"classes.accuracy": 0.0},
    ]
    assert [answer.labels for answer in scored] == [{"classes": "ValueError"}, {}, {"classes": "ValueError"}]
    wanted = {
        metric.scored_as for metric in metrics_of({name: one.asked for name, one in scorers.built.items()}).values()
    }
    assert {key for answer in scored for key in answer.scores} == wanted - {None}


def test_a_failure_never_flatters_the_candidate(example: MakeExample) -> None:
    """The candidate's is the lowest score, the baseline's none, which leaves the comparison unmeasured."""
    made = [example(), example(answer="KeyError")]
    scorers = built(made, it=asked("function", lowest=-1.0), classes=asked("classification"))
    failed = [replace(answer, failed="timeout") for answer in answers("", "")]
    scored = scorers.score(made, failed, failed, {})
    assert scored.candidate[0].scores == {"it": -1.0, "classes.accuracy": 0.0}
    assert scored.baseline[0].scores == {"it": None, "classes.accuracy": None}
    assert scored.candidate[0].labels == scored.baseline[0].labels == {"classes": None}
    assert [(one.scorer, one.side, one.count, one.reason) for one in scored.problems] == [
        ("it", "baseline", 2, "no answer: timeout"),
        ("classes", "baseline", 2, "no answer: timeout"),
    ]


def test_likeliest_labels_come_from_the_model(example: MakeExample) -> None:
    """The text says nothing then; a side that can't be asked has no score."""
    made = [example(), example(answer="KeyError")]
    scorers = built(made, it=asked("classification", by="likelihood"))
    assert scorers.by_likelihood["it"].classes == ("KeyError", "ValueError")
    told = {"candidate": {"it": ["ValueError", "ValueError"]}}
    scored = scorers.score(made, answers("", ""), answers("nothing", "nothing"), told)
    assert [answer.scores["it.accuracy"] for answer in scored.candidate] == [1.0, 0.0]
    assert scored.baseline[0].scores == {"it.accuracy": None}
    assert scored.problems[0].reason == "this side was not asked which class it finds likeliest"


def test_a_reference_that_can_t_be_scored_is_told(example: MakeExample) -> None:
    """One row without a number does not stop the run; it is no zero either."""
    made = [example(answer="12"), example(answer="none")]
    scored = built(made, it=asked("numeric")).score(made, answers("12", "12"), answers("12", "12"), {})
    assert [answer.scores["it"] for answer in scored.candidate] == [1.0, None]
    assert (scored.problems[1].count, scored.problems[1].reason) == (1, "the reference holds no number")


# ---------------------------------------------------------------------------------------------- a function of one's own


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with scorers of its own."""
    (tmp_path / "scorers").mkdir()
    (tmp_path / "scorers/__init__.py").touch()
    (tmp_path / "scorers/own.py").write_text(
        "import sys\nfrom scorers.helper import HALF\n"
        "def half(answer, reference, example): return HALF\n"
        "def right(answer, reference, example): return answer == reference and example['agent'] == 'namer'\n"
        "def changes(answer, reference, example): example['messages'].clear(); return 1\n"
        "def raises(answer, reference, example): raise KeyError('gone')\n"
        "def leaves(answer, reference, example): sys.exit(1)\n"
        "def text(answer, reference, example): return '1'\n"
        "def nan(answer, reference, example): return float('nan')\n"
        "def high(answer, reference, example): return 1.5\n"
        "def huge(answer, reference, example): return 10 ** 5000\n"
        "def deep(answer, reference, example): return deep(answer, reference, example)\n"
        "NUMBER = 5\n",
        encoding="utf-8",
    )
    (tmp_path / "scorers/helper.py").write_text("HALF = 0.5\n", encoding="utf-8")
    (tmp_path / "scorers/broken.py").write_text("def f(:\n", encoding="utf-8")
    (tmp_path / "scorers/leaves.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("half", 0.5, None),
        ("right", 1.0, None),
        ("changes", 1.0, None),
        ("raises", None, "KeyError: 'gone'"),
        ("leaves", None, "SystemExit: 1"),
        ("text", None, "gave str, which is no number"),
        ("nan", None, "gave nan, which is not from 0 to 1"),
        ("high", None, "gave 1.5, which is not from 0 to 1"),
        ("huge", None, "ValueError: Exceeds the limit"),
        ("deep", None, "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_what_a_function_gives(
    name: str, value: float | None, reason: str | None, tree: Path, example: MakeExample
) -> None:
    """A number in the bounds is the score; anything else is told, and stops nothing."""
    made = [example()]
    ready = built(made, tree, own=asked("function", function=f"scorers.own.{name}"))
    scored = ready.score(made, answers("ValueError"), answers("ValueError"), {})
    assert scored.candidate[0].scores == {"own": value}
    assert [one.reason.startswith(reason or "") for one in scored.problems] == ([True, True] if reason else [])
    assert len(made[0].messages) == 3


def test_functions_are_of_this_tree(tree: Path, example: MakeExample) -> None:
    """Not of another tree's `scorers` that the same process has imported; and sys.path is as it was."""
    made, before = [example()], list(sys.path)
    built(made, it=asked("function"))
    built(made, tree, it=asked("function", function="scorers.own.half"))
    built(made, it=asked("function"))
    assert sys.path == before
    assert importlib.util.find_spec("scorers") is not None


def test_all_that_is_wrong_is_told_at_once(tree: Path, example: MakeExample, monkeypatch: Any) -> None:
    """Before a model is loaded, each with its key."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (tree / "scorers/bad.json").write_text('{"type": "foo"}', encoding="utf-8")
    (tree / "scorers/remote.json").write_text('{"$ref": "https://example.com/schema"}', encoding="utf-8")
    (tree / "scorers/no.json").write_text("{", encoding="utf-8")
    judge = {"url": "http://localhost:1/v1", "model": "m", "timeout_seconds": 1.0, "instructions": "Be kind."}
    with pytest.raises(ConfigError) as caught:
        built(
            [example(agent="a"), example("other", agent="b")],
            tree,
            a=asked("regular_expression", pattern="(a"),
            b=asked("regular_expression", pattern="(no such)"),
            c=asked("numeric"),
            d=asked("json_valid", schema_file="bad.json"),
            e=asked("json_valid", schema_file="remote.json"),
            f=asked("json_valid", schema_file="no.json"),
            g=asked("json_valid", schema_file="missing.json"),
            h=asked("json_valid", schema_file="../pyproject.toml"),
            i=asked("function", function="scorers.own.nothing"),
            j=asked("function", function="scorers.own.NUMBER"),
            k=asked("function", function="scorers.broken.f"),
            l=asked("function", function="scorers.leaves.f"),
            m=asked("function", function="scorers.missing.f"),
            n=asked("classification"),
            o=asked("classification", labels=["KeyError", "TypeError"]),
            p=asked("judge", api_key_variable="NO_SUCH_KEY", **judge),
        )
    lines = str(caught.value).splitlines()
    starts = [
        "a.pattern: missing ): (a",
        "b: the pattern is not found in the reference",
        "c: the reference holds no number, in any of 2 test examples; correct it, or name others in `of`",
        "d.schema_file: scorers/bad.json is no JSON schema: $.type: 'foo'",
        "e.schema_file: scorers/remote.json refers to 'https://example.com/schema', which is not in it; nothing is f",
        "f.schema_file: scorers/no.json is not JSON",
        "g.schema_file: scorers/missing.json can't be read (No such file or directory)",
        "h.schema_file: ../pyproject.toml is not in scorers/; name a file there",
        "i.function: scorers.own has no function nothing",
        "j.function: scorers.own has no function NUMBER",
        "k.function: scorers.broken can't be imported (SyntaxError",
        "l.function: scorers.leaves can't be imported (SystemExit: 3)",
        "m.function: scorers.missing can't be imported (ModuleNotFoundError",
        "n: has 1 classes, where 2 to 1,000 are a classification; name the labels, or in `of` the agents that classify",
        "o.labels: lacks 'ValueError', which is the reference of a test example",
        "p.api_key_variable: the environment variable NO_SUCH_KEY is not set",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"params.yaml: evaluate.scorers.{start}"), line


def test_classes_are_those_of_the_agents_and_the_test_split(example: MakeExample) -> None:
    """What prepare has counted for an agent that the scorer is not of is no class of it."""
    made = [example(agent="a"), example(agent="b", answer="close")]
    known = {"a": ["KeyError"], "b": ["open"]}
    ready = build_scorers({"it": asked("classification", of=["a"])}, known, made, ROOT)
    assert ready.built["it"].classes == ("KeyError", "ValueError")


def test_too_many_classes_are_no_classification(example: MakeExample) -> None:
    """A likelihood for each of them would take the day; and nobody reads such a table."""
    known = {"namer": [f"Error{number}" for number in range(1_000)]}
    with pytest.raises(ConfigError, match="has 1,001 classes"):
        build_scorers({"it": asked("classification")}, known, [example()], ROOT)


# ---------------------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "#/$defs/none"}, "refers to '/$defs/none', which is not in it; nothing is fetched"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "refers to 'other.json', which is not in it"),
        ({"$schema": "http://example.com/mine"}, "names a $schema that is not known: 'http://example.com/mine'"),
        ({"pattern": "("}, r"is no JSON schema: $.pattern"),
        ([], "is no JSON schema: it must be an object"),
    ],
)
def test_bad_schemas_are_told(schema: Any, problem: str) -> None:
    """When the run starts, not by an answer that happens to reach the bad part."""
    with pytest.raises(ValueError, match=r".") as caught:
        make_validator(schema)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("schema", "value", "valid"),
    [
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "foo"}, False),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {"type": "null"}}}, 5, True),
        ({"$id": "http://x.y/z", "$defs": {"q": {"$id": "q", "type": "null"}}, "$ref": "q"}, 5, False),
        ({"patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False}, {"ab": None}, True),
        ({"patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False}, {"ab": 1}, False),
        ({"patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False}, {"b": None}, False),
        ({"pattern": "^(?=a)"}, "ab", True),
    ],
)
def test_schemas_of_several_drafts(schema: Any, value: Any, valid: bool) -> None:
    """The standard's own schemas are at hand without the network; patterns are matched as jsonschema does."""
    assert make_validator(schema).is_valid(value) is valid


def test_a_catastrophic_pattern_is_told(tree: Path, example: MakeExample) -> None:
    """The answer is one that Python's `re` would be at for centuries."""
    (tree / "scorers/slow.json").write_text('{"pattern": "^(a|aa)+$"}', encoding="utf-8")
    made = [example()]
    ready = built(made, tree, it=asked("json_valid", schema_file="slow.json"))
    hostile = json.dumps("a" * 100 + "b")
    scored = ready.score(made, answers("1"), answers(hostile), {})
    assert scored.candidate[0].scores == {"it": None}
    assert [one.reason for one in scored.problems] == ["a pattern of the schema takes more than 1 s on it"]
