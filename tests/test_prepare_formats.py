"""Rows to examples: what a row must have, and that nothing of it is changed on the way to the model."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.prepare.formats import Interaction, parse_interaction, to_example
from finetune.prepare.sources import BadRow, Row
from finetune.records import Message

GOOD = {"agent": "namer", "task": "message: invalid mode", "output": "ValueError", "success": True}


def parse(**changed: Any) -> Interaction | BadRow:
    """The good row with some fields changed (None takes a field out), parsed as line 7."""
    fields = {name: value for name, value in (GOOD | changed).items() if value is not None}
    return parse_interaction(Row(7, fields))


def test_a_whole_row_is_read() -> None:
    """Fields that the format does not know belong to the user and are left alone."""
    assert parse(latency=1.5, id="x") == Interaction(7, "namer", "message: invalid mode", "ValueError", True)


def test_prompt_and_response_are_the_same_fields() -> None:
    """Both spellings are found in agents' logs."""
    assert parse(task=None, output=None, prompt="the task", response="the output") == parse(
        task="the task", output="the output"
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"agent": None}, "has no agent"),
        ({"task": None}, "has no task or prompt"),
        ({"output": None}, "has no output or response"),
        ({"success": None}, "has no success"),
        ({"prompt": "another"}, "has both task and prompt"),
        ({"response": "another"}, "has both output and response"),
        ({"task": ""}, "task is empty"),
        ({"output": " \n\t"}, "output is empty"),
        ({"agent": ""}, "agent is empty"),
        ({"task": 5}, "task must be text, not int"),
        ({"output": ["ValueError"]}, "output must be text, not list"),
        ({"task": None, "prompt": {"text": "x"}}, "prompt must be text, not dict"),
        ({"success": "true"}, "success must be true or false"),
        ({"success": 1}, "success must be true or false"),
        ({"success": "no"}, "success must be true or false"),
    ],
)
def test_a_row_that_lacks_something_says_what(changed: dict[str, Any], why: str) -> None:
    """An empty answer would be trained on as one, and `"success": "false"` is true to Python."""
    assert parse(**changed) == BadRow(7, why)


def test_a_null_is_no_text() -> None:
    """`null` is what a log holds where the agent crashed."""
    assert parse_interaction(Row(1, GOOD | {"output": None})) == BadRow(1, "output must be text, not NoneType")
    assert parse_interaction(Row(1, GOOD | {"success": None})) == BadRow(1, "success must be true or false")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=2)
names = st.sampled_from(["agent", "task", "prompt", "output", "response", "success", "other"])


@given(fields=st.dictionaries(names, values))
def test_any_fields_are_a_row_or_a_bad_row(fields: dict[str, Any]) -> None:
    """Nothing is raised, and what passes has its texts and a true or false."""
    found = parse_interaction(Row(3, fields))
    assert found.line == 3
    if isinstance(found, Interaction):
        assert found.agent.strip() and found.task.strip() and found.output.strip()
        assert found.success is fields["success"]


# ---- To examples


@pytest.mark.parametrize(
    ("agent", "default", "system"),
    [
        ("namer", None, "Name it."),
        ("namer", "Help.", "Name it."),
        ("other", "Help.", "Help."),
        ("other", None, None),
        ("silent", "Help.", None),
    ],
)
def test_the_system_prompt_is_the_agents_own(
    change: Callable[..., Config], agent: str, default: str | None, system: str | None
) -> None:
    """The wrong prompt in training is another task at inference; an empty one means none, also against the default."""
    prompts = {"namer": "Name it.", "silent": ""}
    data = change(**{"data.system_prompts": prompts, "data.default_system_prompt": default}).data
    example = to_example(Interaction(7, agent, "task", "output", True), "rows", data)
    assert example.messages == (
        *([Message("system", system)] if system else []),
        Message("user", "task"),
        Message("assistant", "output"),
    )
    assert (example.source, example.line, example.agent) == ("rows", 7, agent)


def test_texts_reach_the_model_unchanged(config: Config) -> None:
    """White space is meaning in code: it is left out for comparing prompts, never for training on them."""
    task, output = "  def f():\n\treturn 1\n", "\n  x \r\n"
    example = to_example(Interaction(1, "a", task, output, True), "rows", config.data)
    assert (example.prompt[-1].content, example.completion) == (task, output)


def test_an_id_stands_for_the_content(config: Config) -> None:
    """Rows may be sorted or moved to another line and keep their ids; other content has another id."""
    rows = [
        Interaction(1, "a", "task", "output", True),
        Interaction(1, "b", "task", "output", True),
        Interaction(1, "a", "task!", "output", True),
        Interaction(1, "a", "task", "output!", True),
    ]
    ids = [to_example(row, "rows", config.data).id for row in rows]
    moved = to_example(Interaction(99, "a", "task", "output", False), "rows", config.data).id
    assert len({*ids, to_example(rows[0], "other", config.data).id}) == 5
    assert moved == ids[0]
