"""Messages to token ids, and which of them the loss is taken on.

The chat template decides both: it renders the conversation, and its `{% generation %}` marks say which part the
assistant wrote. Tried with the embedded base, supervised tokens in brackets:

    <|im_start|>user ⏎ Which class? <|im_end|> ⏎ <|im_start|>assistant ⏎ [ValueError <|im_end|>] ⏎
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import ModelConfig
from finetune.errors import ConfigError
from finetune.records import Message, Tool

IGNORED = -100  # the label that cross-entropy leaves out (torch.nn.CrossEntropyLoss, ignore_index)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids of one conversation and the labels that train reads, both of length `tokens`."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """How many tokens the loss is taken on."""
        return sum(label != IGNORED for label in self.labels)


def load_tokenizer(model: ModelConfig, folder: Path | None = None) -> Any:
    """The base's tokenizer (or the one in `folder`), padding on the left; ConfigError where it can't serve.

    Left padding is what batched generation needs; training pads on the right in its own collator.
    """
    from transformers import AutoTokenizer

    source = str(folder or model.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=None if folder else model.revision, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"params.yaml: model.base: no tokenizer loads from {source}: {_first_line(error)}") from None
    if not tokenizer.chat_template:
        raise ConfigError(f"params.yaml: model.base: {source} has no chat template; use an instruct model")
    if "{% generation %}" not in tokenizer.chat_template.replace("{%-", "{%").replace("-%}", "%}"):
        tokenizer.chat_template = _marked_template(tokenizer, source)
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"params.yaml: model.base: {source} has no padding token; set one in its tokenizer")
    return tokenizer


def _marked_template(tokenizer: Any, source: str) -> str:
    """TRL's training version of a stock template that has no generation marks; ConfigError where TRL knows none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        template = None
    if not template:
        raise ConfigError(
            f"params.yaml: model.base: the chat template of {source} does not mark the assistant's turns; put "
            "{% generation %} and {% endgeneration %} around them, or every token would be masked"
        )
    return str(template)


def tokenize(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Tokenized:
    """Ids of the whole conversation, and labels that keep only what the assistant wrote (with its end token)."""
    encoded = tokenizer.apply_chat_template(
        [message.to_json() for message in messages],
        tools=list(tools) or None,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    return Tokenized(ids, [token if kept else IGNORED for token, kept in zip(ids, mask, strict=True)])


def tokenize_prompt(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """Ids of the prompt, up to where the assistant begins to write."""
    encoded = tokenizer.apply_chat_template(
        [message.to_json() for message in messages],
        tools=list(tools) or None,
        return_dict=True,
        add_generation_prompt=True,
    )
    return list(encoded["input_ids"])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
