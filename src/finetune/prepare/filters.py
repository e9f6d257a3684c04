"""Process a conversation after reading, and decide whether it is kept: each drop has a reason code."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from unicodedata import normalize

import regex

from finetune.config.data import Bounds, DataConfig, FilterConfig, Source
from finetune.errors import ConfigError
from finetune.records.examples import Message
from finetune.records.formats import Conversation

PATTERN_SECONDS = 1.0  # a regular expression that takes longer on one row is backtracking

TokenCounter = Callable[[str], int]


def give_form(conversation: Conversation, source: Source, data: DataConfig, labels: Sequence[str]) -> None:
    """Normalize the text, set the agent, and prepend the system prompt: the row's own one, else the agent's, the
    source's or the default one. It lists `labels`, if any.
    """
    if data.unicode != "none":
        conversation.messages = [
            replace(message, content=normalize(data.unicode, message.content)) for message in conversation.messages
        ]
        labels = list(dict.fromkeys(normalize(data.unicode, label) for label in labels))
        conversation.label = conversation.label and normalize(data.unicode, conversation.label)
    conversation.agent = conversation.agent or source.default_agent
    own = conversation.messages[0] if conversation.messages[0].role == "system" else None
    conversation.own_system = own is not None
    default = data.default_system_prompt if source.system_prompt is None else source.system_prompt
    system = own.content if own else data.system_prompts.get(conversation.agent, default)
    if labels and conversation.label is not None:
        instruction = f"Answer with exactly one of these labels: {', '.join(labels)}."
        system = f"{system}\n{instruction}" if system else instruction
    turns = conversation.messages[1:] if own else conversation.messages
    conversation.messages = [Message("system", system), *turns] if system else turns


def reason_to_drop(
    conversation: Conversation, text: str, filters: FilterConfig, count_tokens: TokenCounter | None
) -> str | None:
    """Return the reason code of the first filter that the conversation fails, or None; `text` excludes its system
    prompt.

    Raises ValueError if a regular expression does not terminate on this row.
    """
    if filters.only_successful and not conversation.success:
        return "not_successful"
    given = {message.role for message in conversation.messages if message.role != "system" or conversation.own_system}
    if not given <= set(filters.roles):
        return "role_not_kept"
    if (found := _out_of(filters.characters, len(text), "characters")) is not None:
        return found
    if not all(matches(pattern, text) for pattern in filters.keep_matching):
        return "pattern_missing"
    if any(matches(pattern, text) for pattern in filters.drop_matching):
        return "pattern_found"
    if count_tokens and (found := _out_of(filters.tokens, count_tokens(text), "tokens")) is not None:
        return found
    return None


def _out_of(bounds: Bounds, found: int, unit: str) -> str | None:
    if bounds.min is not None and found < bounds.min:
        return f"too_few_{unit}"
    if bounds.max is not None and found > bounds.max:
        return f"too_many_{unit}"
    return None


def matches(pattern: str, text: str) -> bool:
    """Return whether the pattern occurs in the text. Raise ValueError if that takes longer than a second."""
    try:
        return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise ValueError(f"the pattern {pattern!r} did not finish within {PATTERN_SECONDS:g} s") from None


@cache
def token_counter(base: str, revision: str | None) -> TokenCounter:
    """Return a function that counts the tokens of a text with the base's tokenizer, without the chat template."""
    from tokenizers import Tokenizer

    file = Path(base) / "tokenizer.json"
    try:
        local = Path(base).is_dir()
        tokenizer = Tokenizer.from_file(str(file)) if local else Tokenizer.from_pretrained(base, revision or "main")
    except Exception as error:  # tokenizers raises nothing more specific
        reason = " ".join(str(error).split())[:200]
        what = f"has no tokenizer.json for data.filters.tokens ({reason})"
        raise ConfigError(base, what, "remove its bounds") from None
    tokenizer.no_truncation()  # a file may enable it, and every long text would count as short
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
