"""The records exchanged between stages: messages, examples and predictions, as JSON lines.

One example of `data/prepared/train.jsonl`, shortened:

    {"id": "9f2c…", "source": "cpython", "line": 7, "agent": "exception-namer",
     "messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"},
                  {"role": "assistant", "content": "ValueError"}]}

Rows may also have `label` (of a classification), `tools` (that the assistant may call, as JSON schemas) and `group`
(whose rows stay in one split).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

Tool = dict[str, Any]  # the JSON schema of a function that the assistant may call


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `tool_calls` belong to the assistant, `name` and `tool_call_id` to a tool."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the message in the form of chat templates, without empty keys."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            fields["tool_calls"] = list(self.tool_calls)
        if self.name is not None:
            fields["name"] = self.name
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        return fields

    @property
    def text(self) -> str:
        """The complete text of this turn: the content, and the tool calls as JSON."""
        if not self.tool_calls:
            return self.content
        calls = json.dumps([call["function"] for call in self.tool_calls], ensure_ascii=False, sort_keys=True)
        return f"{self.content}\n{calls}" if self.content else calls


@dataclass(frozen=True, slots=True)
class Example:
    """One record: a prompt (all messages but the last) and its completion (the last, the assistant's)."""

    id: str
    source: str
    line: int
    agent: str
    messages: tuple[Message, ...]
    label: str | None = None
    tools: tuple[Tool, ...] = ()
    group: str | None = None  # a hash of the user's or conversation's name; its examples are not independent

    def to_json(self) -> dict[str, Any]:
        """Return one line of a split, without empty keys."""
        fields: dict[str, Any] = {"id": self.id, "source": self.source, "line": self.line, "agent": self.agent}
        if self.label is not None:
            fields["label"] = self.label
        fields["messages"] = [message.to_json() for message in self.messages]
        if self.tools:
            fields["tools"] = list(self.tools)
        if self.group is not None:
            fields["group"] = self.group
        return fields

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages given to the model."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The expected answer; if it only calls tools, the calls as JSON."""
        return self.messages[-1].text


@dataclass(frozen=True, slots=True)
class Answer:
    """One side's answer to a prompt, with its scores; None is a value that is unknown for this side."""

    text: str
    tokens: int | None
    finished: bool | None  # ended by the template's end token, not by the limit
    reference_nll: float | None = None  # summed negative log-likelihood of the reference's tokens
    failed: str | None = None  # why there is no answer
    scores: dict[str, float | None] = field(default_factory=dict)  # by scorer; None: could not be scored
    labels: dict[str, str | None] = field(default_factory=dict)  # by classification scorer; None: none of its classes


@dataclass(frozen=True, slots=True)
class Prediction:
    """Both sides' answers to one test example; examples of one `cluster` (a group, one prompt) are not independent."""

    id: str
    agent: str
    source: str
    cluster: str
    prompt: str
    reference: str
    reference_tokens: int
    baseline: Answer
    candidate: Answer

    def in_group(self, group: str) -> bool:
        """Return whether it belongs to a group: all, an agent or a source."""
        return group in (ALL, self.agent, self.source)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and new tokens of both sides' answers to one prompt, run alone; `first`: to the first token."""

    id: str
    baseline_seconds: float | None  # None: recorded elsewhere, without times
    baseline_first: float | None
    baseline_tokens: int | None
    candidate_seconds: float
    candidate_first: float | None
    candidate_tokens: int | None


def to_message(row: dict[str, Any]) -> Message:
    """Build a message from the result of `Message.to_json`."""
    return Message(**{**row, "tool_calls": tuple(row["tool_calls"])} if "tool_calls" in row else row)


def text_key(messages: Sequence[Message]) -> bytes:
    """Return a hash that ignores white space, so that conversations or prompts that leak can be found."""
    text = "\x1f".join(map(plain_turn, messages))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def plain_turn(message: Message) -> str:
    """Return role and text with every run of white space as one space: the basis for comparing turns."""
    return f"{message.role}\x1e{' '.join(message.text.split())}"


ALL = "all"  # the group of all test examples, so no agent or source may have this name
