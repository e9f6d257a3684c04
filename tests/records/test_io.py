"""Files between stages: records are read back unchanged, or the error names file and line."""

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
    """Return a path for one file, which hypothesis overwrites repeatedly."""
    return tmp_path_factory.mktemp("records") / "rows.jsonl"


# ---- Writing and reading


@pytest.mark.parametrize(
    ("rows", "read"), [(examples, read_examples), (predictions, read_predictions), (timings, read_timings)]
)
@given(data=st.data())
def test_rows_are_read_back_unchanged(rows: Any, read: Callable[[Path], list[Any]], file: Path, data: Any) -> None:
    """With newlines, tabs, U+2028 or any script in its texts, a row stays on one line and unchanged."""
    written = data.draw(st.lists(rows, max_size=4))
    write_lines(file, to_json_lines(written))
    assert file.read_bytes().count(b"\n") == len(written)
    assert read(file) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_number_is_never_written(value: float) -> None:
    """Python's json silently writes NaN, which other programs cannot read."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(to_json_lines([Timing("one", value, None, 1, 1.0, None, 1)]))


@pytest.mark.parametrize("text", ["NaN", "[1, -Infinity]", '{"a": Infinity}'])
def test_json_with_a_non_standard_constant_is_refused(text: str) -> None:
    """Python's json reads these three, but RFC 8259 does not allow them."""
    with pytest.raises(ValueError, match=r"is not JSON$"):
        parse_json(text)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"c": 1, "a": 2, "a": null}}]'])
def test_json_with_a_duplicate_key_is_refused(text: str) -> None:
    """RFC 8259 leaves open which one applies, so a row would be ambiguous."""
    with pytest.raises(ValueError, match=r"^the key 'a' occurs twice in one object$"):
        parse_json(text)


def test_deep_nesting_is_a_value_error() -> None:
    """A line of 100,000 brackets must be one bad row, not a RecursionError."""
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
def test_a_broken_line_is_reported_with_file_and_line(tmp_path: Path, content: bytes, text: str) -> None:
    """These files are not edited manually: the advice is to write them again."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == f"{path}{text}; run the stage that writes it again"


def test_a_missing_file_names_the_stage_to_run(tmp_path: Path) -> None:
    """Before the first `dvc repro` no file exists."""
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == f"{path}: no such file; run the stage that writes it (dvc repro)"


@pytest.mark.parametrize("read", [read_examples, read_predictions, read_timings])
def test_a_row_of_another_version_is_refused(read: Callable[[Path], list[Any]], tmp_path: Path) -> None:
    """A file of an older version must not be read partially, with artificial values for missing fields."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "one", "messages": []}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:1: not in the format of this version (")
    assert str(caught.value).endswith("; run the stage that writes it again")


# ---- Prompts


def test_prompt_and_completion_form_the_conversation(example: MakeExample) -> None:
    """Every message is in exactly one part: one in neither would be lost, one in both would leak the answer."""
    one = example("task", "answer", system="system")
    assert [message.content for message in one.prompt] == ["system", "task"]
    assert one.completion == "answer"


@given(parts=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5), data=st.data())
def test_white_space_does_not_change_the_prompt_key(parts: list[str], data: Any) -> None:
    """An indented copy of a training prompt in the test set is still a leak."""
    gaps = st.text(" \t\n\r\u00a0\u2028", min_size=1, max_size=3)
    spaced = "".join(part + data.draw(gaps) for part in parts)
    assert text_key([Message("user", spaced)]) == text_key([Message("user", " ".join(parts))])


def test_words_roles_and_boundaries_change_the_prompt_key() -> None:
    """Colliding keys would drop examples as duplicates or move them between the splits."""
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
    """If the prompt is in train with another answer, the test is invalid, too."""
    train = [example("seen before", "ValueError"), example("other", "KeyError")]
    same, new = example("seen  before\n", "TypeError"), example("never seen", "ValueError")
    assert leaked(train, [new, same]) == [same.id]
    assert leaked(train, [new]) == []
