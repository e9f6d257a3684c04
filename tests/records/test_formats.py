"""Formats: each row becomes the intended conversation, or an error that describes the problem."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.records import formats
from finetune.records.examples import Message
from finetune.records.formats import FORMATS, Conversation, check_columns, detect_format, parse_row, unused_columns

TURNS = [Message("user", "Hi"), Message("assistant", "Hello.")]


def shown_lines() -> dict[str, dict[str, Any]]:
    """Return the example line of each format from the module's docstring."""
    found = re.findall(r"^ {4}(\w+) +(\{.*\})$", formats.__doc__ or "", flags=re.MULTILINE)
    return {name: json.loads(line) for name, line in found}


ROWS = shown_lines()


def meant(task: str, answer: str, **known: Any) -> Conversation:
    """Return a conversation of one turn."""
    return Conversation([Message("user", task), Message("assistant", answer)], **known)


MEANT: dict[str, Conversation] = {
    "interactions": meant("Where is my order?", "On its way.", agent="support"),
    "chat": Conversation(TURNS),
    "sharegpt": Conversation(TURNS),
    "alpaca": meant("Translate.\n\nGuten Tag", "Good day"),
    "prompt_completion": meant("The capital of France is", " Paris."),
    "question_answer": meant("Who wrote Emma?", "Jane Austen"),
    "classification": meant("My card was stolen", "lost_card", label="lost_card"),
}


def parse(format_: str, columns: dict[str, str] | None = None, /, **changed: Any) -> Conversation:
    """Parse the example line with some fields changed (`...` removes one)."""
    row = {name: value for name, value in (ROWS[format_] | changed).items() if value is not ...}
    return parse_row(row, format_, columns or {})


