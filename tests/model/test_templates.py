"""The training templates of TRL and this project: the mask is exactly the answers with their ends, or a finding."""

from itertools import takewhile
from operator import eq
from pathlib import Path

import pytest
import trl

from finetune.errors import BaseModelError
from finetune.model.tokens import IGNORED, OPENED_THOUGHT, tokenize, tokenize_prompt
from finetune.records.examples import Example, Message
from finetune.validate.checks.mask import check_template, frames_of, supervised_texts, wrong_answers
from tests.builders.small_run import ROOT
from tests.builders.tokenized_rows import tokenizer_with

SHIPPED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*_training.jinja"))
OURS = sorted((ROOT / "models/templates").glob("*.jinja"))


def name_of(path: Path) -> str:
    """Return the template's name in the sets below."""
    return f"own_{path.stem}" if path in OURS else path.stem.removesuffix("_training")


ALL = [pytest.param(path, id=name_of(path)) for path in [*SHIPPED, *OURS]]
VISION = {"idefics3", "llava_next", "smolvlm"}  # they read lists of parts, and lose or refuse plain text
NO_SYSTEM = {"gemma"}
REFUSE_TOOLS = {"cohere", "cohere2", "gemma", "gemma3", *(f"own_{path.stem}" for path in OURS)}
LOSE_CALLS = {"deepseek_r1_distill", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"}  # silently: must be a finding

PLAIN = (
    Message("system", "Answer in one word."),
    Message("user", "Which <b>colour</b>?"),
    Message("assistant", "Blue, or 青い."),
    Message("user", "And two lines?"),
    Message("assistant", "One.\n\n  Two."),
)
TOOL = {"type": "function", "function": {"name": "find_rain", "description": "Rain", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "find_rain", "arguments": {"city": "Oslo"}}}
WITH_TOOLS = (
    Message("user", "Does it rain in Bergen's capital?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "it does", name="find_rain"),
    Message("assistant", "It rains there."),
)


@pytest.mark.parametrize("path", ALL)
def test_the_mask_is_the_answers_and_their_end_tokens(path: Path) -> None:
    """With one token too many the model learns to write headers; with one too few, never to stop."""
    tokenizer = tokenizer_with(path)
    if name_of(path) in VISION:
        with pytest.raises((BaseModelError, AssertionError), match=r"rejects these turns|mask-wrong"):
            assert not check_template(tokenizer, []), "mask-wrong"
        return
    messages = PLAIN[1:] if name_of(path) in NO_SYSTEM else PLAIN
    example = Example("one", "rows", 1, "agent", messages)
    whole = tokenize(tokenizer, messages)
    assert wrong_answers(tokenizer, example, whole, frames_of(tokenizer)) is None
    for text, answer in zip(supervised_texts(tokenizer, whole), [messages[-3], messages[-1]], strict=True):
        before, after = text.split(answer.content, 1)
        for other in messages:
            assert other.content not in before + after
        assert "ssistant" not in before  # no header of the turn, which belongs to the prompt
        assert after.strip()
        assert not after.endswith("\n")
    (finding,) = check_template(tokenizer, []) or [None]
    assert finding is not None
    assert finding.code == "end-token-unknown"  # no end token was given, so the template's is unknown


@pytest.mark.parametrize("path", ALL)
def test_training_starts_where_the_generation_prompt_ends(path: Path) -> None:
    """The trained text starts where generation starts, unless the generation prompt opens a reasoning block."""
    name = name_of(path)
    if name in VISION:
        pytest.skip("reads lists of parts")
    tokenizer = tokenizer_with(path)
    messages = PLAIN[1:3]
    whole, prompt = tokenize(tokenizer, messages), tokenize_prompt(tokenizer, messages[:1])
    first = next(at for at, label in enumerate(whole.labels) if label != IGNORED)
    shared = sum(takewhile(bool, map(eq, whole.input_ids, prompt)))
    if len(prompt) - shared <= OPENED_THOUGHT:
        assert first == shared
    assert shared == len(prompt) or "think" in tokenizer.decode(prompt[max(shared - 8, 0) :])


ARGUMENTS = {
    "yes": True,
    "none": None,
    "quoted": 'say "hi"',
    "lines": "one\ntwo",
    "slash": "a\\b",
    "inner": {"a": [1, 2.5]},
}


@pytest.mark.parametrize("path", ALL)
def test_arguments_of_any_kind_are_found(path: Path) -> None:
    """Templates write true or True, and escape quotes or not: none of that counts as a loss."""
    name, tokenizer = name_of(path), tokenizer_with(path)
    if name in REFUSE_TOOLS | VISION | LOSE_CALLS:
        pytest.skip("has no tool calls")
    call = {"type": "function", "function": {"name": "find_rain", "arguments": ARGUMENTS}}
    messages = (WITH_TOOLS[0], Message("assistant", "", tool_calls=(call,)), *WITH_TOOLS[2:])
    example = Example("one", "rows", 1, "agent", messages, tools=(TOOL,))
    whole = tokenize(tokenizer, example.messages, example.tools)
    assert wrong_answers(tokenizer, example, whole, frames_of(tokenizer)) is None


@pytest.mark.parametrize("path", ALL)
def test_tool_calls_are_trained_on_or_reported(path: Path) -> None:
    """Six of TRL's templates silently drop an assistant's call, so the row would teach an empty answer."""
    name, tokenizer = name_of(path), tokenizer_with(path)
    example = Example("one", "rows", 1, "agent", WITH_TOOLS, tools=(TOOL,))
    if name in REFUSE_TOOLS | VISION:
        with pytest.raises(BaseModelError, match="rejects these turns"):
            tokenize(tokenizer, example.messages, example.tools)
        return
    wrong = wrong_answers(
        tokenizer, example, tokenize(tokenizer, example.messages, example.tools), frames_of(tokenizer)
    )
    if name in LOSE_CALLS:
        assert wrong is not None
        assert "the call to find_rain is missing" in wrong
    else:
        assert wrong is None
