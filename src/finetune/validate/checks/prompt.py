"""Check that each prompt contains everything before the answer: system prompt, tools, tool calls, results and turns.

Many templates drop a part that they do not support, without an error: Llama 3 drops tools, and others the system
prompt. Each row is rendered again with a unique word after every text and name. A word that is missing, or that comes
after the answer, shows which part the model does not see:

    <|im_start|>system ⏎ Name the class. zq0qz<|im_end|> ⏎ <|im_start|>user ⏎ <b>invalid</b> mode zq1qz<|im_end|> ⏎
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.errors import BaseModelError
from finetune.model.tokens import TEMPLATES, render
from finetune.records.examples import Example, Message, Tool
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

WHERE = "params.yaml: model.chat_template"
WORD = re.compile(r"zq(\d+)qz")  # no template or language changes it, and JSON needs no escapes for it
SYSTEM, TOOLS, CALLS, RESULTS = "system prompt", "tools", "tool calls", "tool results"
FIX_ROWS = f"fix or filter these rows (data.filters), or use one of {TEMPLATES}"
FIX_SYSTEM = f"use one of {TEMPLATES}, or prepend the system prompt to the user turn (models/templates/README.md)"
FIX_TOOLS = "use a base with tools in its template (docs/data.md#tools), or a copy of the template that renders them"
FIX_TURN = "use a copy of the template that renders this part"

CODES |= {
    "prompt-incomplete": Code("error", "quality", "The template drops a part of the prompt, like tools."),
}


@dataclass
class MarkedRow:
    """A row with a unique word after each text and name; `places` lists message index (tools: -1) and part by word."""

    places: list[tuple[int, str]] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def word(self, at: int, part: str) -> str:
        """Return the next word."""
        self.places.append((at, part))
        return f"zq{len(self.places) - 1}qz"


def lost_parts(tokenizer: Any, example: Example) -> list[str]:
    """Return the parts that are not in front of the next answer, in training or in generation.

    A template may drop the text beside a tool call once the call is answered, as it does with thoughts. Nothing is
    known of a row that the template rejects with additional words.
    """
    row = mark_row(example)
    last = len(row.messages) - 1
    try:
        whole = _positions(render(tokenizer, row.messages, row.tools, tokenize=False))
        asked = render(tokenizer, row.messages[:-1], row.tools, tokenize=False, add_generation_prompt=True)
    except BaseModelError:
        return []
    prompt = _positions(asked)
    edges = _next_answers(row, whole)
    lost = []
    for number, (at, part) in enumerate(row.places):
        spoken = row.messages[at].tool_calls and part == _turn(at)
        if at == last:  # the mask is checked against the answer, except for a text beside a tool call
            seen = not spoken or number in whole
        else:
            seen = number in prompt and whole.get(number, edges[at]) < edges[at]
        if not seen and not (spoken and at != last and _is_thought(tokenizer, row, number)):
            lost.append(part)
    return list(dict.fromkeys(lost))


def mark_row(example: Example) -> MarkedRow:
    """Add a word to each tool's name, description and parameters, and to each message's text, calls and arguments."""
    row = MarkedRow()
    row.tools += [_mark_tool(row, tool) for tool in example.tools]
    row.messages += [_mark_message(row, at, message) for at, message in enumerate(example.messages)]
    return row


def _mark_tool(row: MarkedRow, tool: Tool) -> Tool:
    function = tool.get("function")
    inner = dict(function if isinstance(function, dict) else tool)
    if isinstance(inner.get("name"), str):
        inner["name"] += row.word(-1, TOOLS)
    if isinstance(inner.get("description"), str):
        inner["description"] += f" {row.word(-1, TOOLS)}"
    parameters = inner.get("parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict):
        named = {name + row.word(-1, TOOLS): schema for name, schema in parameters["properties"].items()}
        inner["parameters"] = {**parameters, "properties": named}
    return {**tool, "function": inner} if isinstance(function, dict) else inner


def _mark_message(row: MarkedRow, at: int, message: Message) -> Message:
    part = {"system": SYSTEM, "tool": RESULTS}.get(message.role, _turn(at))
    content = f"{message.content} {row.word(at, part)}" if message.content.strip() else message.content
    calls = []
    for call in message.tool_calls or ():
        name = call["function"]["name"] + row.word(at, CALLS)
        arguments = {**call["function"]["arguments"], "zq": row.word(at, CALLS)}
        calls.append({**call, "function": {**call["function"], "name": name, "arguments": arguments}})
    return replace(message, content=content, tool_calls=tuple(calls) or None)


def _turn(at: int) -> str:
    return f"turn {at + 1}"


def _positions(text: str) -> dict[int, int]:
    """Return where each word occurs first."""
    found: dict[int, int] = {}
    for match in WORD.finditer(text):
        found.setdefault(int(match[1]), match.start())
    return found


def _next_answers(row: MarkedRow, whole: dict[int, int]) -> dict[int, int]:
    """Return by message index (tools: -1) where the next answer begins in the whole conversation."""
    begins: dict[int, int] = {}
    for number, (at, _) in enumerate(row.places):
        if number in whole and at >= 0 and row.messages[at].role == "assistant":
            begins[at] = min(whole[number], begins.get(at, whole[number]))
    edges, following = {}, max(whole.values(), default=0) + 1  # without an answer, the end of the conversation
    for at in reversed(range(-1, len(row.messages))):
        edges[at] = following
        following = begins.get(at, following)
    return edges


def _is_thought(tokenizer: Any, row: MarkedRow, number: int) -> bool:
    """Return whether the template renders the text of a turn as long as the turn is the last one."""
    turns = row.messages[: row.places[number][0] + 1]
    try:
        return number in _positions(render(tokenizer, turns, row.tools, tokenize=False))
    except BaseModelError:  # the template rejects a conversation that ends there
        return False


def refused_parts(tokenizer: Any, example: Example) -> list[str]:
    """Return the parts without which the template renders a row that it rejects; empty if there are none."""
    for parts in ([SYSTEM], [TOOLS], [SYSTEM, TOOLS]):
        turns: Sequence[Message] = example.messages
        if SYSTEM in parts:
            turns = [message for message in turns if message.role != "system"]
        if TOOLS in parts:
            turns = [message for message in turns if message.role != "tool" and not message.tool_calls]
        try:
            render(tokenizer, turns, () if TOOLS in parts else example.tools, tokenize=False)
        except BaseModelError:
            continue
        return parts
    return []


def remedy_for(parts: Iterable[str]) -> str:
    """Return what to change so that the template renders these parts."""
    kinds = [{SYSTEM: FIX_SYSTEM}.get(part, FIX_TURN if part.startswith("turn") else FIX_TOOLS) for part in parts]
    return "; ".join(dict.fromkeys(kinds))


def check_rendering(tokenizer: Any, name: str, refused: Sequence[tuple[Example, str]]) -> list[Finding]:
    """Find rows that the chat template rejects, with the reason of the first."""
    if not refused:
        return []
    example, why = refused[0]
    what = f"{len(refused)} examples of {name}, the first of {example.source}, line {example.line}: {why}"
    return [Finding("template-broken", WHERE, what, remedy_for(refused_parts(tokenizer, example)) or FIX_ROWS)]


def check_prompts(name: str, lost: Sequence[tuple[Example, list[str]]]) -> list[Finding]:
    """Report the rows with an incomplete prompt, and the number of rows that lack each part."""
    if not lost:
        return []
    counts = Counter(part for _, parts in lost for part in parts)
    shown = ", ".join(f"{part} ({count})" for part, count in counts.most_common(4))
    example = lost[0][0]
    what = (
        f"in {len(lost)} examples of {name}, the first of {example.source}, line {example.line}, the template leaves "
        f"out a part of the prompt: {shown}"
    )
    return [Finding("prompt-incomplete", WHERE, what, remedy_for(counts))]