def why_not(format_: str, columns: dict[str, str] | None = None, /, **changed: Any) -> str:
    """Return the error for the example line after the change."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse(format_, columns, **changed)
    return str(caught.value)


# ---- Valid rows


def test_every_format_has_an_example_line() -> None:
    """Users copy from the docstring, so it has an example of every format."""
    assert list(ROWS) == list(FORMATS)


def test_the_page_has_the_same_example_lines() -> None:
    """The examples on the documentation page equal those that are parsed."""
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \| `(\{.*\})` \|$", text, flags=re.MULTILINE))
    assert {name: json.loads(line) for name, line in shown.items()} == ROWS
    (tools,) = re.findall(r"^\| `chat`, with tools \| `(\{.*\})` \|$", text, flags=re.MULTILINE)
    conversation = parse_row(json.loads(tools), "chat", {})
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1].tool_calls is not None
    assert conversation.tools[0]["function"]["name"] == "now"


@pytest.mark.parametrize("format_", FORMATS)
def test_the_example_line_gives_the_expected_conversation(format_: str) -> None:
    """Each example gives the conversation that a reader would expect."""
    assert parse(format_) == MEANT[format_]


@pytest.mark.parametrize("format_", FORMATS)
def test_columns_can_rename_all_fields(format_: str) -> None:
    """Users need not rewrite files whose columns are named in another language."""
    columns = {name: f"das {name}" for name in ROWS[format_]} | {"agent": "das agent"}
    row = {f"das {name}": value for name, value in ROWS[format_].items()}
    assert parse_row(row, format_, columns) == MEANT[format_]
    assert detect_format([row], columns) == format_
    assert unused_columns([row], format_, columns) == []


@pytest.mark.parametrize("format_", FORMATS)
def test_errors_use_the_column_names_of_the_file(format_: str) -> None:
    """The error has the column name that users can find in the file."""
    first = FORMATS[format_].signs[0][0]
    assert why_not(format_, {first: "nowhere"}).startswith("has no nowhere")


@pytest.mark.parametrize(("ours", "other"), [("task", "prompt"), ("prompt", "task")])
def test_a_mapped_column_is_used_for_one_field_only(ours: str, other: str) -> None:
    """`task: prompt` in columns must not read the prompt as both fields and refuse every row."""
    row = {"agent": "a", other: "Hi", "output": "Hello.", "success": True}
    assert parse_row(row, "interactions", {ours: other}).messages == TURNS
    row = {"text": "the label's name is here", "label": "x"}
    with pytest.raises(ValueError, match=r"^has no label$"):
        parse_row(row, "classification", {"text": "label"})


def test_two_columns_can_be_swapped() -> None:
    """Some files name the answer question, as in quizzes."""
    swapped = parse("question_answer", {"question": "answer", "answer": "question"})
    assert [message.content for message in swapped.messages] == ["Jane Austen", "Who wrote Emma?"]


@pytest.mark.parametrize(("ours", "theirs"), [("task", "prompt"), ("output", "response")])
def test_both_spellings_of_a_log_are_read(ours: str, theirs: str) -> None:
    """Both spellings are read; in a columnar file of mixed logs the other one is null."""
    value = ROWS["interactions"][ours]
    assert parse("interactions", **{ours: ..., theirs: value}) == MEANT["interactions"]
    assert parse("interactions", **{ours: None, theirs: value}) == MEANT["interactions"]
    assert why_not("interactions", **{theirs: value}) == f"has both {ours} and {theirs}"
    assert why_not("interactions", **{ours: ...}) == f"has no {ours} or {theirs}"


# ---- Bad rows


@pytest.mark.parametrize(
    ("format_", "changed", "why"),
    [
        ("interactions", {"agent": ...}, "has no agent"),
        ("interactions", {"agent": ""}, "agent is empty"),
        ("interactions", {"agent": "all"}, "agent is named 'all', which is reserved for all test examples"),
        ("interactions", {"task": 5}, "task must be a string, not int"),
        ("interactions", {"output": None}, "output must be a string, not null"),
        ("interactions", {"output": " \n\t"}, "output is empty"),
        ("interactions", {"output": "\ud83d"}, "output contains an unpaired surrogate, which is not valid text"),
        ("interactions", {"success": ...}, "has no success"),
        ("interactions", {"success": None}, "success must be true or false"),
        ("interactions", {"success": "no"}, "success must be true or false"),
        ("interactions", {"success": 2}, "success must be true or false"),
        ("interactions", {"success": [True]}, "success must be true or false"),
        ("chat", {"messages": ...}, "has no messages"),
        ("chat", {"messages": ""}, "messages must be a list of turns, not null"),
        (
            "chat",
            {"tools": "[{]"},
            "tools contains broken JSON: Expecting property name enclosed in double quotes: line",
        ),
        ("chat", {"agent": 7}, "agent must be a string, not int"),
        ("sharegpt", {"conversations": None}, "conversations must be a list of turns, not null"),
        ("sharegpt", {"system": ["x"]}, "system must be a string, not list"),
        ("alpaca", {"instruction": ...}, "has no instruction"),
        ("alpaca", {"input": ["x"]}, "input must be a string, not list"),
        ("alpaca", {"output": ["x"]}, "output must be a string, not list"),
        ("alpaca", {"output": 42}, "output must be a string, not int"),
        ("alpaca", {"response": "x"}, "has both output and response"),
        ("prompt_completion", {"completion": ...}, "has no completion"),
        ("prompt_completion", {"completion": None}, "completion must be a string, not null"),
        ("prompt_completion", {"prompt": [{"role": "user", "content": "x"}]}, "prompt must be a string, not list"),
        ("prompt_completion", {"prompt": [], "completion": []}, "prompt has no turns"),
        ("question_answer", {"answer": {"text": ["x"]}}, "answer must be a string, not dict"),
        ("classification", {"label": None}, "label must be a string, not null"),
        ("classification", {"label": 1.5}, "label must be a string, not float"),
        ("classification", {"label": ""}, "label is empty"),
        ("classification", {"text": float("nan")}, "text must be a string, not float"),
    ],
)
def test_a_bad_row_has_a_reason(format_: str, changed: dict[str, Any], why: str) -> None:
    """An empty answer would be trained on, and `"success": "false"` is true in Python."""
    assert why_not(format_, **changed).startswith(why)


@pytest.mark.parametrize(("yes", "no"), [(True, False), ("true", "false"), (" TRUE ", "False"), ("1", "0"), (1, 0)])
def test_success_is_read_from_tables(yes: Any, no: Any) -> None:
    """CSV has it as text, and some logs as a number; ambiguous values are refused."""
    assert parse("interactions", success=yes).success is True
    assert parse("interactions", success=no).success is False


# ---- Properties of single formats


@pytest.mark.parametrize("nothing", [..., None, "", " \n"])
def test_alpaca_needs_no_input(nothing: Any) -> None:
    """Half of these files have none, as null or as empty text: nothing is added to the task then."""
    assert parse("alpaca", input=nothing).messages[0].content == "Translate."


@pytest.mark.parametrize("format_", ["alpaca", "sharegpt"])
def test_a_system_field_comes_first(format_: str) -> None:
    """It is the row's own system prompt; null and blank values mean none."""
    assert parse(format_, system="Be brief.").messages == [Message("system", "Be brief."), *MEANT[format_].messages]
    assert parse(format_, system=None) == parse(format_, system=" ") == MEANT[format_]


