"""The prompt contains everything before the answer, or a finding names the missing part and what to change."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trl

from finetune.config.params import Config
from finetune.records.examples import Example, Message
from finetune.validate.checks.prompt import lost_parts, refused_parts
from finetune.validate.checks.token import check_split, check_test_answers
from finetune.validate.tokenized import tokenize_split
from tests.builders.checked_settings import codes, finding_text
from tests.builders.kinds import MakeExample
from tests.builders.small_run import ROOT
from tests.builders.tokenized_rows import tokenizer as tokenizer
from tests.builders.tokenized_rows import tokenizer_with

TRL = Path(trl.__file__).parent / "chat_templates"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "find_rain", "description": 'Says "rain"', "parameters": CITY}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "find_rain", "arguments": {"city": "Oslo"}}}
SYSTEM = Message("system", " Answer <b>briefly</b>.\n")
TALK = (
    Message("user", "Which colour?\n"),
    Message("assistant", "Blue, or 青い."),
    Message("user", 'And "two\\lines"?'),
    Message("assistant", "One.\n\n  Two."),
)
CALLED = (
    Message("user", "Does it rain?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", '{"rain": "a <b>lot</b>"}', name="find_rain", tool_call_id="abcdefghi"),
    Message("assistant", "It rains."),
)
BESIDE = (CALLED[0], replace(CALLED[1], content="Let me look."), *CALLED[2:])


def row(messages: tuple[Message, ...], *tools: dict[str, Any]) -> Example:
    """Return an example with these messages and tools."""
    return Example("one", "rows", 1, "agent", messages, tools=tools)


ROWS = {
    "system": row((SYSTEM, *TALK)),
    "tools": row(TALK, TOOL),
    "calls": row((SYSTEM, *CALLED), TOOL),
    "beside": row(BESIDE, TOOL),
    "beside the last": row(BESIDE[:2], TOOL),
}


def shipped(name: str) -> Any:
    """Return a tokenizer with a template as its base ships it."""
    tokenizer = tokenizer_with(TRL / f"{name}.jinja")
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def losses(tokenizer: Any, names: tuple[str, ...] = tuple(ROWS)) -> dict[str, list[str]]:
    """Return the lost parts by row, except rows that lose nothing."""
    return {name: lost for name in names if (lost := lost_parts(tokenizer, ROWS[name]))}


# ---- Real templates

WHOLE = (
    *("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "qwen3_5_think", "qwen3_8", "gptoss", "glm4moe"),
    *("gemma4", "gemma4_v5", "lfm2_v2", "nemotron_3_nano"),
)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("version", ["", "_training"])
def test_templates_that_render_everything_have_no_finding(name: str, version: str) -> None:
    """Trimmed and escaped texts, other notations of tools, and thoughts that are dropped later are no loss."""
    if not (TRL / f"{name}{version}.jinja").is_file():
        pytest.skip("TRL has no such version")
    assert losses(shipped(name + version)) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", {"tools": ["tools"], "calls": ["tools", "tool calls"]}),
        ("phi3", {"tools": ["tools"], "calls": ["tools", "tool calls", "tool results"]}),
        ("phi3_5", {"tools": ["tools"], "calls": ["tools", "tool calls", "tool results"]}),
        ("gemma3", {"tools": ["tools"]}),
        ("cohere2", {"tools": ["tools"]}),
        ("deepseekv3_training", {"tools": ["tools"], "calls": ["tools"]}),
        ("lfm2", {"calls": ["tool calls"]}),
        ("llama3_1", {"beside": ["turn 2"], "beside the last": ["turn 2"]}),
    ],
)
def test_each_part_that_a_template_drops_is_named(name: str, expected: dict[str, list[str]]) -> None:
    """These templates render a row without the part, and without an error."""
    names = tuple(expected) if "beside" in expected else ("system", "tools", "calls")
    assert losses(shipped(name), names) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "models/templates").glob("*.jinja")), ids=lambda path: path.stem)
def test_the_projects_templates_render_system_prompts_and_refuse_tools(path: Path) -> None:
    """They never drop a part."""
    tokenizer = tokenizer_with(path)
    assert lost_parts(tokenizer, ROWS["system"]) == []
    assert refused_parts(tokenizer, ROWS["tools"]) == refused_parts(tokenizer, ROWS["calls"]) == ["tools"]


def test_the_template_of_gemma_renders_as_gemma_3_does() -> None:
    """The system prompt is at the same place as in the later model, which was trained with it."""
    from finetune.model.tokens import render

    turns = [replace(SYSTEM, content="Answer briefly."), *TALK]
    ours, theirs = tokenizer_with(ROOT / "models/templates/gemma.jinja"), shipped("gemma3")
    ours.bos_token = theirs.bos_token
    for messages, more in ((turns, {}), (turns[:2], {"add_generation_prompt": True}), (TALK, {})):
        texts = [render(one, messages, (), tokenize=False, **more) for one in (ours, theirs)]
        assert texts[0].strip() == texts[1].strip()


def test_the_lines_of_the_page_prepend_the_system_prompt() -> None:
    """The lines for templates without a system role, copied from the page, make Gemma's own template complete."""
    page = (ROOT / "models/templates/README.md").read_text(encoding="utf-8")
    lines = re.findall(r"```jinja\n(.*?)```", page, re.DOTALL)[0]
    tokenizer = shipped("gemma_training")
    assert refused_parts(tokenizer, ROWS["system"]) == ["system prompt"]
    tokenizer.chat_template = lines + tokenizer.chat_template
    assert losses(tokenizer, ("system",)) == {}
    assert lost_parts(tokenizer, row(TALK)) == []


