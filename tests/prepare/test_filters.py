"""Form and filters: every row gets the right system prompt, and every dropped row a reason."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config.data import Bounds, FilterConfig, Source
from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.prepare.filters import give_form, matches, reason_to_drop, token_counter
from finetune.records.examples import Message
from finetune.records.formats import Conversation
from finetune.records.near_duplicates import spoken_text
from tests.builders.kinds import Change

TINY = str(Path(__file__).parents[2] / "models/tiny-base")
TURNS = [Message("user", "Hi"), Message("assistant", "Hello.")]


def source(**keys: Any) -> Source:
    """Return a source named rows."""
    return Source(name="rows", path="rows.jsonl", **keys)


def formed(conversation: Conversation, config: Config, labels: tuple[str, ...] = (), **keys: Any) -> Conversation:
    """Return the conversation in its final form."""
    give_form(conversation, source(**keys), config.data, labels)
    return conversation


def reason(
    messages: list[Message] = TURNS,
    *,
    success: bool = True,
    own_system: bool = True,
    count: Callable[[str], int] | None = None,
    **filters: Any,
) -> str | None:
    """Return why these messages are dropped, with only these filters."""
    none = Bounds(min=None, max=None)
    every: dict[str, Any] = {"only_successful": False, "characters": none, "tokens": none}
    every |= {"keep_matching": (), "drop_matching": (), "roles": ("system", "user", "assistant", "tool")}
    conversation = Conversation(messages, success=success, own_system=own_system)
    return reason_to_drop(conversation, spoken_text(messages), FilterConfig(**every | filters), count)


# ---- Form


@pytest.mark.parametrize(
    ("own", "agents", "sources", "default", "system"),
    [
        ("own", "agent's", "source's", "default", "own"),
        (None, "agent's", "source's", "default", "agent's"),
        (None, None, "source's", "default", "source's"),
        (None, None, None, "default", "default"),
        (None, None, None, None, None),
        (None, "", "source's", "default", None),
    ],
)
def test_the_most_specific_system_prompt_is_used(
    change: Change, own: str | None, agents: str | None, sources: str | None, default: str | None, system: str | None
) -> None:
    """A wrong prompt in training is another task; an empty one means no prompt, also if there is a default."""
    prompts = {} if agents is None else {"namer": agents}
    config = change(**{"data.system_prompts": prompts, "data.default_system_prompt": default})
    turns = [Message("system", own), *TURNS] if own else TURNS
    found = formed(Conversation(turns, agent="namer"), config, system_prompt=sources)
    assert found.messages == ([Message("system", system)] if system else []) + TURNS
    assert found.own_system == (own is not None)


@pytest.mark.parametrize(
    ("own", "sources", "agent"), [("a", "b", "a"), (None, "b", "b"), (None, None, "rows"), ("a", None, "a")]
)
def test_the_agent_is_that_of_row_or_source(config: Config, own: str | None, sources: str | None, agent: str) -> None:
    """Results are grouped by agent, and the agent determines the system prompt."""
    assert formed(Conversation(TURNS, agent=own), config, agent=sources).agent == agent


def test_labels_are_listed_in_the_system_prompt(change: Change) -> None:
    """Labels are added for classification only, after an existing prompt or as the complete prompt."""
    expected = "Answer with exactly one of these labels: no, yes."
    for default, system in ((None, expected), ("Sort it.", f"Sort it.\n{expected}")):
        config = change(**{"data.default_system_prompt": default})
        found = formed(Conversation(TURNS, label="yes"), config, ("no", "yes"))
        assert found.messages == [Message("system", system), *TURNS]
    assert formed(Conversation(TURNS, label="yes"), config).messages[0].content == "Sort it."
    assert formed(Conversation(TURNS), config, ("no", "yes")).messages[0].content == "Sort it."


@pytest.mark.parametrize(("form", "text"), [("none", "e\u0301 \ufb01"), ("NFC", "é \ufb01"), ("NFKC", "é fi")])
def test_unicode_is_normalized_consistently(change: Change, form: str, text: str) -> None:
    """Answer, label and the labels in the prompt must stay equal, or the right answer would not be among them."""
    raw = "e\u0301 \ufb01"
    config = change(**{"data.unicode": form, "data.default_system_prompt": None})
    conversation = Conversation([Message("user", "ASCII"), Message("assistant", raw, name=raw)], label=raw)
    found = formed(conversation, config, (raw, "b"))
    assert found.messages == [
        Message("system", f"Answer with exactly one of these labels: {text}, b."),
        Message("user", "ASCII"),
        Message("assistant", text, name=raw),
    ]
    assert found.label == text


def test_labels_equal_after_normalizing_are_listed_once(change: Change) -> None:
    """Two spellings of one letter give one label after normalizing."""
    found = formed(Conversation(TURNS, label="é"), change(**{"data.unicode": "NFC"}), ("e\u0301", "é"))
    assert found.messages[0].content == "Answer with exactly one of these labels: é."


# ---- Filters


def test_rows_without_success_are_dropped_if_configured() -> None:
    """Failed answers of a log must not be trained on."""
    assert reason() is reason(success=False) is None  # without a filter nothing is dropped
    assert reason(success=False, only_successful=True) == "not_successful"
    assert reason(success=True, only_successful=True) is None


def test_roles_are_those_of_the_original_row() -> None:
    """The system prompt from the config does not count as a role of the row."""
    messages = [Message("system", "S"), *TURNS]
    roles = ("user", "assistant")
    assert reason(roles=roles) is None
    assert reason(messages, roles=roles) == "role_not_kept"
    assert reason(messages, roles=roles, own_system=False) is None
    assert reason([*TURNS, Message("tool", "x")], roles=roles) == "role_not_kept"


@pytest.mark.parametrize(
    ("least", "most", "why"),
    [(9, 9, None), (10, None, "too_few_{}"), (None, 8, "too_many_{}"), (None, 9, None), (9, None, None), (0, 10, None)],
)
def test_bounds_are_inclusive(least: int | None, most: int | None, why: str | None) -> None:
    """The text is `Hi`, a newline and `Hello.`: nine characters, without the system prompt."""
    messages = [Message("system", "long " * 100), *TURNS]
    bounds = Bounds(min=least, max=most)
    assert reason(messages, characters=bounds) == (why and why.format("characters"))
    assert reason(messages, tokens=bounds, count=len) == (why and why.format("tokens"))
    assert reason(messages, tokens=bounds) is None


@pytest.mark.parametrize(
    ("keep", "drop", "why"),
    [
        (["^Hi$.^Hello"], [], "pattern_missing"),
        (["(?ms)^Hi$.^Hello"], [], None),
        (["Hi", "Bye"], [], "pattern_missing"),
        ([], ["hello"], None),
        ([], ["Bye", "(?i)hello"], "pattern_found"),
        (["Bye"], ["Hi"], "pattern_missing"),
        ([], ["System prompt"], None),
    ],
)
def test_patterns_are_searched_in_all_turns(keep: list[str], drop: list[str], why: str | None) -> None:
    """All patterns of `keep` must match, none of `drop`; the system prompt from the config is not searched."""
    messages = [Message("system", "System prompt"), *TURNS]
    assert reason(messages, keep_matching=tuple(keep), drop_matching=tuple(drop)) == why


def test_calls_and_results_belong_to_the_text() -> None:
    """They count for a row's length and its duplicates."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "ü"}}}
    messages = [TURNS[0], Message("assistant", "", (call,)), Message("tool", "12"), TURNS[1]]
    assert spoken_text(messages) == "Hi\n{}\n12\nHello.".format('[{"arguments": {"a": "ü"}, "name": "f"}]')


