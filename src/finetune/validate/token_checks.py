"""Tokenizes once and counts every token: what is trained on, what was cut, what was lost."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.config import TrainConfig
from finetune.console import progress
from finetune.model.tokens import IGNORED, Tokenized, tokenize
from finetune.records import Example
from finetune.validate.findings import Finding


@dataclass
class TokenCounts:
    """The token account of one split; what is not `lost` is in the validated data."""

    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    truncated_examples: int = 0
    lost_tokens: int = 0
    lost_supervised_tokens: int = 0
    lost_end_tokens: int = 0
    unsupervised_examples: int = 0  # no token of theirs is trained on; left out

    def to_json(self) -> dict[str, int]:
        """For the report."""
        return asdict(self)


def tokenize_split(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> tuple[list[tuple[str, Tokenized]], TokenCounts]:
    """The rows that train reads, as (example id, ids and labels), and the account of all tokens."""
    rows: list[tuple[str, Tokenized]] = []
    counts = TokenCounts()
    for example in progress(examples, "tokens"):
        whole = tokenize(tokenizer, example.messages, example.tools)
        kept = Tokenized(whole.input_ids[:max_length], whole.labels[:max_length])
        count_example(counts, whole, kept)
        if kept.supervised:
            rows.append((example.id, kept))
            counts.examples += 1
            counts.tokens += len(kept.input_ids)
            counts.supervised_tokens += kept.supervised
    return rows, counts


def count_example(counts: TokenCounts, whole: Tokenized, kept: Tokenized) -> None:
    """Add one example's losses to the account."""
    counts.longest = max(counts.longest, len(whole.input_ids))
    lost = len(whole.input_ids) - len(kept.input_ids)
    if lost:
        counts.truncated_examples += 1
        counts.lost_supervised_tokens += whole.supervised - kept.supervised
        counts.lost_end_tokens += last_supervised(whole) >= len(kept.input_ids)
    if kept.supervised:
        counts.lost_tokens += lost
    else:
        counts.unsupervised_examples += 1
        counts.lost_tokens += len(whole.input_ids)


def last_supervised(tokenized: Tokenized) -> int:
    """The position of the last supervised token (the answer's end), or -1."""
    return max((at for at, label in enumerate(tokenized.labels) if label != IGNORED), default=-1)


def check_answer_lengths(tokenizer: Any, test: Iterable[Example], max_new_tokens: int) -> list[Finding]:
    """Test answers that a candidate can't give in full: they count as wrong whatever it has learnt."""
    lengths = [tokenize(tokenizer, example.messages, example.tools).supervised for example in test]
    longer = sum(length > max_new_tokens + 1 for length in lengths)  # the end token comes on top
    if not longer:
        return []
    what = f"{max_new_tokens} is too few for {longer} of {len(lengths)} test answers (up to {max(lengths)} tokens)"
    return [Finding("answers-cut-off", "warning", "params.yaml: evaluate.max_new_tokens", what, f"use {max(lengths)}")]


def check_tokens(train: TrainConfig, split: str, counts: TokenCounts) -> list[Finding]:
    """Findings about truncation and empty masks of one split."""
    where, findings = "params.yaml: train.max_length", []
    if counts.examples == 0:
        what = f"no example of {split} has a token to train on: the mask is empty everywhere"
        return [
            Finding("mask-empty", "error", "model.base: chat template", what, "use a template that marks the answers")
        ]
    all_supervised = counts.supervised_tokens + counts.lost_supervised_tokens
    share = counts.lost_supervised_tokens / all_supervised
    longest = f"the longest example has {counts.longest} tokens"
    if share > train.max_lost_supervised_fraction:
        what = (
            f"{train.max_length} cuts {counts.lost_supervised_tokens} of {all_supervised} supervised tokens of "
            f"{split} ({share:.1%}, {counts.truncated_examples} examples); {longest}"
        )
        fix = f"use {counts.longest}, or allow the loss in train.max_lost_supervised_fraction"
        findings.append(Finding("supervised-tokens-lost", "error", where, what, fix))
    elif counts.truncated_examples:
        what = (
            f"{train.max_length} cuts {counts.truncated_examples} examples of {split}, "
            f"{counts.lost_end_tokens} of them before their end token; {longest}"
        )
        findings.append(Finding("rows-truncated", "warning", where, what, f"use {counts.longest}"))
    if counts.unsupervised_examples:
        what = f"{counts.unsupervised_examples} examples of {split} have no supervised token left and are left out"
        findings.append(Finding("rows-without-supervision", "warning", where, what, "use a greater max_length"))
    return findings
