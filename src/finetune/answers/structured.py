"""Scores of 0 or 1 by the structure of an answer: valid Python syntax, and tool calls.

    python_parses  "```python\\nprint(1)\\n```", which is read and never run
    tool_calls     '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'

An answer is untrusted: deep nesting, huge numbers and megabytes of brackets count as wrong, not as an error.
"""

import ast
import json
import re
import textwrap
import warnings
from decimal import Decimal
from typing import Any

from finetune.answers.matching import stream_safe
from finetune.records.examples import Message

LONGEST_SOURCE = 200_000  # characters of Python; hostile text takes the parser quadratic time, a second at this size
WORK = 20  # characters that the search for calls may read in vain, as a multiple of the answer's length
MAY_BE_CALL = re.compile(r'\{\s*"|\[\s*[{\[]')

# ----------------------------------------------------------------------------------------------------------- Python


def python_parses(answer: str) -> bool:
    """Return whether the answer, or its first fenced block, is Python with at least one statement."""
    source = stream_safe(textwrap.dedent(fenced(answer)).strip())  # the parser normalizes names
    if len(source) > LONGEST_SOURCE:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape sequence is only a warning
        try:
            return bool(ast.parse(source).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # MemoryError: the parser's stack, not the RAM
            return False


def fenced(text: str) -> str:
    """Return the first fenced block of a Markdown text, even if it is not closed; without one, the complete text."""
    lines = text.splitlines(keepends=True)
    opening = next((at for at, line in enumerate(lines) if line.lstrip().startswith(("```", "~~~"))), None)
    if opening is None:
        return text
    mark = lines[opening].lstrip()[:3]
    rest = lines[opening + 1 :]
    closing = next((at for at, line in enumerate(rest) if line.strip().startswith(mark)), len(rest))
    return "".join(rest[:closing])


# ------------------------------------------------------------------------------------------------------- tool calls

_DECODER = json.JSONDecoder(parse_int=Decimal)  # int() rejects 5,000 digits and takes quadratic time below that


def same_calls(answer: str, reference: Message) -> bool:
    """Return whether the answer makes the reference's calls, in order and with equal arguments; else text, both."""
    wanted = [call for given in reference.tool_calls or () for call in _calls_in(given)]
    calls = find_calls(answer)
    try:
        return len(calls) == len(wanted) and all(map(same_json, calls, wanted))
    except RecursionError:
        return False


def find_calls(text: str) -> list[dict[str, Any]]:
    """Return the calls in a text, as name and arguments: JSON objects that have both, in any wrapping.

    This covers <tool_call> tags (Qwen, Hermes), [TOOL_CALLS] lists (Mistral), `parameters` (Llama) and OpenAI's own
    form. Each position is read about once: after WORK lengths of text that is not JSON, the rest is treated as text.
    """
    calls: list[dict[str, Any]] = []
    at, budget = 0, WORK * len(text) + 1000
    while budget > 0 and (start := MAY_BE_CALL.search(text, at)):
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            at = start.start() + 1
            budget -= error.pos - at + error.pos // 64  # the error itself counts the lines up to its position
        except RecursionError:  # no call is nested a thousand levels deep
            break
        else:
            calls += _calls_in(value)
    return calls


def _calls_in(value: Any) -> list[dict[str, Any]]:
    todo, calls = [value], []
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += reversed(value)
        elif isinstance(value, dict):
            if isinstance(value.get("function"), dict):  # {"type": "function", "function": {"name": …}}
                todo.append(value["function"])
            elif isinstance(value.get("tool_calls"), list):
                todo.append(value["tool_calls"])
            elif isinstance(value.get("name"), str) and ("arguments" in value or "parameters" in value):
                arguments = value.get("arguments", value.get("parameters"))
                calls.append({"name": value["name"], "arguments": _unpacked(arguments)})
    return calls


def _unpacked(arguments: Any) -> Any:
    """Return arguments as a value: OpenAI's form contains them as JSON text."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return _DECODER.decode(arguments)
    except (ValueError, RecursionError):
        return arguments


def same_json(first: Any, second: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0 but not true, and the order of keys is ignored."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if _is_number(first) and _is_number(second):
        return bool(_decimal(first) == _decimal(second))
    return isinstance(first, str | None) and bool(first == second)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal)


def _decimal(value: Any) -> Any:
    return Decimal(repr(value)) if isinstance(value, float) else value
