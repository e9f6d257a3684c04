"""Tokenized rows: truncation, packing, padding, and the counts of all of it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from finetune.config.train import TrainConfig
from finetune.files.strict_json import read_json
from finetune.model.tokens import IGNORED, Tokenized, tokenize
from finetune.plan.order import epoch_order, measure_batches
from finetune.reports.validation import TokenCounts
from finetune.validate.tokenized import (
    TokenizedSplit,
    TokenRow,
    count_example,
    count_rows,
    last_supervised,
    pack,
    tokenize_split,
    write_arrow,
)
from tests.builders.kinds import MakeExample
from tests.builders.small_run import trainer_of, validated
from tests.builders.tokenized_rows import settings as settings
from tests.builders.tokenized_rows import tokenizer as tokenizer

STRATEGIES = ["random", "sequential", "group_by_length"]

Settings = Callable[..., TrainConfig]


def conversation(prompt: int, answer: int, more: int = 0) -> Tokenized:
    """Return tokens of which `answer` are supervised, the first after `prompt` others and before `more`."""
    ids = list(range(100, 100 + prompt + answer + more))
    return Tokenized(ids, [IGNORED] * prompt + ids[prompt : prompt + answer] + [IGNORED] * more)


def row(length: int, name: str = "one", supervised: int = 1) -> TokenRow:
    """Return a row of one example whose tokens all have one id, derived from the name."""
    ids = [sum(name.encode()) % 1000 + 5] * length
    return TokenRow((name,), Tokenized(ids, [IGNORED] * (length - supervised) + ids[:supervised]), (length,))


NONE = {"unsupervised_examples": 1, "examples": 0, "tokens": 0, "supervised_tokens": 0}

# ---- Truncation


@pytest.mark.parametrize(
    ("max_length", "told"),
    [
        (13, {}),
        (12, {"truncated_examples": 1, "lost_tokens": 1}),  # the newline after the end token
        (11, {"truncated_examples": 1, "lost_tokens": 2, "lost_supervised_tokens": 1, "lost_end_tokens": 1}),
        (9, {"truncated_examples": 1, "lost_tokens": 4, "lost_supervised_tokens": 3, "lost_end_tokens": 1}),
        (8, {"truncated_examples": 1, "lost_tokens": 13, "lost_supervised_tokens": 4, "lost_end_tokens": 1} | NONE),
    ],
)
def test_truncation_counts_of_one_example(max_length: int, told: dict[str, int]) -> None:
    """By hand: 8 prompt tokens, an answer of 3 with its end token, and a newline; max_length at each boundary."""
    whole, counts = conversation(8, 4, 1), TokenCounts.of()
    kept = Tokenized(whole.input_ids[:max_length], whole.labels[:max_length])
    count_example(counts, whole, kept)
    usual = {"examples": 1, "tokens": min(13, max_length), "supervised_tokens": min(4, max(0, max_length - 8))}
    assert counts == TokenCounts.of(**{"longest": 13} | usual | told)
    assert counts.tokens + counts.lost_tokens == 13
    assert counts.supervised_tokens + counts.lost_supervised_tokens == 4
    assert counts.all_examples == 1


def test_a_row_without_an_answer_loses_no_end_token() -> None:
    """It never had an end token; it is left out and counted as such."""
    whole, counts = conversation(8, 0), TokenCounts.of()
    assert (last_supervised(whole), last_supervised(conversation(8, 2))) == (-1, 9)
    count_example(counts, whole, whole)
    assert (counts.unsupervised_examples, counts.lost_end_tokens, counts.truncated_examples) == (1, 0, 0)


@given(
    turns=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 2)), max_size=20),
    max_length=st.integers(8, 20),
)
def test_nothing_is_lost_without_being_counted(turns: list[tuple[int, int, int]], max_length: int) -> None:
    """Every token of every example is either trained on or counted as lost."""
    counts, examples = TokenCounts.of(), [conversation(*turn) for turn in turns]
    for whole in examples:
        count_example(counts, whole, Tokenized(whole.input_ids[:max_length], whole.labels[:max_length]))
    assert counts.all_examples == len(examples)
    assert counts.tokens + counts.lost_tokens == sum(len(whole.input_ids) for whole in examples)
    assert counts.supervised_tokens + counts.lost_supervised_tokens == sum(whole.supervised for whole in examples)
    assert counts.longest == max((len(whole.input_ids) for whole in examples), default=0)
    assert counts.truncated_examples == sum(len(whole.input_ids) > max_length for whole in examples)


def test_rows_are_cut_at_max_length_and_empty_ones_are_left_out(
    tokenizer: Any, example: MakeExample, settings: Settings
) -> None:
    """The rows are the first tokens of what the template renders."""
    examples = [example("a b c", "ValueError"), example("a longer task than the other one", "TypeError")]
    whole = [tokenize(tokenizer, one.messages) for one in examples]
    edge = len(whole[0].input_ids)
    assert edge < len(whole[1].input_ids)
    split = tokenize_split(tokenizer, examples, settings(max_length=edge), seed=1)
    assert split.rows[0] == TokenRow((examples[0].id,), whole[0], (edge,))
    for kept in split.rows[1:]:
        assert kept.tokenized.input_ids == whole[1].input_ids[:edge]
    assert (split.counts.all_examples, split.counts.truncated_examples) == (2, 1)
    assert split.counts.rows == len(split.rows) == split.counts.examples
    assert not split.wrong and not split.refused
    short = tokenize_split(tokenizer, examples, settings(max_length=8), seed=1)
    assert short.rows == [] and short.counts.unsupervised_examples == 2
    assert (short.counts.positions, short.counts.padding, short.counts.longest_row) == (0, 0.0, 0)


# ---- Packing


def test_packing_fills_rows_best_fit_first() -> None:
    """Best fit, longest first: 6 + 4 and 5 + 3 + 2 exactly fill two rows of ten."""
    rows = [row(3, "c"), row(6, "a"), row(2, "e"), row(5, "b"), row(4, "d")]
    packed = pack(rows, 10)
    assert sorted(one.lengths for one in packed) == [(5, 3, 2), (6, 4)]
    assert sorted(one.ids for one in packed) == [("a", "d"), ("b", "c", "e")]


@profile(max_examples=40)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=40), spare=st.integers(0, 12))
def test_packing_cuts_nothing_and_loses_nothing(lengths: list[int], spare: int) -> None:
    """All examples are kept in one piece with their labels; no row is too long."""
    limit = max(lengths) + spare
    rows = []
    for number, length in enumerate(lengths):
        ids = list(range(number * 100, number * 100 + length))
        rows.append(TokenRow((f"id{number}",), Tokenized(ids, [IGNORED, *ids[1:]]), (length,)))
    found: Counter[Any] = Counter()
    for one in pack(rows, limit):
        assert sum(one.lengths) == len(one.tokenized.input_ids) == len(one.tokenized.labels) <= limit
        assert len(one.ids) == len(one.lengths)
        at = 0
        for name, length in zip(one.ids, one.lengths, strict=True):
            ids, labels = one.tokenized.input_ids[at : at + length], one.tokenized.labels[at : at + length]
            found[name, tuple(ids), tuple(labels)] += 1
            at += length
    assert found == Counter((one.ids[0], tuple(one.tokenized.input_ids), tuple(one.tokenized.labels)) for one in rows)


def test_packed_rows_are_counted_without_padding(tokenizer: Any, example: MakeExample, settings: Settings) -> None:
    """There are fewer rows with the same tokens, and the rows contain the start of each example."""
    examples = [example(f"task {at}" * (1 + at % 3), "ValueError") for at in range(12)]
    plain = tokenize_split(tokenizer, examples, settings(packing=False), seed=1).counts
    split = tokenize_split(tokenizer, examples, settings(packing=True), seed=1)
    counts = split.counts
    assert (counts.examples, counts.tokens, counts.supervised_tokens) == (12, plain.tokens, plain.supervised_tokens)
    assert counts.rows == len(split.rows) < plain.rows == 12
    assert (counts.positions, counts.padding) == (plain.tokens, 0.0)
    assert counts.longest_row == max(len(one.tokenized.input_ids) for one in split.rows) <= 256
    assert sorted(name for one in split.rows for name in one.ids) == sorted(one.id for one in examples)


@pytest.mark.parametrize("packed", [False, True])
def test_written_rows_equal_the_counted_ones(tmp_path: Path, packed: bool) -> None:
    """The rows are one Arrow stream; packed rows include the lengths of their examples."""
    from datasets import Dataset

    rows = [row(3, "a"), TokenRow(("b", "c"), conversation(4, 2), (4, 2))]
    write_arrow(tmp_path / "train.arrow", rows, packed=packed)
    read = Dataset.from_file(str(tmp_path / "train.arrow"))
    assert read["ids"][:] == [["a"], ["b", "c"]]
    assert read["length"][:] == [3, 6]
    tokens = [Tokenized(*pair) for pair in zip(read["input_ids"], read["labels"], strict=True)]
    assert tokens == [one.tokenized for one in rows]
    assert ("seq_lengths" in read.column_names) == packed
    if packed:
        assert read["seq_lengths"][:] == [[3], [4, 2]]


# ---- Order and padding


def test_padded_positions_of_micro_batches() -> None:
    """For rows of 5, 9, 2, 7 and 4 tokens in pairs, 9 + 9, 7 + 7 and 4 positions are computed."""
    found = measure_batches([0, 1, 2, 3, 4], [5, 9, 2, 7, 4], [1, 2, 2, 6, 3], 2)
    assert (found.positions, found.longest, found.largest, found.most_supervised) == (36, 9, 18, 8)
    found = measure_batches([1, 3, 0, 4, 2], [5, 9, 2, 7, 4], [1, 2, 2, 6, 3], 2)
    assert (found.positions, found.largest, found.most_supervised) == (30, 18, 8)
    found = measure_batches([0, 1, 2, 3, 4], [5, 9, 2, 7, 4], [1, 2, 2, 6, 3], 2, padded=False)
    assert (found.positions, found.longest, found.largest, found.most_supervised) == (27, 9, 14, 8)
    nothing = measure_batches([], [], [], 2)
    assert (nothing.positions, nothing.longest, nothing.largest, nothing.most_supervised) == (0, 0, 0, 0)


def test_micro_batch_counts_and_the_heaviest_batch(settings: Settings) -> None:
    """Rows are sequential: the heaviest micro-batch determines the memory."""
    train = settings(per_device_train_batch_size=2, train_sampling_strategy="sequential")
    split = TokenizedSplit(rows=[row(5), row(9, supervised=4), row(2), row(7, supervised=6), row(4)])
    split.counts.tokens = 27
    count_rows(split, train, seed=1)
    counts = split.counts
    assert (counts.rows, counts.positions, counts.padding) == (5, 36, 0.25)
    assert (counts.longest_row, counts.largest_batch, counts.most_supervised) == (9, 18, 7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_is_a_function_of_seed_and_epoch(strategy: str) -> None:
    """A resumed run draws the same rows whatever was drawn before, and each epoch has all rows once."""
    import torch

    lengths = [(at * 37) % 50 + 1 for at in range(60)]
    first = epoch_order(lengths, 8, 42, strategy, 1)
    torch.rand(5)
    torch.manual_seed(3)
    assert epoch_order(lengths, 8, 42, strategy, 1) == first
    assert sorted(first) == list(range(60))
    others = [epoch_order(lengths, 8, 42, strategy, 0), epoch_order(lengths, 8, 43, strategy, 1)]
    assert all((other == first) == (strategy == "sequential") for other in others)


def test_the_order_works_for_the_largest_seed_and_one_row() -> None:
    """A seed has 32 bits, a generator's 64; and grouping few rows must not divide by zero."""
    assert sorted(epoch_order([3, 1, 2], 2, 2**32 - 1, "random", 999)) == [0, 1, 2]
    for strategy in STRATEGIES:
        assert epoch_order([3], 64, 1, strategy, 0) == [0]


