"""Convert rows of each format to conversations: one class per format, with its fields, its signs and its parser.

One example line of each:

    interactions       {"agent": "support", "task": "Where is my order?", "output": "On its way.", "success": true}
    chat               {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    sharegpt           {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    alpaca             {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    prompt_completion  {"prompt": "The capital of France is", "completion": " Paris."}
    question_answer    {"question": "Who wrote Emma?", "answer": "Jane Austen"}
    classification     {"text": "My card was stolen", "label": "lost_card"}

`data.sources.N.columns` maps other names to these fields; unknown fields are ignored and listed in the ledger. Every
format may have `agent` and, if `columns` names it, `group` (rows of one group stay in one split).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from finetune.console import short
from finetune.records.examples import ALL, Message
from finetune.records.turns import check_order, read_messages, read_sharegpt, read_tools, readable, unread_keys

SHOWN_NAMES = 50  # columns of a file listed in a message

FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(slots=True)
class Conversation:
    """A row after its fields were checked: the messages and their metadata."""

    messages: list[Message]
    agent: str | None = None
    group: str | None = None
    label: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    success: bool = True
    own_system: bool = True  # whether a system message in it belongs to the row


class Fields:
    """A row's fields by our names; ValueError describes a problem with the field's name in the file."""

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self._row, self._columns = row, columns

    def place(self, name: str) -> str:
        """Return the field's name in the file."""
        return self._columns.get(name, name)

    def has(self, name: str) -> bool:
        """Return whether the row has the field, unless `columns` assigns the column of this name to another field."""
        return is_free(name, self._columns) and self.place(name) in self._row

    def value(self, name: str) -> Any:
        """Return the field's value, or None if it is missing, null or blank text."""
        found = self._row[self.place(name)] if self.has(name) else None
        return None if isinstance(found, str) and not found.strip() else found

    def given(self, *names: str) -> tuple[Any, str]:
        """Return the value of whichever of these fields the row has, and its name in the file.

        In columnar files, the other fields exist as well, as nulls.
        """
        there = {place: self._row[place] for name in names if self.has(name) and (place := self.place(name))}
        found = [place for place, value in there.items() if value is not None] or list(there)[:1]
        if not found:
            free = [name for name in names if is_free(name, self._columns)] or names
            raise ValueError(f"has no {' or '.join(map(self.place, free))}")
        if len(found) > 1:
            raise ValueError(f"has both {' and '.join(found)}")
        return there[found[0]], found[0]

    def text(self, *names: str) -> str:
        """Return the text of whichever of these fields the row has."""
        return readable(*self.given(*names))

    def optional_text(self, name: str) -> str | None:
        """Return the text of a field, or None if it is missing, null or blank."""
        found = self.value(name)
        return None if found is None else readable(found, self.place(name))

    def name(self, name: str) -> str:
        """Return a short text, or an integer or boolean as in JSON: a label, a user's id."""
        found, place = self.given(name)
        if isinstance(found, float) and found.is_integer():  # tables turn integers into floats beside nulls
            found = int(found)
        return readable(str(found).lower() if isinstance(found, int) else found, place)

    def flag(self, name: str) -> bool:
        """Return a boolean; tables store it as text or number."""
        found, place = self.given(name)
        known = FLAGS.get(str(found).strip().lower()) if isinstance(found, str | int) else None
        if known is None:
            raise ValueError(f"{place} must be true or false")
        return known


def is_free(name: str, columns: Mapping[str, str]) -> bool:
    """Return whether a field is available: `columns` does not assign the column of its name to another field."""
    return name in columns or name not in columns.values()


class Format:
    """A kind of row. A subclass defines the fields that identify it, the others that it reads, and their meaning."""

    name: ClassVar[str]
    signs: ClassVar[tuple[tuple[str, ...], ...]]  # at least one field of each group must exist
    also_reads: ClassVar[tuple[str, ...]] = ()
    turns: ClassVar[tuple[str, ...]] = ()  # the fields that contain turns

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields specific to this format."""
        return (*(name for names in self.signs for name in names), *self.also_reads)

    def fits(self, fields: Fields) -> bool:
        """Return whether a row has the signs of this format."""
        return all(any(map(fields.has, names)) for names in self.signs)

    def parse(self, fields: Fields) -> Conversation:
        """Convert the row to a conversation. Raise ValueError with the problem."""
        raise NotImplementedError


class Interactions(Format):
    """An agent's task and output, and whether it succeeded."""

    name = "interactions"
    signs = (("agent",), ("task", "prompt"), ("output", "response"))
    also_reads = ("success",)

    def parse(self, fields: Fields) -> Conversation:
        fields.text("agent")
        messages = _one_turn(fields.text("task", "prompt"), fields.text("output", "response"))
        return Conversation(messages, success=fields.flag("success"))


class Chat(Format):
    """OpenAI's messages, with tool calls and their results."""

    name = "chat"
    signs = (("messages",),)
    also_reads = ("tools",)
    turns = ("messages",)

    def parse(self, fields: Fields) -> Conversation:
        return Conversation(read_messages(*fields.given("messages")), tools=_tools(fields))


