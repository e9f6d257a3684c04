"""Turns are read unchanged, with tool calls and results, and wrong orders are reported."""

import json
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.records import turns
from finetune.records.examples import Message
from finetune.records.formats import parse_row
from finetune.records.turns import DEEPEST, check_order, read_messages, read_sharegpt, read_tools

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
ASKED = {"role": "user", "content": "How warm is Bern?"}


def turn_of(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    """Return a turn."""
    return {"role": role, "content": content, **more}


def read_one(turn: Any) -> Message:
    """Read a single turn as a message."""
    [message] = read_messages([turn], "messages")
    return message


def why_not(turns: Any) -> str:
    """Return the error for these turns."""
    with pytest.raises(ValueError, match=r".") as caught:
        check_order(read_messages(turns, "messages"))
    return str(caught.value)


# ---- Chat


def test_the_example_turns_are_read() -> None:
    """Users copy from the docstring; arguments become an object, which chat templates expect."""
    shown = "[" + (turns.__doc__ or "").partition("\n\n")[2].replace("}}]}\n", "}}]},\n") + "]"
    assert read_messages(shown, "messages") == [
        Message("assistant", "", ({"id": "1", **CALL},)),
        Message("tool", "12 degrees", tool_call_id="1"),
    ]


@pytest.mark.parametrize("arguments", [{"city": "Bern"}, '{"city": "Bern"}'])
@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_a_conversation_with_tools_is_read(arguments: Any, content: str | None) -> None:
    """Servers log arguments as JSON text, data sets have objects: both give the same call."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    rows = [
        turn_of("system", "S"),
        ASKED,
        turn_of("assistant", content, tool_calls=[call, call]),
        turn_of("tool", "12", tool_call_id="1", name="weather"),
        turn_of("tool", None, tool_call_id="1"),
        turn_of("assistant", "12 degrees."),
    ]
    found = read_messages(rows, "messages")
    check_order(found)
    assert found == [
        Message("system", "S"),
        Message("user", "How warm is Bern?"),
        Message("assistant", content or "", ({"id": "1", **CALL},) * 2),
        Message("tool", "12", None, "weather", "1"),
        Message("tool", "", None, None, "1"),
        Message("assistant", "12 degrees."),
    ]
    assert read_messages(json.dumps(rows), "messages") == found
    rows[2]["tool_calls"] = json.dumps(rows[2]["tool_calls"])  # as in columnar files with different calls
    assert read_messages(rows, "messages") == found


@pytest.mark.parametrize("none", [None, "", {}, [], "{}"])
def test_a_call_needs_no_arguments(none: Any) -> None:
    """A call like `date()` has none, and servers express it in different ways."""
    call = {"function": {"name": "date", "arguments": none}}
    expected = ({"type": "function", "function": {"name": "date", "arguments": {}}},)
    assert read_one(turn_of("assistant", None, tool_calls=[call])).tool_calls == expected


def test_calls_of_the_older_form_are_read() -> None:
    """`function_call` and the role `function` are the older form; ignoring them would lose the call."""
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    assert read_one(turn_of("assistant", "See.", function_call=call)) == Message("assistant", "See.", (CALL,))
    assert read_one(turn_of("function", "12", name="weather")) == Message("tool", "12", name="weather")


@pytest.mark.parametrize(
    ("role", "read"), [("developer", "system"), ("function", "tool"), ("User", "user"), ("ASSISTANT", "assistant")]
)
def test_roles_have_several_spellings(role: str, read: str) -> None:
    """Some servers say developer, others system; capitals are accepted."""
    assert read_one(turn_of(role)).role == read


def test_null_empty_and_unknown_fields_are_left_out() -> None:
    """Columnar files give every turn every key, and logs have dates and weights."""
    turn = turn_of("assistant", tool_calls="[]", function_call=None, name="", tool_call_id=None, refusal=None, weight=1)
    assert read_one(turn) == read_one(turn_of("assistant", tool_calls=None)) == Message("assistant", "x")


def test_content_in_parts_is_joined() -> None:
    """Servers that also accept images log parts; their columnar files have nulls in each part."""
    parts = [{"type": "text", "text": "a ", "image_url": None}, {"type": "text", "text": "b"}]
    assert read_one(turn_of("user", parts)).content == "a b"


def test_nulls_of_columnar_files_are_not_arguments() -> None:
    """Parquet gives every call the keys of all calls, which must not be trained on."""
    calls = [
        [{"function": {"name": "f", "arguments": {"a": "x", "deep": {"b": [1]}}}}],
        [{"function": {"name": "g", "arguments": {"c": [{"d": 1}, {"e": 2}]}}}],
    ]
    rows = pa.Table.from_pylist([turn_of("assistant", "x", tool_calls=call) for call in calls]).to_pylist()
    assert rows[0]["tool_calls"][0]["function"]["arguments"]["c"] is None
    for row, call in zip(rows, calls, strict=True):
        assert read_one(row).tool_calls == tuple({"type": "function", **one} for one in call)
    tools = [{"name": "f", "unit": None, "enum": [None, {"a": None}]}]
    assert read_tools(tools, "tools") == [{"name": "f", "enum": [None, {}]}]


def test_nulls_in_json_text_are_arguments() -> None:
    """Columnar files do not add keys inside a text, so a null there is an argument."""
    call = {"name": "f", "arguments": '{"unit": null}'}
    found = read_one(turn_of("assistant", None, tool_calls=[call])).tool_calls
    assert found == ({"type": "function", "function": {"name": "f", "arguments": {"unit": None}}},)
    assert read_tools('[{"default": null}]', "tools") == [{"default": None}]


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("Hi", " must be an object with role and content, not str"),
        (None, " must be an object with role and content, not null"),
        (
            {"content": "x"},
            ".role must be a string, not null; supported: system, developer, user, assistant, tool, func",
        ),
        (
            turn_of("bot" * 50),
            ".role is 'botbotbotbotbotbotbotbotbotbotbotbotbot; supported: system, developer, user, as",
        ),
        (turn_of("user", None), ".content must be a string, not null"),
        (turn_of("assistant", None, tool_calls=[]), ".content must be a string, not null"),
        (turn_of("user", 5), ".content must be a string, not int"),
        (turn_of("user", " \n"), ".content is empty"),
        (turn_of("user", []), ".content is empty"),
        (turn_of("user", "\ud83d"), ".content contains an unpaired surrogate, which is not valid text"),
        (turn_of("user", ["Hi"]), ".content[0] is not a text part; only text is supported"),
        (turn_of("user", [{"type": "text"}]), ".content[0] is not a text part; only text is supported"),
        (
            turn_of("user", [{"type": "text", "text": "a"}, {"type": "image_url"}]),
            ".content[1] is not a text part but 'image_url'; only text is supported",
        ),
        (turn_of("user", name=5), ".name must be a string, not int"),
        (turn_of("user", name="\udc00"), ".name contains an unpaired surrogate, which is not valid text"),
        (turn_of("tool", tool_call_id=5), ".tool_call_id must be a string, not int"),
        (turn_of("user", tool_calls=[CALL]), " calls a tool, but its role is user"),
        (turn_of("user", function_call=CALL), " calls a tool, but its role is user"),
        (turn_of("assistant", tool_calls=CALL), ".tool_calls must be a list, not dict"),
        (turn_of("assistant", tool_calls="{}1"), ".tool_calls contains broken JSON: Extra data"),
        (turn_of("assistant", tool_calls='{"name": "f"}'), ".tool_calls must be a list, not dict"),
    ],
)
def test_an_invalid_turn_has_a_reason(turn: Any, why: str) -> None:
    """The turn is identified by its index in the list."""
    assert why_not([turn]).startswith(f"messages[0]{why}")


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("f", " does not name a function"),
        ({}, " does not name a function"),
        ({"function": None}, " does not name a function"),
        ({"function": "f"}, " does not name a function"),
        ({"name": " "}, " does not name a function"),
        ({"name": "\ud800"}, ".name contains an unpaired surrogate, which is not valid text"),
        ({"name": "f", "id": "\ud800"}, ".id contains an unpaired surrogate, which is not valid text"),
        ({"name": "f", "id": 5}, ".id must be a string, not int"),
        ({"name": "f", "arguments": "{"}, ".arguments contains broken JSON: "),
        ({"name": "f", "arguments": '{"a": 1, "a": 2}'}, ".arguments contains broken JSON: the key 'a' occurs twice"),
        ({"name": "f", "arguments": "[1]"}, ".arguments must be an object, not list"),
        ({"name": "f", "arguments": "null"}, ".arguments must be an object, not null"),
        ({"name": "f", "arguments": [1]}, ".arguments must be an object, not list"),
        (
            {"name": "f", "arguments": {"a": ["\ud800"]}},
            ".arguments contains an unpaired surrogate, which is not valid text",
        ),
        (
            {"name": "f", "arguments": {"\ud800": 1}},
            ".arguments contains an unpaired surrogate, which is not valid text",
        ),
        (
            {"name": "f", "arguments": '{"a": "\\ud800"}'},
            ".arguments contains an unpaired surrogate, which is not valid text",
        ),
        ({"name": "f", "arguments": {"a": float("inf")}}, ".arguments contains inf, which is not valid JSON"),
        ({"name": "f", "arguments": {"a": b"x"}}, ".arguments contains a bytes, which is not valid JSON"),
        ({"name": "f", "arguments": {"a": 2**64}}, ".arguments contains a number of more than 64 bits"),
        ({"name": "f", "arguments": {"a": -(2**63) - 1}}, ".arguments contains a number of more than 64 bits"),
    ],
)
def test_a_call_that_is_not_valid_json_has_a_reason(call: Any, why: str) -> None:
    """Values that are not JSON in every program would fail when the split is written, or on a server."""
    told = why_not([ASKED, turn_of("assistant", None, tool_calls=[CALL, call])])
    assert told.startswith(f"messages[1].tool_calls[1]{why}")


@pytest.mark.parametrize("as_text", [False, True])
def test_the_depth_of_arguments_is_limited(as_text: bool) -> None:
    """The depth limit is fixed: Python and JSON writers fail at some hundred levels, each at another one."""
    for levels in (DEEPEST, DEEPEST + 1):
        deep: Any = 2**64 - 1
        for _ in range(levels - 1):
            deep = [deep]
        arguments = json.dumps({"a": deep}) if as_text else {"a": deep}
        turn = turn_of("assistant", None, tool_calls=[{"name": "f", "arguments": arguments}])
        if levels == DEEPEST:
            assert read_one(turn).tool_calls
        else:
            assert why_not([turn]) == "messages[0].tool_calls[0].arguments is nested more than 100 levels deep"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "messages must be a list of turns, not null"),
        ({"role": "user"}, "messages must be a list of turns, not dict"),
        ('{"role": "user"}', "messages must be a list of turns, not dict"),
        ("[", "messages contains broken JSON: Expecting value"),
        ("Hi", "messages contains broken JSON: Expecting value"),
        ("[" * 5_000, "messages contains broken JSON: nested too deeply"),
        ([], "messages has no turns"),
        ("[]", "messages has no turns"),
    ],
)
def test_an_invalid_cell_of_turns_has_a_reason(value: Any, why: str) -> None:
    """CSV has a list of turns as JSON in a cell."""
    assert why_not(value).startswith(why)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{}", "tools must be a list of objects, not dict"),
        (5, "tools must be a list of objects, not int"),
        (["f"], "tools[0] must be an object, not str"),
        ([{}, {"a": float("nan")}], "tools[1] contains nan, which is not valid JSON"),
        ("[", "tools contains broken JSON: Expecting value"),
    ],
)
def test_invalid_tools_have_a_reason(value: Any, why: str) -> None:
    """Tools are passed to the chat template unchanged."""
    with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
        read_tools(value, "tools")


# ---- ShareGPT


def test_sharegpt_with_tools_is_read() -> None:
    """In the form of its tools, a call is a separate turn, and its result an observation."""
    rows = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "How warm?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "12 degrees."},
    ]
    expected = [
        Message("system", "S"),
        Message("user", "How warm?"),
        Message("assistant", "", (CALL,)),
        Message("tool", "12"),
        Message("assistant", "12 degrees."),
    ]
    check_order(expected)
    assert read_sharegpt(rows, "conversations") == expected
    rows[2] = {"from": "Function_Call", "value": json.dumps([CALL])}
    assert read_sharegpt(json.dumps(rows), "conversations") == expected


def test_chat_turns_may_be_called_conversations() -> None:
    """Many files do so, and their keys are unambiguous."""
    rows = [turn_of("user", "a", **{"from": None}), turn_of("assistant", None, tool_calls=[CALL])]
    assert read_sharegpt(rows, "conversations") == [Message("user", "a"), Message("assistant", "", (CALL,))]


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("Hi", " must be an object with from and value, not str"),
        (
            {"value": "x"},
            (".from must be a string, not null; supported: system, human, user, gpt, chatgpt, assistant, mod"),
        ),
        ({"from": "bing", "value": "x"}, ".from is 'bing'; supported: system, human"),
        ({"from": "human"}, ".value must be a string, not null"),
        ({"from": "gpt", "value": ""}, ".value is empty"),
        ({"from": "function_call", "value": "weather(Bern)"}, ".value contains broken JSON: Expecting value"),
        ({"from": "function_call", "value": "[]"}, ".value has no calls"),
        ({"from": "function_call"}, ".value[0] does not name a function"),
    ],
)
def test_an_invalid_sharegpt_turn_has_a_reason(turn: Any, why: str) -> None:
    """An invalid call must not become an empty answer."""
    with pytest.raises(ValueError, match=rf"^conversations\[0\]{re.escape(why)}"):
        read_sharegpt([turn], "conversations")


# ---- Order

END = "; a conversation must end with an assistant turn"


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ("", f"there are no turns{END}"),
        ("s", f"there are no turns{END}"),
        ("u", f"the last turn has the role user{END}"),
        ("uau", f"the last turn has the role user{END}"),
        ("uct", f"the last turn has the role tool{END}"),
        ("a", "turn 1 has the role assistant, expected user"),
        ("sa", "turn 2 has the role assistant, expected user"),
        ("uua", "turn 2 has the role user, expected assistant"),
        ("uaa", "turn 3 has the role assistant, expected user"),
        ("ssua", "turn 2 has the role system, expected user"),
        ("uasua", "turn 3 has the role system, expected user"),
        ("uta", "turn 2 has the role tool, expected assistant"),
        ("uata", "turn 3 has the role tool, expected user"),
        ("uca", "turn 3 has the role assistant, expected tool"),
        ("uctua", "turn 4 has the role user, expected assistant or tool"),
    ],
)
def test_a_wrong_order_names_the_expected_role(order: str, why: str) -> None:
    """Chat templates refuse a wrong order, or render text that no server would send."""
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        check_order(in_order(order))


@pytest.mark.parametrize("order", ["ua", "sua", "uaua", "uc", "ucta", "sucttcta", "uctaua"])
def test_a_valid_order_is_accepted(order: str) -> None:
    """Valid orders include several calls with results, calls after results, and a final call."""
    check_order(in_order(order))


def in_order(order: str) -> list[Message]:
    """Return messages by the first letters of their roles; c is the assistant's call."""
    made = {
        "s": Message("system", "x"),
        "u": Message("user", "x"),
        "a": Message("assistant", "x"),
        "c": Message("assistant", "", (CALL,)),
        "t": Message("tool", "x"),
    }
    return [made[letter] for letter in order]


# ---- Arbitrary chats

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
spoken = texts.filter(str.strip)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.fixed_dictionaries({"name": spoken, "arguments": st.dictionaries(texts, values, max_size=3)})
steps = st.tuples(texts, st.lists(calls, min_size=1, max_size=2), texts)
talks = st.lists(st.tuples(spoken, st.lists(steps, max_size=2), spoken), min_size=1, max_size=3)


@given(system=st.none() | spoken, talk=talks, in_parts=st.booleans(), in_cell=st.booleans())
def test_arbitrary_chats_are_read_unchanged(system: str | None, talk: list[Any], in_parts: bool, in_cell: bool) -> None:
    """Whatever the file format, exactly the original text is trained on."""
    wanted: list[tuple[str, str, list[Any]]] = [("system", system, [])] if system else []
    for question, steps, answer in talk:
        wanted += [("user", question, [])]
        for thought, called, result in steps:
            wanted += [("assistant", thought, called), ("tool", result, [])]
        wanted += [("assistant", answer, [])]
    rows = []
    for role, content, called in wanted:
        row = turn_of(role, [{"type": "text", "text": part} for part in content] if in_parts else content)
        row["tool_calls"] = [{"function": call | {"arguments": json.dumps(call["arguments"])}} for call in called]
        rows.append(row)
    found = parse_row({"messages": json.dumps(rows) if in_cell else rows}, "chat", {}).messages
    assert [(one.role, one.content, [call["function"] for call in one.tool_calls or ()]) for one in found] == wanted


def test_a_turn_that_must_not_be_trained_on_is_refused() -> None:
    """Some APIs use `weight: 0` for it; here every assistant turn is trained on, so it is refused."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away.", "weight": 0}]
    with pytest.raises(ValueError, match=r"^messages\[1\]\.weight is 0, but every assistant turn is trained on"):
        read_messages(turns, "messages")
    turns[1]["weight"] = 1
    assert read_messages(turns, "messages")[1].content == "Go away."