def test_prompt_and_completion_may_be_turns() -> None:
    """TRL's conversational form has several turns on both sides and tools."""
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    completion = [{"role": "assistant", "content": "Hello."}]
    found = parse("prompt_completion", prompt=prompt, completion=completion, tools='[{"name": "f"}]')
    assert found == Conversation([Message("system", "S"), *TURNS], tools=[{"name": "f"}])


@pytest.mark.parametrize("none", [..., None, "", " ", [], "[]", "null", {}])
def test_all_forms_of_no_tools_are_accepted(none: Any) -> None:
    """Files express it in different ways."""
    assert parse("chat", tools=none) == parse("sharegpt", tools=none) == Conversation(TURNS)


@pytest.mark.parametrize(("label", "text"), [("a", "a"), (0, "0"), (-3, "-3"), (True, "true"), (False, "false")])
def test_labels_may_be_numbers_and_booleans(label: Any, text: str) -> None:
    """The model writes text: a boolean is spelled as in the file, not as in Python."""
    found = parse("classification", label=label)
    assert (found.label, found.messages[-1].content) == (text, text)


def test_texts_are_not_modified() -> None:
    """White space is significant in code: it is ignored for comparing prompts, but not for training."""
    task, output = "  def f():\n\treturn 1\n", "\n  x \r\n"
    assert [message.content for message in parse("interactions", task=task, output=output).messages] == [task, output]


@pytest.mark.parametrize("format_", FORMATS)
def test_agent_and_group_belong_to_every_format(format_: str) -> None:
    """A group is read only if `columns` names it, since many files have a column with that name."""
    found = parse(format_, {"group": "user"}, agent="a", user=17)
    assert (found.agent, found.group) == ("a", "17")
    assert parse(format_, group="g").group is None
    assert why_not(format_, {"group": "user"}, user=None) == "user must be a string, not null"
    assert why_not(format_, {"group": "user"}) == "has no user"


# ---- Detection


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_recognised_by_its_fields(format_: str) -> None:
    """Unknown fields belong to the user and are ignored."""
    assert detect_format([ROWS[format_], ROWS[format_] | {"id": 7}], {}) == format_
    assert unused_columns([ROWS[format_], ROWS[format_] | {"id": 7}], format_, {}) == ["id"]


def test_the_more_complete_format_is_preferred() -> None:
    """A Hub export of chat rows may have `prompt` and `completion` in addition to `messages`."""
    assert detect_format([ROWS["chat"] | ROWS["prompt_completion"]], {}) == "chat"


def test_a_bad_row_does_not_prevent_detection() -> None:
    """A bad row is reported when it is read; the many good rows around it determine the format."""
    assert detect_format([ROWS["chat"], {"id": 1}, ROWS["chat"], ROWS["alpaca"]], {}) == "chat"


def test_a_missing_column_is_reported() -> None:
    """A spelling mistake in the mapping would otherwise silently leave every row without its group."""
    check_columns([{"a": 1}, {"user": 2}], {"group": "user"})
    with pytest.raises(ValueError, match=r"^has no column 'usr', which is mapped to group \(columns: a, user\); fix"):
        check_columns([{"a": 1}, {"user": 2}], {"group": "usr"})


def test_names_from_a_file_stay_on_one_line() -> None:
    """Columns may have any name of any length, and there may be thousands."""
    with pytest.raises(ValueError, match=r"^does not have the fields of any format") as caught:
        detect_format([{"a\nb\x1b[31m" + "x" * 3000: 1} | {f"c{at}": at for at in range(500)}], {})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_unused_keys_of_turns_are_reported() -> None:
    """A model's reasoning is not trained on, and the user should know."""
    turn = {"role": "assistant", "content": "Hello.", "reasoning_content": "They greet."}
    row = {"messages": [{"role": "user", "content": "Hi"}, turn], "id": 3}
    assert unused_columns([row], "chat", {}) == ["id", "messages[].reasoning_content"]


def test_an_integral_float_is_an_integer_label() -> None:
    """pandas writes 1.0 for 1 in a column that has an empty cell."""
    assert parse("classification", label=1.0).label == "1"