def test_grouping_by_length_pads_less() -> None:
    """Grouping by length serves only to reduce padding."""
    lengths = [(at * 37) % 200 + 1 for at in range(400)]

    def positions(strategy: str) -> int:
        return measure_batches(epoch_order(lengths, 8, 1, strategy, 0), lengths, lengths, 8).positions

    assert sum(lengths) <= positions("group_by_length") < 0.8 * positions("random")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "packing"), [("group_by_length", False), ("random", False), ("sequential", False), ("random", True)]
)
def test_the_trainers_padding_equals_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, packing: bool
) -> None:
    """The real data loader with TRL's collator over the first epoch: positions and heaviest batch are equal."""
    monkeypatch.chdir(tmp_path)
    config, paths = validated(tmp_path / "run", train__train_sampling_strategy=strategy, train__packing=packing)
    counts = read_json(paths.reports / "validation.json")["tokens"]["train"]
    trainer = trainer_of(config, paths)
    batches = list(trainer.get_train_dataloader())
    assert sum(batch["input_ids"].numel() for batch in batches) == counts["positions"]
    assert max(batch["input_ids"].numel() for batch in batches) == counts["largest_batch"]
    supervised = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    assert sum(supervised) == counts["supervised_tokens"]
    assert max(supervised) == counts["most_supervised"]
    if not packing:
        kept = sum(int(batch["attention_mask"].sum()) for batch in batches)
        assert kept == counts["tokens"]
        assert max(batch["input_ids"].shape[1] for batch in batches) == counts["longest_row"]
        assert all(batch["attention_mask"][:, 0].all() for batch in batches)  # padding is on the right
