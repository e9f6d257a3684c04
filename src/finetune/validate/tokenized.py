"""Tokenize once: the rows that train reads, truncated or packed, and the counts of all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.train import TrainConfig
from finetune.console import progress
from finetune.errors import BaseModelError
from finetune.model.tokens import IGNORED, Tokenized, tokenize
from finetune.plan.order import epoch_order, measure_batches
from finetune.plan.outlook import Workload
from finetune.records.examples import Example
from finetune.reports.validation import TokenCounts
from finetune.validate.checks.mask import frames_of, wrong_answers
from finetune.validate.checks.prompt import lost_parts


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row of train's input: one example, or several examples packed one after another."""

    ids: tuple[str, ...]  # of the examples
    tokenized: Tokenized
    lengths: tuple[int, ...]  # of the examples


@dataclass
class TokenizedSplit:
    """A split as rows of tokens, its counts, and the problems found."""

    rows: list[TokenRow] = field(default_factory=list)
    counts: TokenCounts = field(default_factory=TokenCounts.of)
    refused: list[tuple[Example, str]] = field(default_factory=list)  # the template does not render them
    lost: list[tuple[Example, list[str]]] = field(default_factory=list)  # parts of their prompts are missing
    wrong: list[tuple[Example, str]] = field(default_factory=list)  # the mask differs from their answers


def tokenize_split(tokenizer: Any, examples: Sequence[Example], train: TrainConfig, seed: int) -> TokenizedSplit:
    """Tokenize every example as train will read it: at most `train.max_length` tokens, packed if configured."""
    split = TokenizedSplit()
    frames = frames_of(tokenizer, examples)
    for example in progress(examples, "tokens"):
        try:
            whole = tokenize(tokenizer, example.messages, example.tools)
        except BaseModelError as error:
            split.refused.append((example, error.problem.message))
            continue
        if lost := lost_parts(tokenizer, example):
            split.lost.append((example, lost))
        if wrong := wrong_answers(tokenizer, example, whole, frames):
            split.wrong.append((example, wrong))
        kept = Tokenized(whole.input_ids[: train.max_length], whole.labels[: train.max_length])
        count_example(split.counts, whole, kept)
        if kept.supervised:
            split.rows.append(TokenRow((example.id,), kept, (len(kept.input_ids),)))
    if train.packing and split.rows:
        split.rows = pack(split.rows, train.max_length)
    count_rows(split, train, seed)
    return split


def workload_of(train: TokenCounts, validation: TokenCounts) -> Workload:
    """Return the plan's workload from the counts."""
    return Workload(
        rows=train.rows,
        tokens=train.tokens,
        positions=train.positions,
        longest_row=train.longest_row,
        supervised=train.most_supervised,
        validation=validation.positions,
    )


def count_example(counts: TokenCounts, whole: Tokenized, kept: Tokenized) -> None:
    """Add one example to the counts."""
    counts.longest = max(counts.longest, len(whole.input_ids))
    lost = len(whole.input_ids) - len(kept.input_ids)
    if lost:
        counts.truncated_examples += 1
        counts.lost_supervised_tokens += whole.supervised - kept.supervised
        counts.lost_end_tokens += last_supervised(whole) >= len(kept.input_ids)
    if kept.supervised:
        counts.examples += 1
        counts.tokens += len(kept.input_ids)
        counts.supervised_tokens += kept.supervised
        counts.lost_tokens += lost
    else:
        counts.unsupervised_examples += 1
        counts.lost_tokens += len(whole.input_ids)


def last_supervised(tokenized: Tokenized) -> int:
    """Return the position of the last supervised token (the answer's end), or -1."""
    return max((at for at, label in enumerate(tokenized.labels) if label != IGNORED), default=-1)


def pack(rows: Sequence[TokenRow], max_length: int) -> list[TokenRow]:
    """Pack examples into as few rows of `max_length` tokens as best-fit-decreasing finds (TRL's `bfd`), uncut."""
    from datasets import Dataset
    from trl import pack_dataset

    columns = {
        "input_ids": [row.tokenized.input_ids for row in rows],
        "labels": [row.tokenized.labels for row in rows],
        "number": [[at] * len(row.tokenized.input_ids) for at, row in enumerate(rows)],  # the example of each token
    }
    packed = []
    for row in pack_dataset(Dataset.from_dict(columns), max_length, "bfd"):
        numbers = dict.fromkeys(row["number"])  # in their order
        ids = tuple(rows[at].ids[0] for at in numbers)
        packed.append(TokenRow(ids, Tokenized(row["input_ids"], row["labels"]), tuple(row["seq_lengths"])))
    return packed


def count_rows(split: TokenizedSplit, train: TrainConfig, seed: int) -> None:
    """Add the positions of the first epoch's micro-batches, including padding, to the counts."""
    micro = train.per_device_train_batch_size
    lengths = [len(row.tokenized.input_ids) for row in split.rows]
    supervised = [row.tokenized.supervised for row in split.rows]
    grouped = micro * train.gradient_accumulation_steps
    order = epoch_order(lengths, grouped, seed, train.train_sampling_strategy, 0) if lengths else []
    batches = measure_batches(order, lengths, supervised, micro, padded=not train.packing)
    split.counts.rows, split.counts.positions = len(split.rows), batches.positions
    split.counts.largest_batch, split.counts.longest_row = batches.largest, batches.longest
    split.counts.most_supervised = batches.most_supervised


def write_arrow(path: Path, rows: Sequence[TokenRow], *, packed: bool) -> None:
    """Write one Arrow stream with the columns ids, input_ids, labels, length and, if packed, seq_lengths."""
    import pyarrow

    integers = pyarrow.list_(pyarrow.int32())
    columns = {
        "ids": pyarrow.array([row.ids for row in rows], pyarrow.list_(pyarrow.string())),
        "input_ids": pyarrow.array([row.tokenized.input_ids for row in rows], integers),
        "labels": pyarrow.array([row.tokenized.labels for row in rows], integers),
        "length": pyarrow.array([len(row.tokenized.input_ids) for row in rows], pyarrow.int32()),
    }
    if packed:  # where each example of a row begins, so that none attends to its neighbours
        columns["seq_lengths"] = pyarrow.array([row.lengths for row in rows], integers)
    table = pyarrow.table(columns)
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