class ShareGpt(Format):
    """ShareGPT's turns of `from` and `value`."""

    name = "sharegpt"
    signs = (("conversations",),)
    also_reads = ("system", "tools")
    turns = ("conversations",)

    def parse(self, fields: Fields) -> Conversation:
        messages = read_sharegpt(*fields.given("conversations"))
        return Conversation(_with_system(fields, messages), tools=_tools(fields))


class Alpaca(Format):
    """An instruction, its input if any, and the output."""

    name = "alpaca"
    signs = (("instruction",), ("output", "response"))
    also_reads = ("input", "system")

    def parse(self, fields: Fields) -> Conversation:
        given = fields.optional_text("input")
        task = fields.text("instruction") + (f"\n\n{given}" if given else "")
        return Conversation(_with_system(fields, _one_turn(task, fields.text("output", "response"))))


class PromptCompletion(Format):
    """A prompt and its completion, as text or as turns."""

    name = "prompt_completion"
    signs = (("prompt",), ("completion",))
    also_reads = ("tools",)
    turns = ("prompt", "completion")

    def parse(self, fields: Fields) -> Conversation:
        prompt, completion = fields.given("prompt"), fields.given("completion")
        if isinstance(prompt[0], list) and isinstance(completion[0], list):  # TRL's conversational form
            return Conversation(read_messages(*prompt) + read_messages(*completion), tools=_tools(fields))
        return Conversation(_one_turn(fields.text("prompt"), fields.text("completion")), tools=_tools(fields))


class QuestionAnswer(Format):
    """A question and its answer."""

    name = "question_answer"
    signs = (("question",), ("answer",))

    def parse(self, fields: Fields) -> Conversation:
        return Conversation(_one_turn(fields.text("question"), fields.text("answer")))


class Classification(Format):
    """A text and the label that is its answer."""

    name = "classification"
    signs = (("text",), ("label",))

    def parse(self, fields: Fields) -> Conversation:
        label = fields.name("label")
        return Conversation(_one_turn(fields.text("text"), label), label=label)


CLASSES = (Interactions, Chat, ShareGpt, Alpaca, PromptCompletion, QuestionAnswer, Classification)
FORMATS: dict[str, Format] = {kind.name: kind() for kind in CLASSES}
# The names allowed in a mapping of columns: the fields of all formats, and the two common ones.
FIELDS = tuple(dict.fromkeys(("agent", "group", *(name for kind in FORMATS.values() for name in kind.fields))))


def parse_row(row: Mapping[str, Any], format_: str, columns: Mapping[str, str]) -> Conversation:
    """Convert the row to a conversation that ends with the assistant. Raise ValueError with the problem."""
    fields = Fields(row, columns)
    conversation = FORMATS[format_].parse(fields)
    conversation.agent = fields.optional_text("agent")
    if conversation.agent == ALL:
        raise ValueError(f"{fields.place('agent')} is named {ALL!r}, which is reserved for all test examples")
    if "group" in columns:
        conversation.group = fields.name("group")
    check_order(conversation.messages)
    return conversation


def _one_turn(task: str, answer: str) -> list[Message]:
    return [Message("user", task), Message("assistant", answer)]


def _with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    system = fields.optional_text("system")
    return [Message("system", system), *messages] if system else messages


def _tools(fields: Fields) -> list[dict[str, Any]]:
    return read_tools(fields.value("tools") or [], fields.place("tools"))


def detect_format(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return the format whose fields most of the rows have. Raise ValueError with the columns if there is not exactly
    one.

    Single rows with other fields are reported with their line when they are read.
    """
    counts = {name: sum(kind.fits(Fields(row, columns)) for row in rows) for name, kind in FORMATS.items()}
    most = max(counts.values())
    fitting = [name for name in FORMATS if most and counts[name] == most]
    # A Hub export of chat rows may contain `prompt` besides `messages`: the more complete form is used; the user must
    # resolve any other ambiguity.
    if len(fitting) > 1 and "chat" in fitting and set(fitting) <= {"chat", "prompt_completion"}:
        return "chat"
    if len(fitting) == 1:
        return fitting[0]
    what = f"looks like {' and like '.join(fitting)}" if fitting else "does not have the fields of any format"
    remedy = f"set format to one of {', '.join(FORMATS)}, and map other field names under columns"
    raise ValueError(f"{what} (columns: {listed(_names(rows)) or 'none'}); {remedy}")


def check_columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Raise ValueError if a named column is in none of these rows."""
    there = _names(rows)
    for ours, theirs in columns.items():
        if theirs not in there:
            what = f"has no column {short(theirs)!r}, which is mapped to {ours}"
            raise ValueError(f"{what} (columns: {listed(there)}); fix the name")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def listed(names: Sequence[str]) -> str:
    """Format names from a file for a one-line message."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(short, names[:SHOWN_NAMES])) + more


def unused_columns(rows: Sequence[Mapping[str, Any]], format_: str, columns: Mapping[str, str]) -> list[str]:
    """Return the columns of these rows, and the keys of their turns, that the format does not read."""
    read = {*FORMATS[format_].fields, "agent"}
    read |= {"group"} if "group" in columns else set()
    places = {columns.get(name, name) for name in read if is_free(name, columns)}
    found = [name for name in _names(rows) if name not in places]
    for ours in FORMATS[format_].turns:
        place = columns.get(ours, ours)
        found += dict.fromkeys(f"{place}[].{key}" for row in rows for key in unread_keys(row.get(place)))
    return found
