"""Findings about tokens: budgets, rows that the template refuses, control tokens, answers that exceed the limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import Config, params_of
from finetune.config.train import TrainConfig
from finetune.files.strict_json import read_json
from finetune.model.tokens import IGNORED, tokenize
from finetune.records.examples import Example, Message
from finetune.reports.validation import TokenCounts
from finetune.validate.checks.prompt import check_rendering
from finetune.validate.checks.token import (
    check_masks,
    check_padding,
    check_special_tokens,
    check_split,
    check_test_answers,
    check_truncation,
)
from finetune.validate.findings import Finding
from finetune.validate.tokenized import TokenizedSplit, tokenize_split
from tests.builders.checked_settings import codes, finding_text
from tests.builders.kinds import Change, MakeExample
from tests.builders.small_run import workspace
from tests.builders.tokenized_rows import settings as settings
from tests.builders.tokenized_rows import tokenizer as tokenizer

Settings = Callable[..., TrainConfig]


# ---- The budgets


def lossy(**counts: int) -> TokenCounts:
    """Return the counts of a split of 100 examples with 1,000 supervised tokens."""
    return TokenCounts.of(**{"examples": 100, "supervised_tokens": 1000, "longest": 300} | counts)


BUDGET = {"truncated_examples": 0.05, "lost_end_tokens": 0.03, "lost_supervised_tokens": 0.02, "padding": 0.25}


@pytest.mark.parametrize(
    ("code", "key", "at_edge", "past", "what"),
    [
        (
            "truncated-over-budget",
            "truncated_examples",
            {"truncated_examples": 5},
            {"truncated_examples": 6},
            "256 cuts 6 of 100 examples of train (6.0%, budget 5.0%); the longest example has 300 tokens",
        ),
        (
            "end-tokens-over-budget",
            "lost_end_tokens",
            {"truncated_examples": 4, "lost_end_tokens": 3},
            {"truncated_examples": 4, "lost_end_tokens": 4},
            "256 cuts 4 of 100 end tokens of train (4.0%, budget 3.0%); the longest example has 300 tokens",
        ),
        (
            "supervised-over-budget",
            "lost_supervised_tokens",
            {"truncated_examples": 1, "lost_supervised_tokens": 20, "supervised_tokens": 980},
            {"truncated_examples": 1, "lost_supervised_tokens": 21, "supervised_tokens": 979},
            "256 cuts 21 of 1000 supervised tokens of train (2.1%, budget 2.0%); the longest example has 300 tokens",
        ),
    ],
)
def test_each_budget_is_enforced_at_its_boundary(
    settings: Settings, code: str, key: str, at_edge: dict[str, int], past: dict[str, int], what: str
) -> None:
    """Exactly the budget is allowed with a warning; one more is an error that names the key."""
    train = settings(budget=BUDGET)
    assert codes(check_truncation(train, "train", lossy(**at_edge))) == ["rows-truncated"]
    (finding,) = check_truncation(train, "train", lossy(**past))
    assert (finding.code, finding.severity) == (code, "error")
    assert str(finding) == f"params.yaml: train.max_length: {what}; use 300, or raise train.budget.{key}"


def test_truncation_within_the_budget_is_a_warning(settings: Settings) -> None:
    """Even an allowed share is listed."""
    train = settings(budget=BUDGET)
    assert check_truncation(train, "train", lossy()) == []
    (finding,) = check_truncation(train, "train", lossy(truncated_examples=2, lost_end_tokens=1))
    assert finding_text(finding, "rows-truncated") == (
        "params.yaml: train.max_length: 256 cuts 2 of 100 examples of train, 1 of them before their end token; "
        "the longest has 300 tokens; use 300"
    )


def test_rows_that_are_left_out_are_a_warning(settings: Settings) -> None:
    """They count as truncated and are left out as well."""
    counts = lossy(examples=99, truncated_examples=1, unsupervised_examples=1)
    cut, left = check_truncation(settings(budget=BUDGET), "validation", counts)
    assert cut.code == "rows-truncated"
    assert finding_text(left, "rows-without-supervision") == (
        "params.yaml: train.max_length: 1 examples of validation have no supervised token left and are dropped; use 300"
    )


def test_a_split_without_supervised_tokens_is_reported_with_its_cause(settings: Settings) -> None:
    """Either the template marks nothing or max_length cuts everything; no share of zero is computed."""
    unmarked = TokenizedSplit(counts=TokenCounts.of(unsupervised_examples=4, truncated_examples=4, longest=300))
    (finding,) = check_masks("train", unmarked)
    assert finding_text(finding, "mask-empty") == (
        "params.yaml: model.chat_template: no example of train has a supervised token: the loss "
        "mask is empty everywhere; use one of models/templates/*.jinja, which mark the answers"
    )
    assert codes(check_truncation(settings(budget=BUDGET), "train", unmarked.counts)) == ["truncated-over-budget"]
    cut = TokenizedSplit(counts=unmarked.counts.model_copy(update={"lost_supervised_tokens": 40}))
    (finding,) = check_masks("train", cut)
    assert str(finding) == (
        "params.yaml: train.max_length: no example of train has a supervised token: all answers are cut off; use 300"
    )
    assert check_masks("train", TokenizedSplit()) == []  # a split without rows is another finding


def test_padding_over_the_budget_is_an_error(settings: Settings) -> None:
    """The device computes padding like any other position."""
    train = settings(budget=BUDGET)
    assert check_padding(train, TokenCounts.of(tokens=7500, positions=10_000)) == []
    (finding,) = check_padding(train, TokenCounts.of(tokens=7400, positions=10_000))
    assert finding_text(finding, "padding-over-budget") == (
        "params.yaml: train.train_sampling_strategy: 26.0% of the 10,000 positions of an epoch are padding "
        "(budget 25.0%); use group_by_length, or packing with flash_attention_2"
    )
    assert check_padding(train, TokenCounts.of()) == []


# ---- Rows that the template refuses or masks differently


def test_rows_refused_by_the_template_are_reported_and_left_out(
    tokenizer: Any, example: MakeExample, config: Config, settings: Settings
) -> None:
    """The first refused row is shown with its line and the template's message; the others are tokenized."""
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    kept = tokenizer.chat_template
    tokenizer.chat_template = strict + kept
    try:
        rows = [example("a", "b", system=None), example("c", "d", line=7), example("e", "f", line=9)]
        split = tokenize_split(tokenizer, rows, settings(), seed=1)
        test = check_test_answers(config, tokenizer, rows, 1024)
        (finding,) = check_rendering(tokenizer, "train", split.refused)
    finally:
        tokenizer.chat_template = kept
    assert [one.id for one, _ in split.refused] == [rows[1].id, rows[2].id]
    assert split.counts.examples == 1
    assert finding_text(finding, "template-broken") == (
        "params.yaml: model.chat_template: 2 examples of train, the first of rows, line 7: the "
        "chat template rejects these turns (system, user, assistant): no system here; use one of "
        "models/templates/*.jinja, or prepend the system prompt to the user turn (models/templates/README.md)"
    )
    assert codes(test) == ["template-broken"] and "2 examples of test" in test[0].message
    assert check_rendering(tokenizer, "train", []) == []


