"""What crosses between the stages: it comes back as it was written, or its file and line are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.decide.evidence import leaked
from finetune.errors import DataError
from finetune.files.atomic import write_lines
from finetune.files.strict_json import parse_json
from finetune.records.examples import Answer, Example, Message, Prediction, Timing, text_key
from finetune.records.io import read_examples, read_jsonl, read_predictions, read_timings, to_json_lines
from tests.builders.kinds import MakeExample

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
examples = st.builds(Example, texts, texts, st.integers(1, 10**6), texts, st.lists(messages, min_size=1).map(tuple))
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.none() | st.integers(0, 999)
answers = st.builds(
    Answer,
    texts,
    counts,
    st.none() | st.booleans(),
    st.none() | finite,
    st.none() | texts,
    st.dictionaries(texts, st.none() | finite, max_size=2),
    st.dictionaries(texts, st.none() | texts, max_size=2),
)
predictions = st.builds(
    Prediction, texts, texts, texts, texts, texts, texts, st.integers(1, 999), baseline=answers, candidate=answers
)
timings = st.builds(Timing, texts, finite, st.none() | finite, counts, finite, st.none() | finite, counts)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one file; hypothesis writes it again and again."""
    return tmp_path_factory.mktemp("records") / "rows.jsonl"


# ---- Writing and reading


@pytest.mark.parametrize(
    ("rows", "read"), [(examples, read_examples), (predictions, read_predictions), (timings, read_timings)]
)
@given(data=st.data())
def test_rows_come_back_as_they_were_written(
    rows: Any, read: Callable[[Path], list[Any]], file: Path, data: Any
) -> None:
    """Line breaks, tabs, U+2028 and any script within a text: one row stays one line, and no letter changes."""
    written = data.draw(st.lists(rows, max_size=4))
    write_lines(file, to_json_lines(written))
    assert file.read_bytes().count(b"\n") == len(written)
    assert read(file) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_never_written(value: float) -> None:
    """Python's json writes NaN without a word, and every other reader of the file would stop at it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(to_json_lines([Timing("one", value, None, 1, 1.0, None, 1)]))


@pytest.mark.parametrize("text", ["NaN", "[1, -Infinity]", '{"a": Infinity}'])
def test_json_with_a_constant_that_is_none_is_refused(text: str) -> None:
    """Python's json reads these three; RFC 8259 has none of them."""
    with pytest.raises(ValueError, match=r"is not JSON$"):
        parse_json(text)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"c": 1, "a": 2, "a": null}}]'])
def test_json_with_a_key_twice_is_refused(text: str) -> None:
    """RFC 8259 leaves open which of them counts: readers differ, and a row would mean two things."""
    with pytest.raises(ValueError, match=r"^the key 'a' occurs twice in one object$"):
        parse_json(text)


def test_deep_nesting_is_a_value_error() -> None:
    """A line of 100,000 brackets must count as one bad row, not end the program with a RecursionError."""
    with pytest.raises(ValueError, match=r"^nested too deeply$"):
        parse_json("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"a": 1}\n{"a": \n', ":2: broken JSON (Expecting value: line 2 column 1 (char 7))"),
        (b'{"a": 1}\n{"a": NaN}\n', ":2: broken JSON (NaN is not JSON)"),
        (b'{"a": 1}\n[1]\n', ":2: not a JSON object"),
        (b'{"a": 1}\n\xff\n', ": is not UTF-8 (invalid start byte)"),
    ],
)
def test_a_broken_line_is_told_with_file_and_line(tmp_path: Path, content: bytes, text: str) -> None:
    """Nobody edits these files by hand: the advice is to write them again."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == f"{path}{text}; run the stage that writes it again"


def test_a_missing_file_says_which_stage_to_run(tmp_path: Path) -> None:
    """Before the first `dvc repro` nothing is there."""
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == f"{path}: no such file; run the stage that writes it (dvc repro)"


@pytest.mark.parametrize("read", [read_examples, read_predictions, read_timings])
def test_a_row_of_another_version_is_refused(read: Callable[[Path], list[Any]], tmp_path: Path) -> None:
    """A file of an older version must not be read halfway: its missing fields would get values from nowhere."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "one", "messages": []}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:1: not in the format of this version (")
    assert str(caught.value).endswith("; run the stage that writes it again")


# ---- Prompts


def test_prompt_and_completion_are_the_whole_conversation(example: MakeExample) -> None:
    """A message in neither part would be lost, one in both would be a leak of the answer."""
    one = example("task", "answer", system="system")
    assert [message.content for message in one.prompt] == ["system", "task"]
    assert one.completion == "answer"


@given(parts=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5), data=st.data())
def test_white_space_makes_no_other_prompt(parts: list[str], data: Any) -> None:
    """An indented copy of a training prompt in the test set is a leak all the same."""
    gaps = st.text(" \t\n\r\u00a0\u2028", min_size=1, max_size=3)
    spaced = "".join(part + data.draw(gaps) for part in parts)
    assert text_key([Message("user", spaced)]) == text_key([Message("user", " ".join(parts))])


def test_another_word_role_or_boundary_is_another_prompt() -> None:
    """Keys that met by accident would drop examples as duplicates or move them between the splits."""
    conversations = [
        [Message("user", "ab")],
        [Message("user", "a b")],
        [Message("user", "AB")],
        [Message("system", "ab")],
        [Message("user", "a"), Message("user", "b")],
        [Message("user", "a"), Message("assistant", "b")],
        [Message("user", "")],
        [],
    ]
    assert len({text_key(conversation) for conversation in conversations}) == len(conversations)


def test_a_leak_is_a_shared_prompt_whatever_the_answer(example: MakeExample) -> None:
    """The same prompt with another answer in train is a memory test too, or an unfair one."""
    train = [example("seen before", "ValueError"), example("other", "KeyError")]
    same, new = example("seen  before\n", "TypeError"), example("never seen", "ValueError")
    assert leaked(train, [new, same]) == [same.id]
    assert leaked(train, [new]) == []
