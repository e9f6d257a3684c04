"""What crosses between stages: messages, examples and predictions, as JSON lines.

One example of `data/prepared/train.jsonl`, shortened:

    {"id": "9f2c…", "source": "cpython", "line": 7, "agent": "exception-namer",
     "messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"},
                  {"role": "assistant", "content": "ValueError"}]}

Where a row has them, also `label` (of a classification), `tools` (what the assistant may call, as JSON schemas) and
`group` (whose rows stay in one split).
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune.config_types import ALL
from finetune.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
Tool = dict[str, Any]  # the JSON schema of a function that the assistant may call


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `tool_calls` are the assistant's, `name` and `tool_call_id` a tool's."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What a chat template reads: no key without a value."""
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
        """All that was written in this turn: the content, and the tool calls as JSON."""
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
    group: str | None = None  # a hash of the user's or conversation's name; its examples are one piece of evidence

    def to_json(self) -> dict[str, Any]:
        """One line of a split: no key without a value."""
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
        """The messages that the model is given."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The answer that it should give; of an answer that only calls tools, the calls as JSON."""
        return self.messages[-1].text


@dataclass(frozen=True, slots=True)
class Answer:
    """What one side answered to one prompt, and how it was scored; None where that can't be known of this side."""

    text: str
    tokens: int | None
    finished: bool | None  # ended by the template's end token, not by the limit
    reference_nats: float | None = None  # summed negative log-likelihood of the reference's tokens
    failed: str | None = None  # why there is no answer
    scores: dict[str, float | None] = field(default_factory=dict)  # by scorer; None: it could not score this answer
    labels: dict[str, str | None] = field(default_factory=dict)  # by classification scorer; None: none of its classes


@dataclass(frozen=True, slots=True)
class Prediction:
    """Both sides' answers to one test example; examples of one `cluster` (a group, one prompt) are no new evidence."""

    id: str
    agent: str
    source: str
    cluster: str
    prompt: str
    reference: str
    reference_tokens: int
    baseline: Answer
    candidate: Answer

    def is_of(self, group: str) -> bool:
        """Whether it belongs to a group: all, an agent or a source."""
        return group in (ALL, self.agent, self.source)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and new tokens of both sides' answers to one prompt, given one at a time; first: to the first token."""

    id: str
    baseline_seconds: float | None  # None: recorded elsewhere, without times
    baseline_first: float | None
    baseline_tokens: int | None
    candidate_seconds: float
    candidate_first: float | None
    candidate_tokens: int | None


def text_key(messages: Sequence[Message]) -> bytes:
    """A hash that two conversations share when they differ in white space alone; of prompts, it tells leaks."""
    text = "\x1f".join(map(plain_turn, messages))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def plain_turn(message: Message) -> str:
    """Who spoke and what, with every run of white space as one space: what tells turns apart."""
    return f"{message.role}\x1e{' '.join(message.text.split())}"


def leaked(train: Iterable[Example], held_out: Iterable[Example]) -> list[str]:
    """Ids of the held-out examples whose prompt stands in train too."""
    known = {text_key(example.prompt) for example in train}
    return [example.id for example in held_out if text_key(example.prompt) in known]


def parse_json(text: str) -> Any:
    """One JSON value by the letter of RFC 8259: no NaN, no infinity, no key twice; ValueError otherwise."""
    try:
        return _JSON.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return fields


# Made once: json.loads would build such a decoder anew for every line.
_JSON = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_each_key_once)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that an earlier stage wrote, one a line; DataError names file and line."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise DataError(
                        f"{path}:{number}: broken JSON ({error}); run the stage that writes it again"
                    ) from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: no JSON object; run the stage that writes it again")
                yield row
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that writes it (dvc repro)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); run the stage that writes it again") from None


def to_json_lines(rows: Iterable[Any]) -> Iterator[str]:
    """Dataclass instances as JSON lines; ValueError for NaN or infinity."""
    for row in rows:
        content = row.to_json() if isinstance(row, Example) else asdict(row)
        yield json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def read_examples(path: Path) -> list[Example]:
    """The examples of one split; DataError where a line is not one."""
    return [_parse(path, number, row, _example) for number, row in enumerate(read_jsonl(path), start=1)]


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions that evaluate wrote; DataError where a line is not one."""
    return [_parse(path, number, row, _prediction) for number, row in enumerate(read_jsonl(path), start=1)]


def read_timings(path: Path) -> list[Timing]:
    """The raw latencies that evaluate wrote; DataError where a line is not one."""
    return [
        _parse(path, number, row, lambda fields: Timing(**fields)) for number, row in enumerate(read_jsonl(path), 1)
    ]


def _example(row: dict[str, Any]) -> Example:
    messages = tuple(to_message(message) for message in row["messages"])
    return Example(**{**row, "messages": messages, "tools": tuple(row.get("tools", ()))})


def to_message(row: dict[str, Any]) -> Message:
    """A message from what `Message.to_json` gave."""
    return Message(**{**row, "tool_calls": tuple(row["tool_calls"])} if "tool_calls" in row else row)


def _prediction(row: dict[str, Any]) -> Prediction:
    return Prediction(**{**row, "baseline": Answer(**row["baseline"]), "candidate": Answer(**row["candidate"])})


def _parse(path: Path, number: int, row: dict[str, Any], build: Any) -> Any:
    try:
        return build(row)
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{path}:{number}: not of this version's form ({error}); run the stage that writes it again"
        ) from None
