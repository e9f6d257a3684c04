"""Check that the mask decodes to exactly the assistant's text and its end token, for the template and for real rows.

A made-up conversation shows what a template puts around an answer. Each answer of the data, decoded from its supervised
tokens, must then consist of the same frame around its own text, and nothing else.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import BaseModelError
from finetune.model.tokens import IGNORED, TEMPLATES, Tokenized, render, runs, tokenize
from finetune.records.examples import Example, Message, Tool
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

WHERE = "params.yaml: model.chat_template"
FIX = f"use one of {TEMPLATES}, or fix the generation markers in a copy"
ASKED = (
    Message("user", "Which colour?"),
    Message("assistant", "Ultramarine"),
    Message("user", "And which animal?"),
    Message("assistant", "Wombat"),
)

CODES |= {
    "end-token-unknown": Code(
        "error", "quality", "Generation does not stop at the token that ends an answer in the template."
    ),
    "mask-wrong": Code("error", "run", "The trained tokens are not those of the assistant's answer."),
    "end-token-unsupervised": Code("error", "run", "The model never learns to stop."),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """The supervised text that a template puts around an answer."""

    before: str
    after: str


def supervised_texts(tokenizer: Any, tokenized: Tokenized) -> list[str]:
    """Return the supervised spans of a conversation as text."""
    kept = [label != IGNORED for label in tokenized.labels]
    return [tokenizer.decode(tokenized.input_ids[begin:end]) for begin, end in runs(kept)]


def frames_of(tokenizer: Any, examples: Sequence[Example] = ()) -> set[Frame]:
    """Return the frames of answers in the made-up conversation; empty if the template drops one.

    If some of the examples have tools, the frames include those that the template uses with tools.
    """
    tools = next((example.tools for example in examples if example.tools), ())
    try:
        framed = _frames_with(tokenizer, tools) if tools else set()
    except BaseModelError:  # reported for each row
        framed = set()
    return _frames_with(tokenizer, ()) | framed


def _frames_with(tokenizer: Any, tools: Sequence[Tool]) -> set[Frame]:
    answers = [message.content for message in ASKED if message.role == "assistant"]
    texts = supervised_texts(tokenizer, tokenize(tokenizer, ASKED, tools))
    if len(texts) != len(answers) or any(answer not in text for answer, text in zip(answers, texts, strict=True)):
        return set()
    return {Frame(*text.split(answer, 1)) for answer, text in zip(answers, texts, strict=True)}


def check_template(tokenizer: Any, ends: Sequence[int]) -> list[Finding]:
    """Check the template alone: complete answers, end tokens that stop generation, known control tokens."""
    if not render(tokenizer, ASKED, (), tokenize=False).strip():
        return [Finding("template-broken", WHERE, "the chat template renders a conversation as empty text", FIX)]
    frames = frames_of(tokenizer)
    if not frames:
        what = "in a conversation with two answers, the two are not supervised as separate spans"
        return [Finding("mask-wrong", WHERE, what, FIX)]
    tokenized = tokenize(tokenizer, ASKED)
    _, end = runs([label != IGNORED for label in tokenized.labels])[0]
    last = tokenized.input_ids[end - 1]
    if last not in tokenizer.added_tokens_decoder:
        what = f"the last supervised token of an answer is {tokenizer.decode([last])!r}, which is not an end token"
        return [Finding("end-token-unsupervised", WHERE, what, FIX)]
    if last not in ends:
        stops = ", ".join(repr(tokenizer.decode([end])) for end in ends)
        what = f"answers end with {tokenizer.decode([last])!r}, but generation stops at {stops}"
        return [Finding("end-token-unknown", WHERE, what, "use a template that ends answers with one of these")]
    return []


def wrong_answers(tokenizer: Any, example: Example, whole: Tokenized, frames: set[Frame]) -> str | None:
    """Return what is wrong with the supervised text of one untruncated example, or None."""
    turns = [message for message in example.messages if message.role == "assistant"]
    texts = supervised_texts(tokenizer, whole)
    if len(texts) != len(turns):
        return f"{len(texts)} supervised spans for {len(turns)} answers"
    for turn, text in zip(turns, texts, strict=True):
        if turn.tool_calls and not _holds_calls(turn, text):
            names = ", ".join(str(call["function"]["name"]) for call in turn.tool_calls)
            return f"the call to {names} is missing from the rendered text: {text[:80]!r}"
        if not turn.tool_calls and not any(_framed(tokenizer, turn.content, text, frame) for frame in frames):
            return f"the supervised text is {text[:80]!r}, but the answer is {turn.content[:80]!r}"
    return None


def _framed(tokenizer: Any, answer: str, text: str, frame: Frame) -> bool:
    """Return whether a text is a framed answer, apart from blanks at the edges and the tokenizer's own changes."""
    before, after = frame.before.strip(), frame.after.strip()
    stripped = text.strip()
    if not stripped.endswith(after):
        return False
    stripped = stripped[: len(stripped) - len(after)]
    if "</think>" in answer:  # a template reformats or omits a row's own thoughts
        return stripped.strip().endswith(answer.rsplit("</think>", 1)[1].strip())
    inner = stripped.removeprefix(before).strip()
    if inner == answer.strip():
        return True
    # Compare after a round trip through tokens: some tokenizers normalize Unicode or blanks.
    return inner == str(tokenizer.decode(tokenizer.encode(answer.strip(), add_special_tokens=False))).strip()


def _holds_calls(turn: Message, text: str) -> bool:
    """Return whether the supervised text contains every called name and every argument, in any notation."""
    for call in turn.tool_calls or ():
        arguments = call["function"]["arguments"]
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        written = all(any(way in text for way in _ways_to_write(value)) for value in _leaves(values))
        if call["function"]["name"] not in text or not written:
            return False
    return True


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the values of an argument that contain no other values."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _ways_to_write(value: Any) -> set[str]:
    """Return a value as text, as JSON (with and without quotes and escapes) and as Python: notations of templates."""
    plain, escaped = json.dumps(value, ensure_ascii=False), json.dumps(value)
    inner = {form[1:-1] for form in (plain, escaped) if form.startswith('"')}
    html = {json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")}
    return {str(value), repr(value), plain, escaped, *inner, *html, *(form.strip('"') for form in html)}
