"""A recorded baseline is paired with the test set by id or prompt, and refused if it is of another test set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config.evaluate import RecordedSpec
from finetune.errors import DataError
from finetune.evaluate.recorded import RecordedSide, open_recorded
from finetune.files.hashing import sha256_file
from finetune.records.examples import Example


@pytest.fixture
def examples(example: Callable[..., Example]) -> list[Example]:
    """Return two examples."""
    return [example("one"), example("two", "KeyError")]


def opened(root: Path, rows: list[Any], examples: list[Example], **changed: str) -> RecordedSide:
    """Return the side of a file with these rows."""
    path = root / "run.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields = {"form": "recorded", "name": "v1", "path": "run.jsonl", "sha256": sha256_file(path)} | changed
    return open_recorded(RecordedSpec(**fields), root, examples)  # type: ignore[arg-type]


def refusal(root: Path, rows: list[Any], examples: list[Example], **changed: str) -> str:
    """Return the text of the DataError, with ROOT for the folder."""
    with pytest.raises(DataError) as caught:
        opened(root, rows, examples, **changed)
    return str(caught.value).replace(str(root), "ROOT")


def test_answers_are_paired_by_id_or_by_prompt(tmp_path: Path, examples: list[Example]) -> None:
    """The order does not matter; unrecorded figures are unknown, and rows of other examples are ignored."""
    rows = [
        {"prompt": " two\n", "text": "KeyError", "seconds": 19},
        {"id": examples[0].id, "text": "No", "seconds": 20, "first_seconds": 0.5, "tokens": 2, "finished": True},
        {"id": "another", "text": "x"},
    ]
    side = opened(tmp_path, rows, examples)
    answers = [side.answers[item.id] for item in examples]
    assert [(answer.text, answer.tokens, answer.finished) for answer in answers] == [
        ("No", 2, True),
        ("KeyError", None, None),
    ]
    timed = side.time(examples[0])
    assert timed is not None and (timed.seconds, timed.first, timed.tokens) == (20.0, 0.5, 2)
    assert side.described["recorded"] and side.described["name"] == "v1"


def test_predictions_of_another_run_are_accepted(tmp_path: Path, examples: list[Example]) -> None:
    """`out/predictions.jsonl` is accepted: the candidate's answers are used without their scores."""
    answer = {"text": "KeyError", "tokens": 3, "finished": True, "failed": None, "scores": {"old": 1.0}, "labels": {}}
    rows = [{"id": item.id, "candidate": answer, "baseline": answer, "reference": "x"} for item in examples]
    side = opened(tmp_path, rows, examples)
    assert [side.answers[item.id].text for item in examples] == ["KeyError"] * 2
    assert side.answers[examples[0].id].scores == {}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            [{"id": "other", "text": "x"}],
            "ROOT/run.jsonl: has no answer for the test example namer/rows/1/one/ValueError",
        ),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "ROOT/run.jsonl:2: a second answer to 'a'; keep one"),
        ([{"id": "a"}], "ROOT/run.jsonl:1: needs id (or prompt) and text, both strings"),
        ([{"text": "a"}], "ROOT/run.jsonl:1: needs id (or prompt) and text, both strings"),
        ([{"id": "a", "text": "x", "seconds": "20 s"}], "ROOT/run.jsonl:1: seconds must be a number of seconds"),
        ([{"id": "a", "text": "x", "tokens": 1.5}], "ROOT/run.jsonl:1: tokens must be an integer"),
        ([{"id": "a", "text": "x", "tokens": -1}], "ROOT/run.jsonl:1: tokens must be an integer from 0"),
        ([{"id": "a", "text": "x", "failed": True}], "ROOT/run.jsonl:1: failed must be a string with the reason"),
        ([{"id": "a", "text": "x", "finished": 1}], "ROOT/run.jsonl:1: finished must be true or false"),
        (
            [{"prompt": "one", "text": "x", "seconds": 2}, {"prompt": "two", "text": "y"}],
            "ROOT/run.jsonl: only 1 of 2 test examples have seconds; give them for all examples, or for none",
        ),
        (["{broken\n"], "ROOT/run.jsonl:1: broken JSON"),
    ],
)
def test_unfitting_rows_are_refused(tmp_path: Path, examples: list[Example], rows: list[Any], text: str) -> None:
    """Answers to another test set are not a baseline, however many there are."""
    assert refusal(tmp_path, rows, examples).startswith(text)


def test_an_ambiguous_prompt_is_refused(tmp_path: Path, example: Callable[..., Example]) -> None:
    """Two conversations that end in the same words are different questions."""
    examples = [example("continue", system="You write."), example("continue", system="You count.")]
    text = refusal(tmp_path, [{"prompt": "continue", "text": "x"}], examples)
    assert text == "ROOT/run.jsonl: 2 test prompts end in 'continue'; identify these rows by id"


def test_a_changed_file_is_refused(tmp_path: Path, examples: list[Example]) -> None:
    """params.yaml contains the hash, so that a change of the file is noticed."""
    text = refusal(tmp_path, [{"id": "a", "text": "x"}], examples, sha256="0" * 64)
    assert "evaluate.baseline.sha256 is 0000" in text
    assert refusal(tmp_path, [], examples, path="none.jsonl") == (
        "ROOT/none.jsonl: no such file; evaluate.baseline.path names it"
    )
