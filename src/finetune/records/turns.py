"""The turns of a conversation: chat messages and ShareGPT's, with tool calls and their results, and their order.

{"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
 "function": {"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}}]}
{"role": "tool", "tool_call_id": "1", "content": "12 degrees"}
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.files.strict_json import parse_json
from finetune.records.examples import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
TURN_KEYS = {"role", "content", "tool_calls", "function_call", "name", "tool_call_id", "weight", "from", "value"}
DEEPEST = 100  # levels of objects and lists in a tool's arguments; beyond some hundreds, programs fail on JSON


def read_messages(value: Any, name: str) -> list[Message]:
    """Read chat messages (a list, or its JSON in a table's cell). Raise ValueError with the invalid one and why."""
    return [_message(turn, f"{name}[{at}]") for at, turn in enumerate(_list(value, name))]


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"{place} must be an object with role and content, not {kind_of(turn)}")
    role = _role(turn.get("role"), ROLES, f"{place}.role")
    calls = None
    if given := _from_json(turn.get("tool_calls") or None, f"{place}.tool_calls"):
        calls = _tool_calls(given, f"{place}.tool_calls")
    elif turn.get("function_call"):  # the former name, when only one call was possible
        calls = (_tool_call(turn["function_call"], f"{place}.function_call"),)
    if calls and role != "assistant":
        raise ValueError(f"{place} calls a tool, but its role is {role}")
    if turn.get("weight") == 0:  # marks turns that must not be trained on in some APIs
        raise ValueError(f"{place}.weight is 0, but every assistant turn is trained on; remove such turns")
    return Message(
        role=role,
        content=_content(turn.get("content"), f"{place}.content", may_be_empty=bool(calls) or role == "tool"),
        tool_calls=calls,
        name=_optional(turn.get("name"), f"{place}.name"),
        tool_call_id=_optional(turn.get("tool_call_id"), f"{place}.tool_call_id"),
    )


def unread_keys(value: Any) -> list[str]:
    """Return the keys of a row's turns that are ignored, such as `reasoning_content`; empty if there are no turns."""
    try:
        turns = _from_json(value, "turns")
    except ValueError:
        return []
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return [key for key in dict.fromkeys(key for turn in turns for key in turn) if key not in TURN_KEYS]


def read_sharegpt(value: Any, name: str) -> list[Message]:
    """Read ShareGPT's turns (`from`, `value`) as messages. Raise ValueError with the invalid one and the reason.

    Many files call chat's turns (`role`, `content`) conversations; such turns are read as chat messages.
    """
    return [_turn(turn, f"{name}[{at}]") for at, turn in enumerate(_list(value, name))]


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"{place} must be an object with from and value, not {kind_of(turn)}")
    if turn.get("from") is None and turn.get("role") is not None:
        return _message(turn, place)
    role = _role(turn.get("from"), SHAREGPT_ROLES, f"{place}.from")
    if turn["from"].lower() == "function_call":
        calls = _from_json(turn.get("value"), f"{place}.value")
        return Message(role, "", _tool_calls(calls if isinstance(calls, list) else [calls], f"{place}.value"))
    return Message(role, _content(turn.get("value"), f"{place}.value", may_be_empty=role == "tool"))


def _list(value: Any, name: str) -> list[Any]:
    parsed = _from_json(value, name)
    if not isinstance(parsed, list):
        raise ValueError(f"{name} must be a list of turns, not {kind_of(parsed)}")
    if not parsed:
        raise ValueError(f"{name} has no turns")
    return parsed


def _role(value: Any, known: Mapping[str, Role], place: str) -> Role:
    role = known.get(value.lower()) if isinstance(value, str) else None
    if role is None:
        what = f"is {value!r:.40}" if isinstance(value, str) else f"must be a string, not {kind_of(value)}"
        raise ValueError(f"{place} {what}; supported: {', '.join(known)}")
    return role


def _content(value: Any, place: str, *, may_be_empty: bool) -> str:
    if isinstance(value, list):  # content in parts, as in logs of some servers
        value = "".join(_part(part, f"{place}[{at}]") for at, part in enumerate(value))
    if may_be_empty and (value is None or (isinstance(value, str) and not value.strip())):
        return value or ""
    return readable(value, place)


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else None
        what = f" but {kind!r:.40}" if isinstance(kind, str) and kind != "text" else ""
        raise ValueError(f"{place} is not a text part{what}; only text is supported")
    return str(part["text"])