@pytest.mark.parametrize(("pattern", "ends"), [("(a+)+$", True), ("(a|a)+$", False), ("(a|b|ab)+$", False)])
def test_a_catastrophic_pattern_is_an_error(pattern: str, ends: bool) -> None:
    """One hostile row could block the run for years; some such patterns are detected by the matcher itself."""
    start, row = time.monotonic(), "a" * 60 + "b" + "ab" * 60 + "!"
    if ends:
        assert not matches(pattern, row)
    else:
        with pytest.raises(ValueError, match=rf"^the pattern {re.escape(repr(pattern))} did not finish within 1 s$"):
            matches(pattern, row)
    assert time.monotonic() - start < 60


# ---- Tokens


def test_tokens_are_counted_with_the_bases_tokenizer() -> None:
    """Special tokens of a template or of the tokenizer are not counted."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{TINY}/tokenizer.json")
    text = "raise ValueError('ü')"
    assert token_counter(TINY, None)(text) == len(tokenizer.encode(text, add_special_tokens=False).ids) > 0
    assert token_counter(TINY, None)("") == 0


def test_long_texts_are_counted_completely(tmp_path: Path) -> None:
    """Some tokenizer files truncate every text to 512 tokens: no row would ever be too long."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{TINY}/tokenizer.json")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for text in ("x y " * 100, "x"):
        assert token_counter(str(tmp_path), None)(text) == token_counter(TINY, None)(text)


def test_a_base_without_a_tokenizer_file_is_reported(tmp_path: Path) -> None:
    """The error occurs in a worker when the first row is read."""
    with pytest.raises(ConfigError) as caught:
        token_counter(str(tmp_path), None)
    assert str(caught.value) == (
        f"{tmp_path}: has no tokenizer.json for data.filters.tokens (No such file or directory (os error 2)); "
        "remove its bounds"
    )
