"""Check the tokens: the mask, the prompts, truncation, padding, and whether test answers fit."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.config.train import TrainConfig
from finetune.config.types import Split
from finetune.config.validate import ValidateParams
from finetune.errors import BaseModelError
from finetune.model.tokens import IGNORED, TEMPLATES, runs, tokenize
from finetune.records.examples import Example
from finetune.reports.validation import TokenCounts
from finetune.validate.checks.prompt import CALLS, check_prompts, check_rendering, lost_parts, remedy_for
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding
from finetune.validate.tokenized import TokenizedSplit

LENGTH = "params.yaml: train.max_length"
TEMPLATE = "params.yaml: model.chat_template"

CODES |= {
    "mask-empty": Code("error", "run", "No tokens are trained on.", binding=True),
    "special-tokens-in-text": Code("warning", "quality", "Text that the tokenizer converts into control tokens."),
    "rows-truncated": Code("warning", "quality", "Rows are longer than max_length."),
    "rows-without-supervision": Code("warning", "quality", "Rows whose answers are cut off entirely are left out."),
    "truncated-over-budget": Code("error", "quality", "More rows are cut than train.budget allows."),
    "end-tokens-over-budget": Code("error", "quality", "More rows lose their end than train.budget allows."),
    "supervised-over-budget": Code("error", "quality", "More answer tokens are cut than train.budget allows."),
    "padding-over-budget": Code("error", "time", "More positions are padding than train.budget allows."),
    "answers-cut-off": Code("warning", "verdict", "Test answers longer than max_new_tokens."),
    "prompts-beyond-base": Code("error", "verdict", "Test prompts that leave no room for an answer.", in_params=False),
}


def check_split(params: ValidateParams, tokenizer: Any, name: str, split: TokenizedSplit) -> list[Finding]:
    """Return all findings about one tokenized split used in training."""
    rendered = [*check_rendering(tokenizer, name, split.refused), *check_prompts(name, split.lost)]
    return [*rendered, *check_masks(name, split), *check_truncation(params.train, name, split.counts)]


def check_masks(name: str, split: TokenizedSplit) -> list[Finding]:
    """Check that each mask decodes to the answers of its example and their end tokens."""
    findings = []
    if split.counts.supervised_tokens == 0 and split.counts.all_examples and not split.refused:
        what = f"no example of {name} has a supervised token: "
        if split.counts.lost_supervised_tokens:
            cut = Finding("mask-empty", LENGTH, what + "all answers are cut off", f"use {split.counts.longest}")
            return [cut]
        what, fix = what + "the loss mask is empty everywhere", f"use one of {TEMPLATES}, which mark the answers"
        findings.append(Finding("mask-empty", TEMPLATE, what, fix))
    elif split.wrong:
        example, why = split.wrong[0]
        what = f"{len(split.wrong)} examples of {name}, the first of {example.source}, line {example.line}: {why}"
        called = any(message.tool_calls for message in example.messages)
        fix = remedy_for([CALLS]) if called else f"use one of {TEMPLATES}, or fix the generation markers in a copy"
        findings.append(Finding("mask-wrong", TEMPLATE, what, fix))
    return findings


def check_truncation(train: TrainConfig, name: str, counts: TokenCounts) -> list[Finding]:
    """Compare what max_length truncates with the budget."""
    findings = []
    if counts.truncated_examples:
        supervised = counts.supervised_tokens + counts.lost_supervised_tokens
        for code, key, of, thing in (
            ("truncated-over-budget", "truncated_examples", counts.all_examples, "examples"),
            ("end-tokens-over-budget", "lost_end_tokens", counts.all_examples, "end tokens"),
            ("supervised-over-budget", "lost_supervised_tokens", supervised, "supervised tokens"),
        ):
            count = getattr(counts, key)
            share, allowed = count / max(of, 1), getattr(train.budget, key)
            if share > allowed:
                what = (
                    f"{train.max_length} cuts {count} of {of} {thing} of {name} ({share:.1%}, budget {allowed:.1%}); "
                    f"the longest example has {counts.longest} tokens"
                )
                findings.append(Finding(code, LENGTH, what, f"use {counts.longest}, or raise train.budget.{key}"))
        if not findings:
            what = (
                f"{train.max_length} cuts {counts.truncated_examples} of {counts.all_examples} examples of {name}, "
                f"{counts.lost_end_tokens} of them before their end token; the longest has {counts.longest} tokens"
            )
            findings.append(Finding("rows-truncated", LENGTH, what, f"use {counts.longest}"))
    if counts.unsupervised_examples and counts.examples:  # if none is left, the mask is empty
        what = f"{counts.unsupervised_examples} examples of {name} have no supervised token left and are dropped"
        findings.append(Finding("rows-without-supervision", LENGTH, what, f"use {counts.longest}"))
    return findings


def check_padding(train: TrainConfig, counts: TokenCounts) -> list[Finding]:
    """Compare the padding of the training split with the budget."""
    if counts.padding <= train.budget.padding:
        return []
    what = (
        f"{counts.padding:.1%} of the {counts.positions:,} positions of an epoch are padding "
        f"(budget {train.budget.padding:.1%})"
    )
    fix = "use group_by_length, or packing with flash_attention_2"
    return [Finding("padding-over-budget", "params.yaml: train.train_sampling_strategy", what, fix)]


def check_special_tokens(tokenizer: Any, splits: Mapping[Split, Sequence[Example]]) -> list[Finding]:
    """Find texts that contain a control token of this tokenizer literally: it is encoded as the token itself."""
    marks = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len)
    if not marks:
        return []
    pattern = re.compile("|".join(re.escape(mark) for mark in reversed(marks)))
    findings = []
    for name, examples in splits.items():
        found = [(example, mark) for example in examples if (mark := _first_mark(pattern, example))]
        if found:
            example, mark = found[0]
            what = (
                f"{len(found)} examples contain control tokens as text, the first ({example.source}, line "
                f"{example.line}) "
                f"{mark}; the model reads them as special tokens of the template"
            )
            fix = "drop them (data.risks.control_tokens: drop, or data.filters.drop_matching)"
            findings.append(Finding("special-tokens-in-text", f"data/prepared/{name}.jsonl", what, fix))
    return findings


def _first_mark(pattern: re.Pattern[str], example: Example) -> str | None:
    found = (pattern.search(message.text) for message in example.messages)
    return next((match[0] for match in found if match), None)


def check_test_answers(
    params: ValidateParams, tokenizer: Any, test: Sequence[Example], positions: int | None
) -> list[Finding]:
    """Find test answers that a candidate cannot give in full, so that they always count as wrong.

    `positions` is the base model's limit, if known. Rows that the template rejects are reported and left out.
    """
    limit, answers, prompts, split = params.evaluate.max_new_tokens, [], [], TokenizedSplit()
    for example in test:
        try:
            whole = tokenize(tokenizer, example.messages, example.tools)
        except BaseModelError as error:
            split.refused.append((example, error.problem.message))
            continue
        if lost := lost_parts(tokenizer, example):
            split.lost.append((example, lost))
        begin, end = (runs([label != IGNORED for label in whole.labels]) or [(0, 0)])[-1]
        answers.append(end - begin)
        prompts.append(begin)
    findings = [*check_rendering(tokenizer, "test", split.refused), *check_prompts("test", split.lost)]
    longer = sum(length > limit + 1 for length in answers)  # the end token is additional
    if longer:
        where, most = "params.yaml: evaluate.max_new_tokens", max(answers)
        what = f"{limit} is too small for {longer} of {len(answers)} test answers (up to {most} tokens)"
        findings.append(Finding("answers-cut-off", where, what, f"use {most}"))
    beyond = sum(length + limit > positions for length in prompts) if positions else 0
    if beyond:
        what = (
            f"{beyond} test prompts (up to {max(prompts)} tokens) plus {limit} new tokens exceed the "
            f"{positions} positions of the base"
        )
        fix = "use a smaller evaluate.max_new_tokens, or set data.filters.tokens"
        findings.append(Finding("prompts-beyond-base", "data/prepared/test.jsonl", what, fix))
    return findings