def _tool_calls(calls: Any, place: str) -> tuple[dict[str, Any], ...]:
    """Return calls in the form of chat templates: arguments are an object, not its JSON."""
    if not isinstance(calls, list):
        raise ValueError(f"{place} must be a list, not {kind_of(calls)}")
    if not calls:
        raise ValueError(f"{place} has no calls")
    return tuple(_tool_call(call, f"{place}[{at}]") for at, call in enumerate(calls))


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise ValueError(f"{place} does not name a function")
    arguments = _object(function.get("arguments") or {}, f"{place}.arguments")
    name, call_id = sound_text(function["name"], f"{place}.name"), _optional(call.get("id"), f"{place}.id")
    parsed = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return parsed if call_id is None else {"id": call_id, **parsed}


def _object(value: Any, place: str) -> dict[str, Any]:
    parsed = _from_json(value, place)
    if not isinstance(parsed, dict):
        raise ValueError(f"{place} must be an object, not {kind_of(parsed)}")
    _check_sound(parsed, place)
    return parsed if isinstance(value, str) else _without_nulls(parsed)


def read_tools(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the functions that the assistant may call, as JSON schemas. Raise ValueError if they are invalid."""
    parsed = _from_json(value, name)
    if parsed is None:
        return []
    if not isinstance(parsed, list):
        raise ValueError(f"{name} must be a list of objects, not {kind_of(parsed)}")
    for at, tool in enumerate(parsed):
        if not isinstance(tool, dict):
            raise ValueError(f"{name}[{at}] must be an object, not {kind_of(tool)}")
        _check_sound(tool, f"{name}[{at}]")
    return parsed if isinstance(value, str) else [_without_nulls(tool) for tool in parsed]


def check_order(messages: Sequence[Message]) -> None:
    """Raise ValueError unless system comes first if present, user and assistant alternate, tools answer calls, and the
    last turn is the assistant's.

    Chat templates reject other orders, or render them into text that no server will produce.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns or turns[-1].role != "assistant":
        last = f"the last turn has the role {turns[-1].role}" if turns else "there are no turns"
        raise ValueError(f"{last}; a conversation must end with an assistant turn")
    before = "start"
    for at, message in enumerate(turns, start=len(messages) - len(turns)):
        if message.role not in FOLLOWERS[before]:
            raise ValueError(f"turn {at + 1} has the role {message.role}, expected {' or '.join(FOLLOWERS[before])}")
        before = "call" if message.tool_calls else message.role


FOLLOWERS: dict[str, tuple[Role, ...]] = {
    "start": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("assistant", "tool"),
}


def _from_json(value: Any, place: str) -> Any:
    """Return the value, or the parsed JSON of a text, as used in tables; an empty cell is None."""
    try:
        return (parse_json(value) if value.strip() else None) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{place} contains broken JSON: {error}") from None


def _optional(value: Any, place: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{place} must be a string, not {kind_of(value)}")
    return sound_text(value, place)


def readable(value: Any, place: str) -> str:
    """Return the value if it is text that can be trained on."""
    if not isinstance(value, str):
        raise ValueError(f"{place} must be a string, not {kind_of(value)}")
    if not value.strip():
        raise ValueError(f"{place} is empty")
    return sound_text(value, place)


def sound_text(value: str, place: str) -> str:
    """Return the value unless it contains a lone surrogate, which no tokenizer accepts."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} contains an unpaired surrogate, which is not valid text") from None
    return value


def _without_nulls(value: Any) -> Any:
    """Remove the nulls that columnar files insert for missing keys; JSON in a text has none of these."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _check_sound(value: Any, place: str, depth: int = 0) -> None:
    """Raise ValueError if the value cannot be written as JSON that every program reads."""
    if depth > DEEPEST:
        raise ValueError(f"{place} is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        for key, item in value.items():
            sound_text(key, place)
            _check_sound(item, place, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_sound(item, place, depth + 1)
    elif isinstance(value, str):
        sound_text(value, place)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"{place} contains a number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} contains {value}, which is not valid JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise ValueError(f"{place} contains a {type(value).__name__}, which is not valid JSON")


def kind_of(value: Any) -> str:
    """Return the kind of a value for an error message."""
    return "null" if value is None else type(value).__name__
