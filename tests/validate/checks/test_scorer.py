"""Which examples a scorer covers, and the problems reported before a model is loaded."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.answers.schemas import make_validator
from finetune.config.scorers import metrics_of
from finetune.errors import ConfigError
from finetune.score.scorers import build_scorers
from tests.builders.asked_scorers import ROOT, MakeExample, answers, asked, built

# --------------------------------------------------------------------------------------------------- keys and failures


def test_only_selected_examples_get_the_key(example: MakeExample) -> None:
    """Examples are selected by agent or source; the metric counts the examples with its key."""
    made = [example(agent="a"), example(agent="b", source="more"), example(agent="c", answer="KeyError")]
    scorers = built(made, some=asked("exact_match", of=["a", "more"]), classes=asked("classification", of=["a", "c"]))
    told = answers("ValueError", "x", "ValueError")
    scored = scorers.score(made, told, told, {}).candidate
    first, *others = [answer.scores for answer in scored]
    assert first == {"some": 1.0, "classes.accuracy": 1.0} and others == [{"some": 0.0}, {"classes.accuracy": 0.0}]
    assert [answer.labels for answer in scored] == [{"classes": "ValueError"}, {}, {"classes": "ValueError"}]
    wanted = {
        metric.scored_as for metric in metrics_of({name: one.asked for name, one in scorers.built.items()}).values()
    }
    assert {key for answer in scored for key in answer.scores} == wanted - {None}


def test_a_failure_never_favours_the_candidate(example: MakeExample) -> None:
    """A failure gives the candidate the lowest score, and the baseline none, so the comparison is unmeasured."""
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
    """The label comes from likelihoods and not from the text; a side without likelihoods has no score."""
    made = [example(), example(answer="KeyError")]
    scorers = built(made, it=asked("classification", by="likelihood"))
    assert scorers.by_likelihood["it"].classes == ("KeyError", "ValueError")
    told = {"candidate": {"it": ["ValueError", "ValueError"]}}
    scored = scorers.score(made, answers("", ""), answers("nothing", "nothing"), told)
    assert [answer.scores["it.accuracy"] for answer in scored.candidate] == [1.0, 0.0]
    assert scored.baseline[0].scores == {"it.accuracy": None}
    assert scored.problems[0].reason == "this side has no class likelihoods"


def test_a_reference_without_a_score_is_reported(example: MakeExample) -> None:
    """A row without a number does not stop the run, and does not count as zero."""
    made = [example(answer="12"), example(answer="none")]
    scored = built(made, it=asked("numeric")).score(made, answers("12", "12"), answers("12", "12"), {})
    assert [answer.scores["it"] for answer in scored.candidate] == [1.0, None]
    assert (scored.problems[1].count, scored.problems[1].reason) == (1, "the reference contains no number")


# ---------------------------------------------------------------------------------------------- user-defined functions


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Create a working tree with its own scorers."""
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
        ("text", None, "returned str, not a number"),
        ("nan", None, "returned nan, which is outside 0 to 1"),
        ("high", None, "returned 1.5, which is outside 0 to 1"),
        ("huge", None, "ValueError: Exceeds the limit"),
        ("deep", None, "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_only_numbers_within_bounds_are_scores(
    name: str, value: float | None, reason: str | None, tree: Path, example: MakeExample
) -> None:
    """A number within the bounds is the score; anything else is reported and does not stop the run."""
    made = [example()]
    ready = built(made, tree, own=asked("function", function=f"scorers.own.{name}"))
    scored = ready.score(made, answers("ValueError"), answers("ValueError"), {})
    assert scored.candidate[0].scores == {"own": value}
    assert [one.reason.startswith(reason or "") for one in scored.problems] == ([True, True] if reason else [])
    assert len(made[0].messages) == 3


def test_functions_are_loaded_from_this_tree(tree: Path, example: MakeExample) -> None:
    """They do not come from another imported `scorers` package, and sys.path is restored."""
    made, before = [example()], list(sys.path)
    built(made, it=asked("function"))
    built(made, tree, it=asked("function", function="scorers.own.half"))
    built(made, it=asked("function"))
    assert sys.path == before
    assert importlib.util.find_spec("scorers") is not None


