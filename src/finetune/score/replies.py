"""The requests to an OpenAI-compatible chat server, and its replies.

    {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}

When streamed, each event contains a piece, and the last one the usage:

    data: {"choices": [{"delta": {"content": "Hel"}}]}
    data: {"choices": [], "usage": {"completion_tokens": 2}}
    data: [DONE]
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune.answers.matching import sound
from finetune.records.examples import Message


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `first_seconds` is the time to its first token, if streamed."""

    text: str
    tokens: int | None  # as the server counts them
    finished: bool  # not cut off by max_tokens
    seconds: float
    first_seconds: float | None
    model: str | None  # the server's name for the model


def server_message(content: str) -> str:
    """Return a server's error message as one line of at most 200 characters."""
    try:
        error = json.loads(content)
        error = error.get("error", error)
        content = error if isinstance(error, str) else str(error["message"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # not JSON of the usual form: use the text itself
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in content[:2000]).split())
    return line[:200]


def to_wire(message: Message) -> dict[str, Any]:
    """Convert a message to the API's form: a tool's arguments as JSON text, and every call with an id."""
    fields = message.to_json()
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.get("id", f"call_{at}"),
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"].get("arguments", {}), ensure_ascii=False),
                },
            }
            for at, call in enumerate(message.tool_calls)
        ]
    return fields


def read_reply(content: str, started: float) -> Reply:
    """Read the answer in a JSON response. Raise ValueError if there is none."""
    found = read_object(content)
    choice = first_choice(found)
    if choice is None:
        raise ValueError("it has no choices")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("its choice has no message")
    text = rendered(text_of(message.get("content")), message.get("tool_calls") or [])
    model = found.get("model")
    return Reply(
        text=text,
        tokens=tokens_of(found),
        finished=choice.get("finish_reason") != "length",
        seconds=time.perf_counter() - started,
        first_seconds=None,
        model=model if isinstance(model, str) else None,
    )


def read_stream(lines: Iterator[str], started: float) -> Reply:
    """Read the answer in a stream of server-sent events. Raise ValueError if the stream is incomplete."""
    parts: list[str] = []
    calls: dict[Any, dict[str, Any]] = {}
    first, tokens, reason, model, done = None, None, None, None, False
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            done = True
            break
        event = read_object(data)
        tokens = tokens_of(event) if tokens_of(event) is not None else tokens
        model = event["model"] if isinstance(event.get("model"), str) else model
        choice = first_choice(event)
        if choice is None:
            continue  # the last event contains only the usage
        delta = choice.get("delta") if isinstance(choice.get("delta"), dict) else {}
        assert isinstance(delta, dict)
        if first is None and any(delta.get(key) for key in ("content", "tool_calls", "reasoning_content")):
            first = time.perf_counter() - started
        parts.append(text_of(delta.get("content")))
        gather_calls(delta.get("tool_calls") or [], calls)
        reason = choice.get("finish_reason") or reason
    if not done and reason is None:
        raise ValueError("its stream ended early")
    text = rendered("".join(parts), list(calls.values()))
    return Reply(text, tokens, reason != "length", time.perf_counter() - started, first, model)


def gather_calls(deltas: Any, calls: dict[Any, dict[str, Any]]) -> None:
    """Merge the pieces of tool calls by the index in each."""
    for at, delta in enumerate(deltas if isinstance(deltas, list) else []):
        function = delta.get("function") if isinstance(delta, dict) else None
        if isinstance(function, dict):
            call = calls.setdefault(str(delta.get("index", at)), {"function": {"name": "", "arguments": ""}})
            for key in ("name", "arguments"):
                piece = function.get(key) or ""
                call["function"][key] += piece if isinstance(piece, str) else json.dumps(piece)


def read_object(content: str) -> dict[str, Any]:
    """Parse a JSON object that is not an error message. Raise ValueError otherwise."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"it is broken JSON: {content[:80]!r}") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    if found.get("error"):
        raise ValueError(f"it is an error: {server_message(content)}")
    return found


def first_choice(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first of the choices, or None."""
    choices = found.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def tokens_of(found: dict[str, Any]) -> int | None:
    """Return the server's count of new tokens."""
    usage = found.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def text_of(content: Any) -> str:
    """Return a message's content: a text, its parts, or nothing."""
    if isinstance(content, list):
        return "".join(text_of(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def rendered(content: str, calls: Any) -> str:
    """Format content and calls like `Message.text`; lone surrogates, which no file can contain, become "?"."""
    found = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            found.append({"function": {"name": function["name"], "arguments": unpacked(function.get("arguments"))}})
    return sound(Message("assistant", content, tuple(found) or None).text)


def unpacked(arguments: Any) -> Any:
    """Return a call's arguments as a value, or the text itself if it is malformed JSON."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