# ---- The parts of a prompt

CHATML = (
    "{% for message in messages %}{% if SHOWN %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CUT = ["system prompt", "turn 2", "turn 3", "turn 4"]
LATE = (  # as Mistral's templates place tools and system prompt
    "{% set system = messages[0].content %}{% for message in messages[1:] %}{{ message.role }}: "
    "{% if message.role == 'user' and loop.index + 2 > loop.length %}{{ system }} {% endif %}{{ message.content }}\n"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (CHATML.replace("SHOWN", "true"), []),
        (CHATML.replace("SHOWN", "message.role != 'system'"), ["system prompt"]),
        (CHATML.replace("SHOWN", "loop.index > 2"), ["system prompt", "turn 2"]),
        (CHATML.replace("SHOWN", "'Blue' not in message.content"), ["turn 3"]),
        (CHATML.replace("{{ message.content }}<|im_end|>{% e", "{{ message.content[:9] }}{% e", 2), CUT),
        (LATE, ["system prompt"]),
    ],
)
def test_every_turn_before_an_answer_is_checked(tokenizer: Any, template: str, lost: list[str]) -> None:
    """Turns may be lost by role, by place, by content or by length, or come after the first answer."""
    kept, tokenizer.chat_template = tokenizer.chat_template, template.replace("SHOWN", "true")
    try:
        found = lost_parts(tokenizer, ROWS["system"])
    finally:
        tokenizer.chat_template = kept
    assert found == lost


def test_a_template_may_reject_a_conversation_that_ends_with_a_call(tokenizer: Any) -> None:
    """The text beside the call is then no thought that is dropped later; it is reported, and nothing is raised."""
    silent = (
        "{{ tools }}{% for message in messages %}"
        "{% if message.tool_calls and loop.last %}{{ raise_exception('no result') }}"
        "{% endif %}{{ message.role }}: {% if not message.tool_calls %}{{ message.content }}{% endif %}"
        "{{ message.tool_calls }}\n{% endfor %}"
    )
    kept, tokenizer.chat_template = tokenizer.chat_template, silent
    try:
        found = lost_parts(tokenizer, ROWS["beside"])
    finally:
        tokenizer.chat_template = kept
    assert found == ["turn 2"]


@pytest.mark.parametrize("dropped", ["name", "description", "parameters"])
def test_every_part_of_a_tool_is_checked(tokenizer: Any, dropped: str) -> None:
    """A model can't call a tool whose name or parameters it has not seen."""
    shown = [f"{{{{ tool.function.{name} }}}}" for name in ("name", "description", "parameters") if name != dropped]
    template = CHATML.replace("SHOWN", "true")
    kept = tokenizer.chat_template
    try:
        for parts, lost in ((shown, ["tools"]), (["{{ tool | tojson }}"], [])):
            tokenizer.chat_template = f"{{% for tool in tools %}}{''.join(parts)}{{% endfor %}}{template}"
            assert lost_parts(tokenizer, ROWS["tools"]) == lost
    finally:
        tokenizer.chat_template = kept


