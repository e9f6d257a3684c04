"""Turn one batch of a source's rows into examples: the work of a worker, and the columns that it returns."""

from dataclasses import dataclass, field

import orjson

from finetune.config.data import DataConfig, Source
from finetune.prepare.filters import TokenCounter, give_form, reason_to_drop, token_counter
from finetune.prepare.hashing import ConversationKeys, Keys, conversation_keys, text_hash
from finetune.prepare.readers.batches import BadRow, Batch, Row
from finetune.prepare.risks import category_of, find_risks
from finetune.records.examples import Example
from finetune.records.formats import Conversation, parse_row
from finetune.records.near_duplicates import band_hashes, spoken_text

BAD_ROW = "bad_row"


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that a worker must know about a source."""

    source: Source
    format: str
    data: DataConfig
    labels: dict[str, list[str]]  # by agent, listed in the system prompt if there are any
    tokenizer: tuple[str, str | None] | None  # base and revision, if tokens are limited


@dataclass
class ReadRows:
    """A batch after reading. For all rows: line and drop reason (None: kept). For kept ones: their JSON and keys."""

    read_bytes: int
    lines: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    risky: list[tuple[int, str, str]] = field(default_factory=list)  # line, id (empty if dropped), kind
    stopped: tuple[int, str] | None = None  # line and kind of the first risk whose policy is stop
    json: list[bytes] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    keys: list[ConversationKeys] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)  # 0: no group
    agents: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    bands: Keys | None = None

    def drop(self, line: int, reason: str) -> None:
        """Record a row that is not kept."""
        self.lines.append(line)
        self.reasons.append(reason)


def read_batch(work: tuple[Reading, Batch]) -> ReadRows:
    """Parse, normalize and filter the rows of one batch, and compute the hashes for duplicates and splits."""
    reading, batch = work
    result = ReadRows(batch.read_bytes)
    spoken: list[str] = []
    counter = token_counter(*reading.tokenizer) if reading.tokenizer else None
    for row in batch.rows():
        if isinstance(row, BadRow):
            result.bad.append(row)
            result.drop(row.line, BAD_ROW)
            continue
        try:
            text = read_row(row, reading, counter, result)
        except ValueError as error:
            where = "" if row.starts_at is None else f" (line {row.starts_at})"
            result.bad.append(BadRow(row.line, f"{error}{where}"))
            result.drop(row.line, BAD_ROW)
            continue
        if text is not None:
            spoken.append(text)
    if reading.data.duplicates.near != "ignore":
        result.bands = band_hashes(spoken, reading.data.duplicates)
    return result


def read_row(row: Row, reading: Reading, counter: TokenCounter | None, result: ReadRows) -> str | None:
    """Add one row to the batch; return its spoken text, or None if dropped. Raise ValueError if it is bad."""
    data = reading.data
    conversation = parse_row(row.fields, reading.format, reading.source.columns)
    labels = reading.labels.get(conversation.agent or reading.source.default_agent, [])
    give_form(conversation, reading.source, data, labels)
    text = spoken_text(conversation.messages)
    held_out = reading.source.held_out
    reason = None if held_out else reason_to_drop(conversation, text, data.filters, counter)
    kinds = find_risks(all_text(conversation)) if reason is None else []
    for kind in kinds:
        policy = getattr(data.risks, category_of(kind))
        if policy == "stop" and result.stopped is None:
            result.stopped = (row.line, kind)
        if policy == "drop" and not held_out:
            reason = f"risk_{category_of(kind)}"
    if reason is not None:
        result.risky += [(row.line, "", kind) for kind in kinds]
        result.drop(row.line, reason)
        return None
    example_id = keep(conversation, row.line, reading.source.name, result)
    result.risky += [(row.line, example_id, kind) for kind in kinds]
    return text


def all_text(conversation: Conversation) -> str:
    """Return all text that the chat template passes to the model: messages, names and tools."""
    names = [name for message in conversation.messages for name in (message.name, message.tool_call_id) if name]
    tools = [orjson.dumps(conversation.tools).decode()] if conversation.tools else []
    return "\n".join([*(message.text for message in conversation.messages), *names, *tools])


def keep(conversation: Conversation, line: int, source: str, result: ReadRows) -> str:
    """Add the conversation as an example; return its id, which represents source, agent and content."""
    agent, messages = conversation.agent or source, conversation.messages
    content = [source, agent, [message.to_json() for message in messages], conversation.tools]
    number = text_hash(orjson.dumps(content))
    tools = tuple(conversation.tools)
    group = text_hash(conversation.group) | 1 if conversation.group is not None else 0
    named = f"{group:016x}" if group else None
    example = Example(f"{number:016x}", source, line, agent, tuple(messages), conversation.label, tools, named)
    result.lines.append(line)
    result.reasons.append(None)
    result.json.append(orjson.dumps(example.to_json(), option=orjson.OPT_APPEND_NEWLINE))
    result.ids.append(number)
    result.keys.append(conversation_keys(agent, messages, tools))
    result.groups.append(group)
    result.agents.append(agent)
    result.labels.append(conversation.label)
    return example.id
