"""Rows of each format to examples.

interactions, one line of an agent's log:

    {"agent": "exception-namer", "task": "message: invalid mode", "output": "ValueError", "success": true}

`prompt` may stand for `task`, `response` for `output`; other fields are left alone.
"""

from dataclasses import asdict, dataclass
from typing import Any

from finetune.artifacts import sha256_json
from finetune.config import ALL, DataConfig
from finetune.prepare.sources import BadRow, Row
from finetune.records import Example, Message


@dataclass(frozen=True, slots=True)
class Interaction:
    """An interactions row after its fields were checked."""

    line: int
    agent: str
    task: str
    output: str
    success: bool


def parse_interaction(row: Row) -> Interaction | BadRow:
    """The row's fields, or what is wrong with them."""
    try:
        agent = _text(row.fields, "agent")
        if agent == ALL:
            raise ValueError(f"agent is named {ALL!r}, which stands for all test examples")
        return Interaction(
            line=row.line,
            agent=agent,
            task=_text(row.fields, "task", "prompt"),
            output=_text(row.fields, "output", "response"),
            success=_flag(row.fields, "success"),
        )
    except ValueError as error:
        return BadRow(row.line, str(error))


def _text(fields: dict[str, Any], *names: str) -> str:
    found = [name for name in names if name in fields]
    if len(found) != 1:
        wanted = " or ".join(names)
        raise ValueError(f"has both {' and '.join(found)}" if found else f"has no {wanted}")
    value = fields[found[0]]
    if not isinstance(value, str):
        raise ValueError(f"{found[0]} must be text, not {type(value).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{found[0]} holds half of a surrogate pair, which is no text")
    if not value.strip():
        raise ValueError(f"{found[0]} is empty")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false" if name in fields else f"has no {name}")
    return value


def to_example(interaction: Interaction, source: str, data: DataConfig) -> Example:
    """The conversation: the agent's system prompt (or the default one, or none), the task, the output."""
    system = data.system_prompts.get(interaction.agent, data.default_system_prompt)
    messages = [Message("system", system)] if system else []
    messages += [Message("user", interaction.task), Message("assistant", interaction.output)]
    content = [source, interaction.agent, [asdict(message) for message in messages]]
    return Example(sha256_json(content)[:16], source, interaction.line, interaction.agent, tuple(messages))