def test_all_problems_are_reported_at_once(tree: Path, example: MakeExample, monkeypatch: Any) -> None:
    """All problems are reported before a model is loaded, each with its key."""
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
        "b: the pattern does not match the reference",
        "c: the reference contains no number, in any of 2 test examples; fix it, or name other agents in `of`",
        "d.schema_file: scorers/bad.json is not a JSON schema: $.type: 'foo'",
        "e.schema_file: scorers/remote.json refers to 'https://example.com/schema', which it does not "
        "contain; references are not d",
        "f.schema_file: scorers/no.json is not JSON",
        "g.schema_file: scorers/missing.json can't be read (No such file or directory)",
        "h.schema_file: ../pyproject.toml is not in scorers/; put the file there",
        "i.function: scorers.own has no function nothing",
        "j.function: scorers.own has no function NUMBER",
        "k.function: scorers.broken can't be imported (SyntaxError",
        "l.function: scorers.leaves can't be imported (SystemExit: 3)",
        "m.function: scorers.missing can't be imported (ModuleNotFoundError",
        "n: has 1 classes; a classification needs 2 to 1,000; list the labels, or list in `of` the "
        "agents that classify",
        "o.labels: lacks 'ValueError', the reference of a test example",
        "p.api_key_variable: the environment variable NO_SUCH_KEY is not set",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"params.yaml: evaluate.scorers.{start}"), line


def test_classes_are_those_of_the_agents_and_the_test_split(example: MakeExample) -> None:
    """Labels that prepare counted for other agents are not classes of the scorer."""
    made = [example(agent="a"), example(agent="b", answer="close")]
    known = {"a": ["KeyError"], "b": ["open"]}
    ready = build_scorers({"it": asked("classification", of=["a"])}, known, made, ROOT)
    assert ready.built["it"].classes == ("KeyError", "ValueError")


def test_too_many_classes_are_refused(example: MakeExample) -> None:
    """Likelihoods of all labels would take too long, and the table would be unreadable."""
    known = {"namer": [f"Error{number}" for number in range(1_000)]}
    with pytest.raises(ConfigError, match="has 1,001 classes"):
        build_scorers({"it": asked("classification")}, known, [example()], ROOT)


# ---------------------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"$ref": "#"}, "refers to itself endlessly"),
        ({"$ref": "#/$defs/none"}, "refers to '/$defs/none', which it does not contain; references are not downloaded"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "refers to 'other.json', which it does not contain"),
        ({"$schema": "http://example.com/mine"}, "has an unsupported $schema: 'http://example.com/mine'"),
        ({"pattern": "("}, r"is not a JSON schema: $.pattern"),
        ([], "is not a JSON schema: it must be an object"),
    ],
)
def test_invalid_schemas_are_reported(schema: Any, problem: str) -> None:
    """Invalid schemas are reported at the start, not by the first answer that reaches the invalid part."""
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
def test_schemas_of_several_drafts_are_supported(schema: Any, value: Any, valid: bool) -> None:
    """The standard's own schemas are available offline; patterns are matched as in jsonschema."""
    assert make_validator(schema).is_valid(value) is valid


def test_a_catastrophic_pattern_is_reported(tree: Path, example: MakeExample) -> None:
    """Python's `re` would need centuries for this answer."""
    (tree / "scorers/slow.json").write_text('{"pattern": "^(a|aa)+$"}', encoding="utf-8")
    made = [example()]
    ready = built(made, tree, it=asked("json_valid", schema_file="slow.json"))
    hostile = json.dumps("a" * 100 + "b")
    scored = ready.score(made, answers("1"), answers(hostile), {})
    assert scored.candidate[0].scores == {"it": None}
    assert [one.reason for one in scored.problems] == ["a pattern of the schema takes longer than 1 s on it"]
