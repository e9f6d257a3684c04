"""Convert messages to token ids, and determine which of them are supervised.

The chat template determines both: it renders the conversation, and its `{% generation %}` marks show the assistant's
text. Example with the embedded base, supervised tokens in brackets:

    <|im_start|>user ⏎ Which class? <|im_end|> ⏎ <|im_start|>assistant ⏎ [ValueError <|im_end|>] ⏎
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.errors import BaseModelError
from finetune.records.examples import Message, Tool

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# ASCII bars, and DeepSeek's full-width ones (U+FF5C)
CONTROL_MARK = re.compile(r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|<(?:start|end)_of_\w+>|</?s>|\[/?INST\]")
# a comment in a template: {#- plain text: [INST] [/INST] -#}
PLAIN_MARKS = re.compile(r"\{#-?\s*plain text:([^#]*?)-?#\}")
OPENED_THOUGHT = 8  # tokens: some prompts end with the beginning of a thought (`<think>`), which the rows lack
TEMPLATES = "models/templates/*.jinja"
FETCH = "download it while connected (hf download {base}); ./finetune rehearse does not need the base"
COPY = "download the base again (hf download), or copy it completely"
IGNORED = -100  # the label that cross-entropy ignores (torch.nn.CrossEntropyLoss, ignore_index)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids of one conversation and the labels for train, both of length `tokens`."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """The number of supervised tokens."""
        return sum(label != IGNORED for label in self.labels)


def load_tokenizer(model: ModelConfig, folder: Path | None = None, *, fetch: bool = True) -> Any:
    """Load the base's tokenizer (or the one in `folder`), padding on the left. Raise BaseModelError if it is unusable.

    Batched generation needs left padding; training pads on the right in its own collator. Without `fetch`, only local
    files are used: without a network, the Hub's library tries for most of a minute.
    """
    from transformers import AutoTokenizer

    source = str(folder or model.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=None if folder else model.revision,
            trust_remote_code=False,
            padding_side="left",
            local_files_only=folder is not None or not fetch,
        )
    except Exception as error:  # a missing file, invalid JSON, tokenizers' own: each library layer has its own
        raise _no_tokenizer(model, source, first_line(error)) from None
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers' result without tokenizer files
        raise _no_tokenizer(model, source, "it has no vocabulary")
    if folder is None:  # a folder of ours contains the tokenizer as it was in training
        add_tokens(tokenizer, model)
        set_template(tokenizer, model)
        set_padding(tokenizer, model)
    return tokenizer


def _no_tokenizer(model: ModelConfig, source: str, why: str) -> BaseModelError:
    what = f"the tokenizer of {source} does not load: {why}"
    if Path(source).is_dir():
        return BaseModelError("base-incomplete", "base", what, COPY)
    return BaseModelError("base-missing", "base", what, FETCH.format(base=model.base))


def add_tokens(tokenizer: Any, model: ModelConfig) -> None:
    """Add the new tokens of params.yaml to the vocabulary. Raise BaseModelError if it has one of them."""
    known = tokenizer.get_vocab()
    if old := [token for token in model.add_tokens if token in known]:
        what = f"{old[0]} is a token of {model.base} already, with the id {known[old[0]]}"
        fix = "remove it; adapter.trainable_token_indices trains its embedding"
        raise BaseModelError("token-known", "add_tokens", what, fix)
    tokenizer.add_tokens(list(dict.fromkeys(model.add_tokens)))


def set_template(tokenizer: Any, model: ModelConfig) -> None:
    """Set a chat template that marks the assistant's turns. Raise BaseModelError if there is none."""
    if model.chat_template is not None:
        path = Path(model.chat_template)
        if not path.is_file():
            raise BaseModelError(
                "template-missing", "chat_template", f"{path}: no such file", f"use one of {TEMPLATES}"
            )
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BaseModelError(
                "template-broken", "chat_template", f"{path} is not UTF-8", "save it as UTF-8"
            ) from None
    template = tokenizer.chat_template
    if not template:
        what = f"{model.base} has no chat template"
        raise BaseModelError("template-missing", "chat_template", what, f"use an instruct model, or one of {TEMPLATES}")
    if isinstance(template, dict):
        tokenizer.chat_template = _join_variants(tokenizer, template, model.base)
    else:
        tokenizer.chat_template = _marked_template(tokenizer, template, model.base)


def _join_variants(tokenizer: Any, variants: dict[str, str], source: str) -> str:
    """Return one template for a base with named variants, which uses `tool_use` if there are tools, as transformers
    does, and otherwise `default`.

    If `tool_use` can't be marked, the result rejects tools.
    """
    default = _marked_template(tokenizer, variants.get("default") or next(iter(variants.values())), source)
    if "tool_use" not in variants:
        return default
    try:
        with_tools = _marked_template(tokenizer, variants["tool_use"], source)
    except BaseModelError:
        with_tools = "{{ raise_exception('the variant tool_use does not mark assistant turns') }}"
    # As in a file of its own, each variant starts a line, and its last line end is not rendered.
    first, second = (text.removesuffix("\n") + "{{ '' }}" for text in (with_tools, default))
    return f"{{% if tools %}}\n{first}{{% else %}}\n{second}{{% endif %}}"