@pytest.mark.parametrize(
    "tool", [{}, {"name": "now"}, {"function": None}, {"function": {"name": 3, "parameters": {"properties": []}}}]
)
def test_tools_of_any_form_are_checked(tokenizer: Any, tool: dict[str, Any]) -> None:
    """Rows may have tools in another form than OpenAI's; nothing fails."""
    assert set(lost_parts(tokenizer, row(TALK, tool))) <= {"tools"}


# ---- The findings


def test_lost_parts_are_reported_with_numbers_and_a_remedy(config: Config) -> None:
    """Twelve rows with tools, and a template that drops them: one finding for each split, also for the test split."""
    tokenizer = shipped("phi3_training")
    rows = [replace(ROWS["tools"], line=at) for at in range(5, 17)]
    rows[3] = replace(ROWS["system"], line=8)
    found = check_split(config, tokenizer, "train", tokenize_split(tokenizer, rows, config.train, seed=1))
    (finding,) = [one for one in found if one.code == "prompt-incomplete"]
    assert finding_text(finding, "prompt-incomplete") == (
        "params.yaml: model.chat_template: in 11 examples of train, the first of rows, line 5, the template leaves out "
        "a part of the prompt: tools (11); use a base with tools in its template (docs/data.md#tools), or a copy of "
        "the template that renders them"
    )
    (test,) = [one for one in check_test_answers(config, tokenizer, rows, None) if one.code == "prompt-incomplete"]
    assert test.message == finding.message.replace("of train", "of test")


def test_a_lost_system_prompt_is_reported(tokenizer: Any, example: MakeExample, config: Config) -> None:
    """A system prompt from params.yaml would otherwise be in no prompt."""
    rows = [example("a", "b", system="Answer."), example("c", "d", system=None)]
    assert check_split(config, tokenizer, "train", tokenize_split(tokenizer, rows, config.train, seed=1)) == []
    kept, tokenizer.chat_template = tokenizer.chat_template, CHATML.replace("SHOWN", "message.role != 'system'")
    try:
        found = check_split(config, tokenizer, "train", tokenize_split(tokenizer, rows, config.train, seed=1))
    finally:
        tokenizer.chat_template = kept
    (finding,) = found
    assert finding.message.endswith("a part of the prompt: system prompt (1)")
    assert finding.remedy == (
        "use one of models/templates/*.jinja, or prepend the system prompt to the user turn "
        "(models/templates/README.md)"
    )


@pytest.mark.parametrize(
    ("name", "kind", "remedy"),
    [
        ("gemma_training", "system", "prepend the system prompt to the user turn"),
        ("gemma3_training", "calls", "use a base with tools in its template (docs/data.md#tools)"),
        ("gemma_training", "calls", "user turn (models/templates/README.md); use a base with tools"),
    ],
)
def test_the_remedy_for_a_refused_row_names_the_refused_part(name: str, kind: str, remedy: str, config: Config) -> None:
    """Filters can't remove a system prompt of params.yaml."""
    tokenizer = shipped(name)
    split = tokenize_split(tokenizer, [ROWS[kind]], config.train, seed=1)
    (finding,) = check_split(config, tokenizer, "train", split)
    assert codes([finding]) == ["template-broken"]
    assert remedy in finding.remedy
    assert "data.filters" not in finding.remedy


def test_a_call_that_is_not_trained_on_has_a_remedy_that_helps(config: Config) -> None:
    """None of the project's templates supports tool calls."""
    tokenizer = shipped("llama3_training")
    split = tokenize_split(tokenizer, [ROWS["calls"]], config.train, seed=1)
    (finding,) = [one for one in check_split(config, tokenizer, "train", split) if one.code == "mask-wrong"]
    assert finding.remedy.startswith("use a base with tools in its template")