def test_a_row_whose_mask_differs_from_its_answer_is_reported(
    tokenizer: Any, example: MakeExample, config: Config, settings: Settings
) -> None:
    """A template that changes the assistant's text teaches something else."""
    kept = tokenizer.chat_template
    rows = [example("a", "ValueError"), example("b", "typeerror", line=4)]
    assert check_split(config, tokenizer, "train", tokenize_split(tokenizer, rows, settings(), seed=1)) == []
    assert "{%- generation %}" in kept
    tokenizer.chat_template = kept.replace("message.content", "message.content | replace('typeerror', 'TypeError')")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'] | replace('typeerror', 'TypeError')"
    )
    try:
        split = tokenize_split(tokenizer, rows, settings(), seed=1)
    finally:
        tokenizer.chat_template = kept
    (finding,) = check_split(config, tokenizer, "train", split)
    assert finding.code == "mask-wrong"
    assert finding.message == (
        "1 examples of train, the first of rows, line 4: the supervised text is 'TypeError<|im_end|>', but "
        "the answer is 'typeerror'"
    )


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_a_template_that_refuses_every_row_stops_validate_with_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    """The template renders the test conversation, so only the rows reveal it; nothing is left to plan or pack."""
    from finetune.errors import ConfigError
    from finetune.prepare import stage as prepare
    from finetune.validate import stage as validate

    monkeypatch.chdir(tmp_path)
    config, paths = workspace(tmp_path / "run", train__packing=packing)
    prepare.run(params_of("prepare", config), paths)
    template = Path("base/chat_template.jinja")
    strict = "{% for turn in messages if 'number' in turn.content %}{{ raise_exception('no numbers') }}{% endfor %}"
    template.write_text(strict + template.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"36 examples of train, the first of small, .* no numbers; fix or filter"):
        validate.run(params_of("validate", config), paths)
    report = read_json(paths.reports / "validation.json")
    refused = [finding for finding in report["findings"] if finding["code"] == "template-broken"]
    told = [finding["message"].split(",")[0] for finding in refused]
    assert told == ["36 examples of train", "12 examples of validation", "12 examples of test"]
    assert report["tokens"]["train"]["rows"] == 0
    assert report["schedule"]["examples"] == 36  # the planned run, not one without rows
    assert not paths.validated.exists()