def template_marks(tokenizer: Any) -> list[str]:
    """Return the control marks in a rendered conversation: `<|im_start|>`, `<end_of_turn>`, `[INST]` and similar ones.

    A mark that is not a single token is split into pieces, which the base, trained with the mark, does not recognize.
    Marks that the template lists as plain text are left out: the base was trained with their pieces.
    """
    turns = [Message("user", "a text"), Message("assistant", "a text"), Message("user", "a text")]
    found = CONTROL_MARK.findall(render(tokenizer, turns, (), tokenize=False, add_generation_prompt=True))
    plain = PLAIN_MARKS.search(tokenizer.chat_template)
    return sorted(set(found) - set(plain[1].split() if plain else ()))


def set_padding(tokenizer: Any, model: ModelConfig) -> None:
    """Set the padding token of params.yaml, if any. Raise BaseModelError if there is still none."""
    if model.pad_token is not None:
        if model.pad_token not in tokenizer.get_vocab():
            what = f"{model.pad_token} is not a token of {model.base}"
            raise BaseModelError("pad-missing", "pad_token", what, f"use one of its tokens, like {tokenizer.eos_token}")
        tokenizer.pad_token = model.pad_token
    if tokenizer.pad_token_id is None:
        spare = tokenizer.unk_token or tokenizer.eos_token
        raise BaseModelError("pad-missing", "pad_token", f"{model.base} has no padding token", f"write {spare!r}")


def _marked_template(tokenizer: Any, template: str, source: str) -> str:
    """Return a template with generation marks: its own or TRL's training version. Raise BaseModelError if unknown."""
    from trl.chat_template_utils import get_training_chat_template

    if GENERATION_MARK.search(template):
        return template
    tokenizer.chat_template = template
    try:
        marked = get_training_chat_template(tokenizer)
    except ValueError:
        marked = None
    if not marked:
        what = f"the chat template of {source} does not mark assistant turns, so no tokens would be trained on"
        fix = (
            f"use one of {TEMPLATES}, or put {{% generation %}} and {{% endgeneration %}} around them in a "
            "copy of the template"
        )
        raise BaseModelError("template-unmarked", "chat_template", what, fix)
    return str(marked)


def tokenize(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Tokenized:
    """Return ids of the complete conversation, and labels of exactly what the assistant must write.

    That is everything from the end of its prompt to its end token. Some templates mark more: the turn's own header
    (Qwen 2.5, DeepSeek, gpt-oss), or the line end after the end token (Qwen 3, Gemma), which no model has to generate.
    """
    encoded = render(tokenizer, messages, tools, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], list(encoded["assistant_masks"])
    starts = _prompt_lengths(tokenizer, messages, tools, ids)
    labels = [IGNORED] * len(ids)
    for begin, end in runs(mask):
        first = max((start for start in starts if begin <= start < end), default=begin)
        last = _without_line_end(tokenizer, ids, first, end)
        labels[first:last] = ids[first:last]
    return Tokenized(ids, labels)


def runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs of set values in the mask, as (begin, end) with the end excluded."""
    edges = [at for at in range(len(mask) + 1) if bool(mask[at : at + 1] and mask[at]) != bool(at and mask[at - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _prompt_lengths(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool], ids: list[int]) -> list[int]:
    """Return where the assistant's turns begin: the lengths of those prompts that are prefixes of the conversation."""
    turns = [at for at, message in enumerate(messages) if message.role == "assistant" and at]
    prompts = [tokenize_prompt(tokenizer, messages[:at], tools) for at in turns]
    shared = [sum(takewhile(bool, map(eq, ids, prompt))) for prompt in prompts]
    return [same for same, prompt in zip(shared, prompts, strict=True) if len(prompt) - same <= OPENED_THOUGHT]


def _without_line_end(tokenizer: Any, ids: list[int], first: int, end: int) -> int:
    """Return the end of a turn without blank text after its end token; unchanged if there is no such token."""
    last = end
    while last > first and not tokenizer.decode([ids[last - 1]]).strip():
        last -= 1
    return last if last > first and ids[last - 1] in tokenizer.added_tokens_decoder else end


def tokenize_prompt(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """Return the ids of the prompt, up to where the assistant begins to write."""
    return list(render(tokenizer, messages, tools, add_generation_prompt=True)["input_ids"])


def render(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool], **options: Any) -> Any:
    """Render the conversation with the chat template. Raise BaseModelError with the template's message on failure."""
    from jinja2 import TemplateError

    turns = [message.to_json() for message in messages]
    whole = options.get("tokenize", True)  # without tokenization, only the text is returned
    try:
        return tokenizer.apply_chat_template(turns, tools=list(tools) or None, return_dict=whole, **options)
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        roles = ", ".join(message.role for message in messages)
        what = f"the chat template rejects these turns ({roles}): {first_line(error)}"
        fix = f"fix the rows (data.filters), or use one of {TEMPLATES}"
        raise BaseModelError("template-broken", "chat_template", what, fix) from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's text: messages of libraries can be very long."""
    return str(error).strip().split("\n", 1)[0]