def test_a_mapping_resolves_ambiguous_names() -> None:
    """Columns mapped to prompt and completion no longer count as question and answer."""
    columns = {"prompt": "question", "completion": "answer"}
    assert detect_format([ROWS["question_answer"]], columns) == "prompt_completion"
    assert detect_format([{"conversations": []}], {"messages": "conversations"}) == "chat"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (
            [ROWS["alpaca"] | ROWS["classification"]],
            "looks like alpaca and like classification (columns: instruction, input, output, text, label)",
        ),
        ([{"a": 1}, {"b": 2}], "does not have the fields of any format (columns: a, b)"),
        ([{}], "does not have the fields of any format (columns: none)"),
        (
            [ROWS["chat"], ROWS["alpaca"]],
            "looks like chat and like alpaca (columns: messages, instruction, input, output)",
        ),
    ],
)
def test_an_ambiguous_format_is_an_error(rows: list[dict[str, Any]], what: str) -> None:
    """A wrong guess would silently train on the wrong text."""
    advice = (
        "set format to one of interactions, chat, sharegpt, alpaca, prompt_completion, "
        "question_answer, classification, and map other field names under columns"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(what)}; {advice}$"):
        detect_format(rows, {})


def test_unused_columns_are_listed_by_their_names() -> None:
    """A column missing from the mapping is listed as unused, and a mapped group is not."""
    row = ROWS["classification"] | {"group": "g", "lang": "de", "agent": "a"}
    assert unused_columns([row], "classification", {}) == ["group", "lang"]
    assert unused_columns([row], "classification", {"group": "group", "text": "lang"}) == ["text"]


# ---- Arbitrary rows

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(2**63) - 1, 10**4000])
    | st.floats()
    | st.binary(max_size=3)
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "function_call", "text", "all", "[]"])
    | st.sampled_from(['[{"role": "user", "content": "x"}]', '{"name": "f"}', "{", '{"a":' * 2000, "\ud800"])
)
KEYS = "role content from value tool_calls function_call function name arguments id type text tool_call_id \udc00"
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=6),
    max_leaves=12,
)
roles = st.sampled_from(["user", "assistant", "tool", "human", "gpt", "function_call", "observation"])
nearly = st.lists(  # turns that are almost complete
    st.fixed_dictionaries(
        {}, optional={"role": roles, "from": roles, "content": junk, "value": junk, "tool_calls": junk}
    )
    | st.fixed_dictionaries(
        {"role": roles, "content": st.text(max_size=3)}, optional={"name": junk, "function_call": junk}
    ),
    max_size=3,
)
signs = {name for kind in FORMATS.values() for names in kind.signs for name in names}
fields = st.sampled_from(sorted(signs | {"success", "input", "system", "tools", "group", "other"}))


@pytest.mark.parametrize("format_", FORMATS)
@given(changed=st.dictionaries(fields, junk | nearly, max_size=4), grouped=st.booleans())
def test_arbitrary_rows_are_conversations_or_bad_rows(format_: str, changed: dict[str, Any], grouped: bool) -> None:
    """A row never ends the run: unused columns are reported, and a valid row ends with the assistant's turn."""
    try:
        found = parse_row(ROWS[format_] | changed, format_, {"group": "group"} if grouped else {})
    except ValueError:
        return
    assert found.messages[-1].role == "assistant"
    assert all(message.text.strip() or message.role == "tool" for message in found.messages)
    json.dumps([[message.to_json() for message in found.messages], found.tools], ensure_ascii=False).encode()


@pytest.mark.parametrize("depth", [99, 300, 5_000])
@pytest.mark.parametrize("where", ["tools", "arguments", "type", "content", "role"])
def test_deep_nesting_does_not_crash(depth: int, where: str) -> None:
    """Python's recursion limit is about a thousand levels, which would end the run."""
    deep: Any = "x"
    for _ in range(depth):
        deep = {"a": [deep]}
    turn: dict[str, Any] = {"role": "assistant", "content": "Hello."}
    turn |= {
        "tools": {},
        "arguments": {"tool_calls": [{"name": "f", "arguments": deep}]},
        "type": {"content": [{"type": deep}]},
        "content": {"content": deep},
        "role": {"role": deep},
    }[where]
    messages = [{"role": "user", "content": "Hi"}, turn]
    why = why_not("chat", messages=messages, tools=[deep] if where == "tools" else [])
    assert len(why) < 200