# ---- Control tokens in texts


def test_a_control_token_in_a_text_is_a_warning(tokenizer: Any, example: MakeExample) -> None:
    """The tokenizer turns the text into a control token: a prompt could end its turn and impersonate another role."""
    clean = [example("what is <b>im_end</b>, or <|im end|>?", "nothing")]
    assert check_special_tokens(tokenizer, {"train": clean, "validation": [], "test": clean}) == []
    rows = [*clean, example("end it <|im_end|> now", "yes", line=4), example("why", "<|im_start|>", line=9)]
    (finding,) = check_special_tokens(tokenizer, {"train": clean, "test": rows})
    assert finding_text(finding, "special-tokens-in-text") == (
        "data/prepared/test.jsonl: 2 examples contain control tokens as text, the first (rows, "
        "line 4) <|im_end|>; the model reads them as special tokens of the template; drop them "
        "(data.risks.control_tokens: drop, or data.filters.drop_matching)"
    )


def test_control_tokens_in_tool_calls_and_system_prompts_are_found(tokenizer: Any) -> None:
    """Tool calls and system prompts go through the same template."""
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "<|im_end|>"}}}
    turns = [Message("user", "say it"), Message("assistant", "", tool_calls=(call,))]
    called = Example("one", "rows", 1, "a", tuple(turns))
    asked = Example("two", "rows", 2, "a", (Message("system", "<|im_start|>"), *turns[:1], Message("assistant", "x")))
    (finding,) = check_special_tokens(tokenizer, {"train": [called, asked]})
    assert "2 examples" in finding.message and "line 1) <|im_end|>" in finding.message


# ---- Test answers


def test_answers_beyond_the_token_limit_are_a_warning(tokenizer: Any, example: MakeExample, change: Change) -> None:
    """They count as wrong whatever was learnt; an exact match does not need the end token."""
    rows = [example("a", "ValueError"), example("b", "UnicodeDecodeError is a subclass of ValueError")]
    whole = [tokenize(tokenizer, one.messages) for one in rows]
    most = max(one.supervised for one in whole)

    def check(tokens: int) -> list[Finding]:
        return check_test_answers(change(**{"evaluate.max_new_tokens": tokens}), tokenizer, rows, 1024)

    assert check(most) == check(most - 1) == []
    (finding,) = check(most - 2)
    assert finding_text(finding, "answers-cut-off") == (
        f"params.yaml: evaluate.max_new_tokens: {most - 2} is too small for 1 of 2 test answers (up to {most} tokens); "
        f"use {most}"
    )


def test_prompts_beyond_the_bases_positions_are_an_error(tokenizer: Any, example: MakeExample, change: Change) -> None:
    """Prompt and answer share the positions; at the last one there is no finding, nor for an unknown base."""
    rows = [example("a", "ValueError"), example("a longer prompt than the other", "TypeError")]
    supervised = [[label != IGNORED for label in tokenize(tokenizer, one.messages).labels] for one in rows]
    prompt = max(labels.index(True) for labels in supervised)
    config = change(**{"evaluate.max_new_tokens": 16})
    assert check_test_answers(config, tokenizer, rows, prompt + 16) == []
    assert check_test_answers(config, tokenizer, rows, None) == []
    (finding,) = check_test_answers(config, tokenizer, rows, prompt + 15)
    assert finding_text(finding, "prompts-beyond-base") == (
        f"data/prepared/test.jsonl: 1 test prompts (up to {prompt} tokens) plus 16 new tokens exceed the "
        f"{prompt + 15} positions of the base; use a smaller evaluate.max_new_tokens, or set data.filters.tokens"
    )
