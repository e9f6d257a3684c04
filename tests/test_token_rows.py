"""The rows of tokens: what max_length cuts, what is packed, what is padding, and the account of all of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from finetune.artifacts import read_json
from finetune.config import Config, TrainConfig, parse_config
from finetune.model.tokens import IGNORED, Tokenized, load_tokenizer, tokenize
from finetune.plan.order import epoch_order, measure_batches
from finetune.records import Example, Message
from finetune.validate.findings import Finding
from finetune.validate.token_checks import (
    check_masks,
    check_padding,
    check_rendering,
    check_special_tokens,
    check_split,
    check_test_answers,
    check_truncation,
)
from finetune.validate.token_rows import (
    TokenCounts,
    TokenizedSplit,
    TokenRow,
    count_example,
    count_rows,
    last_supervised,
    pack,
    tokenize_split,
    write_arrow,
)
from tests.small_run import ROOT, params, trainer_of, validated, workspace

STRATEGIES = ["random", "sequential", "group_by_length"]


def codes(findings: list[Finding]) -> list[str]:
    """The codes alone."""
    return [finding.code for finding in findings]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The embedded base's tokenizer."""
    return load_tokenizer(parse_config(params(), "params").model, ROOT / "models/tiny-base")


@pytest.fixture
def settings(change: Callable[..., Config]) -> Callable[..., TrainConfig]:
    """`settings(max_length=20)`: the section train with keys changed."""

    def changed(**keys: Any) -> TrainConfig:
        return change(**{f"train.{key}": value for key, value in keys.items()}).train

    return changed


def conversation(prompt: int, answer: int, more: int = 0) -> Tokenized:
    """Tokens of which `answer` are supervised, the first after `prompt` others and before `more`."""
    ids = list(range(100, 100 + prompt + answer + more))
    return Tokenized(ids, [IGNORED] * prompt + ids[prompt : prompt + answer] + [IGNORED] * more)


def row(length: int, name: str = "one", supervised: int = 1) -> TokenRow:
    """A row of one example, all its tokens of one id that the name determines."""
    ids = [sum(name.encode()) % 1000 + 5] * length
    return TokenRow((name,), Tokenized(ids, [IGNORED] * (length - supervised) + ids[:supervised]), (length,))


# ---- What is cut


@pytest.mark.parametrize(
    ("max_length", "told"),
    [
        (13, {}),
        (12, {"truncated_examples": 1, "lost_tokens": 1}),  # the line end after the end token
        (11, {"truncated_examples": 1, "lost_tokens": 2, "lost_supervised_tokens": 1, "lost_end_tokens": 1}),
        (9, {"truncated_examples": 1, "lost_tokens": 4, "lost_supervised_tokens": 3, "lost_end_tokens": 1}),
        (
            8,
            {
                "truncated_examples": 1,
                "lost_tokens": 13,
                "lost_supervised_tokens": 4,
                "lost_end_tokens": 1,
                "unsupervised_examples": 1,
                "examples": 0,
                "tokens": 0,
                "supervised_tokens": 0,
            },
        ),
    ],
)
def test_the_account_of_one_example(max_length: int, told: dict[str, int]) -> None:
    """By hand, 8 tokens of prompt, an answer of 3 and its end token, and a line end: each length at its edge."""
    whole, counts = conversation(8, 4, 1), TokenCounts()
    kept = Tokenized(whole.input_ids[:max_length], whole.labels[:max_length])
    count_example(counts, whole, kept)
    usual = {"examples": 1, "tokens": min(13, max_length), "supervised_tokens": min(4, max(0, max_length - 8))}
    assert counts == TokenCounts(**{"longest": 13} | usual | told)
    assert counts.tokens + counts.lost_tokens == 13
    assert counts.supervised_tokens + counts.lost_supervised_tokens == 4
    assert counts.all_examples == 1


def test_a_row_without_an_answer_has_lost_no_end() -> None:
    """It never had one; it is left out and counted as such."""
    whole, counts = conversation(8, 0), TokenCounts()
    assert (last_supervised(whole), last_supervised(conversation(8, 2))) == (-1, 9)
    count_example(counts, whole, whole)
    assert (counts.unsupervised_examples, counts.lost_end_tokens, counts.truncated_examples) == (1, 0, 0)


@given(
    turns=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 2)), max_size=20),
    max_length=st.integers(8, 20),
)
def test_nothing_is_lost_without_being_counted(turns: list[tuple[int, int, int]], max_length: int) -> None:
    """Every token of every example is trained on, or in the account of what is not."""
    counts, examples = TokenCounts(), [conversation(*turn) for turn in turns]
    for whole in examples:
        count_example(counts, whole, Tokenized(whole.input_ids[:max_length], whole.labels[:max_length]))
    assert counts.all_examples == len(examples)
    assert counts.tokens + counts.lost_tokens == sum(len(whole.input_ids) for whole in examples)
    assert counts.supervised_tokens + counts.lost_supervised_tokens == sum(whole.supervised for whole in examples)
    assert counts.longest == max((len(whole.input_ids) for whole in examples), default=0)
    assert counts.truncated_examples == sum(len(whole.input_ids) > max_length for whole in examples)


def test_rows_are_cut_at_max_length_and_empty_ones_are_left_out(
    tokenizer: Any, example: Callable[..., Example], settings: Callable[..., TrainConfig]
) -> None:
    """What is trained on is the beginning of what the template renders, to the token."""
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


# ---- The budgets


def lossy(**counts: int) -> TokenCounts:
    """A split of 100 examples with 1,000 supervised tokens, as a whole."""
    return TokenCounts(**{"examples": 100, "supervised_tokens": 1000, "longest": 300} | counts)


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
def test_each_budget_at_its_edge(
    settings: Callable[..., TrainConfig], code: str, key: str, at_edge: dict[str, int], past: dict[str, int], what: str
) -> None:
    """Exactly the budget is allowed and told as a warning; one more is an error that names the key."""
    train = settings(budget=BUDGET)
    assert codes(check_truncation(train, "train", lossy(**at_edge))) == ["rows-truncated"]
    (finding,) = check_truncation(train, "train", lossy(**past))
    assert (finding.code, finding.severity) == (code, "error")
    assert str(finding) == f"params.yaml: train.max_length: {what}; use 300, or raise train.budget.{key}"


def test_what_is_cut_within_the_budget_is_a_warning(settings: Callable[..., TrainConfig]) -> None:
    """Whoever allows a share still wants to know which."""
    train = settings(budget=BUDGET)
    assert check_truncation(train, "train", lossy()) == []
    (finding,) = check_truncation(train, "train", lossy(truncated_examples=2, lost_end_tokens=1))
    assert str(finding) == (
        "params.yaml: train.max_length: 256 cuts 2 of 100 examples of train, 1 of them before their end token; "
        "the longest has 300 tokens; use 300"
    )
    assert (finding.code, finding.severity) == ("rows-truncated", "warning")


def test_rows_that_are_left_out_are_a_warning(settings: Callable[..., TrainConfig]) -> None:
    """They count among the truncated, and are gone besides."""
    counts = lossy(examples=99, truncated_examples=1, unsupervised_examples=1)
    cut, left = check_truncation(settings(budget=BUDGET), "validation", counts)
    assert cut.code == "rows-truncated"
    assert str(left) == (
        "params.yaml: train.max_length: 1 examples of validation have no supervised token left and are left out; "
        "use 300"
    )
    assert (left.code, left.severity) == ("rows-without-supervision", "warning")


def test_a_split_without_any_supervised_token_is_told_by_its_cause(settings: Callable[..., TrainConfig]) -> None:
    """The template marks nothing, or max_length cuts everything; either way no share of nothing is computed."""
    unmarked = TokenizedSplit(counts=TokenCounts(unsupervised_examples=4, truncated_examples=4, longest=300))
    (finding,) = check_masks("train", unmarked)
    assert str(finding) == (
        "params.yaml: model.chat_template: no example of train has a token to train on: the mask is empty everywhere; "
        "use one of models/templates/*.jinja, which mark the answers"
    )
    assert (finding.code, finding.severity) == ("mask-empty", "error")
    assert codes(check_truncation(settings(budget=BUDGET), "train", unmarked.counts)) == ["truncated-over-budget"]
    cut = TokenizedSplit(counts=replace(unmarked.counts, lost_supervised_tokens=40))
    (finding,) = check_masks("train", cut)
    assert str(finding) == (
        "params.yaml: train.max_length: no example of train has a token to train on: all answers are cut off; use 300"
    )
    assert check_masks("train", TokenizedSplit()) == []  # no row at all is another finding


def test_padding_over_the_budget_is_an_error(settings: Callable[..., TrainConfig]) -> None:
    """The device computes it like any other position."""
    train = settings(budget=BUDGET)
    assert check_padding(train, TokenCounts(tokens=7500, positions=10_000)) == []
    (finding,) = check_padding(train, TokenCounts(tokens=7400, positions=10_000))
    assert str(finding) == (
        "params.yaml: train.train_sampling_strategy: 26.0% of the 10,000 positions of an epoch are padding "
        "(budget 25.0%); use group_by_length, or packing with flash_attention_2"
    )
    assert (finding.code, finding.severity) == ("padding-over-budget", "error")
    assert check_padding(train, TokenCounts()) == []


# ---- Rows that the template refuses or masks in another way


def test_rows_that_the_template_refuses_are_told_and_left_out(
    tokenizer: Any, example: Callable[..., Example], config: Config, settings: Callable[..., TrainConfig]
) -> None:
    """By the first of them with its line, in the template's words; the others are tokenized."""
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    kept = tokenizer.chat_template
    tokenizer.chat_template = strict + kept
    try:
        rows = [example("a", "b", system=None), example("c", "d", line=7), example("e", "f", line=9)]
        split = tokenize_split(tokenizer, rows, settings(), seed=1)
        test = check_test_answers(config, tokenizer, rows, 1024)
    finally:
        tokenizer.chat_template = kept
    assert [one.id for one, _ in split.refused] == [rows[1].id, rows[2].id]
    assert split.counts.examples == 1
    (finding,) = check_rendering("train", split)
    assert str(finding) == (
        "params.yaml: model.chat_template: 2 examples of train, the first of rows, line 7: the chat template does not "
        "render these turns (system, user, assistant): no system here; "
        "mend or filter these rows (data.filters), or use one of models/templates/*.jinja"
    )
    assert finding.code == "template-broken"
    assert codes(test) == ["template-broken"] and "2 examples of test" in test[0].what
    assert check_rendering("train", TokenizedSplit()) == []


def test_a_row_whose_mask_is_not_its_answer_is_told(
    tokenizer: Any, example: Callable[..., Example], config: Config, settings: Callable[..., TrainConfig]
) -> None:
    """A template that changes what the assistant wrote teaches something else."""
    kept = tokenizer.chat_template
    rows = [example("a", "ValueError"), example("b", "typeerror", line=4)]
    assert check_split(config, "train", tokenize_split(tokenizer, rows, settings(), seed=1)) == []
    assert "{%- generation %}" in kept
    tokenizer.chat_template = kept.replace("message.content", "message.content | replace('typeerror', 'TypeError')")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'] | replace('typeerror', 'TypeError')"
    )
    try:
        split = tokenize_split(tokenizer, rows, settings(), seed=1)
    finally:
        tokenizer.chat_template = kept
    (finding,) = check_split(config, "train", split)
    assert finding.code == "mask-wrong"
    assert finding.what == (
        "1 examples of train, the first of rows, line 4: 'TypeError<|im_end|>' is trained on for the answer 'typeerror'"
    )


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_a_template_that_refuses_every_row_stops_validate_with_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    """It renders the made-up conversation, so only the rows tell; nothing is left to plan, pack or measure."""
    from finetune.errors import ConfigError
    from finetune.prepare import stage as prepare
    from finetune.validate import stage as validate

    monkeypatch.chdir(tmp_path)
    config, paths = workspace(tmp_path / "run", train__packing=packing)
    prepare.run(config, paths)
    template = Path("base/chat_template.jinja")
    strict = (
        "{% for message in messages if 'number' in message.content %}{{ raise_exception('no numbers') }}{% endfor %}"
    )
    template.write_text(strict + template.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"36 examples of train, the first of small, .* no numbers; mend or filter"):
        validate.run(config, paths)
    report = read_json(paths.reports / "validation.json")
    refused = [finding for finding in report["findings"] if finding["code"] == "template-broken"]
    assert [finding["what"].split(",")[0] for finding in refused] == [
        "36 examples of train",
        "12 examples of validation",
        "12 examples of test",
    ]
    assert report["tokens"]["train"]["rows"] == 0
    assert report["schedule"]["examples"] == 36  # the run that is meant, not one of nothing
    assert not paths.validated.exists()


# ---- Packing


def test_packing_by_hand() -> None:
    """Best fit, longest first: 6 + 4 and 5 + 3 + 2 fill two rows of ten exactly."""
    rows = [row(3, "c"), row(6, "a"), row(2, "e"), row(5, "b"), row(4, "d")]
    packed = pack(rows, 10)
    assert sorted(one.lengths for one in packed) == [(5, 3, 2), (6, 4)]
    assert sorted(one.ids for one in packed) == [("a", "d"), ("b", "c", "e")]


@profile(max_examples=40)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=40), spare=st.integers(0, 12))
def test_packing_cuts_nothing_and_loses_nothing(lengths: list[int], spare: int) -> None:
    """The multiset of examples is the same, each in one piece with its own labels; no row is too long."""
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


def test_packed_rows_are_counted_without_padding(
    tokenizer: Any, example: Callable[..., Example], settings: Callable[..., TrainConfig]
) -> None:
    """Fewer rows, the same tokens; what train reads says where each example begins."""
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
def test_what_train_reads_is_what_was_counted(tmp_path: Path, packed: bool) -> None:
    """One Arrow stream; where examples are packed, with their lengths."""
    from datasets import Dataset

    rows = [row(3, "a"), TokenRow(("b", "c"), conversation(4, 2), (4, 2))]
    write_arrow(tmp_path / "train.arrow", rows, packed=packed)
    read = Dataset.from_file(str(tmp_path / "train.arrow"))
    assert read["ids"][:] == [["a"], ["b", "c"]]
    assert read["length"][:] == [3, 6]
    assert [Tokenized(*pair) for pair in zip(read["input_ids"], read["labels"], strict=True)] == [
        one.tokenized for one in rows
    ]
    assert ("seq_lengths" in read.column_names) == packed
    if packed:
        assert read["seq_lengths"][:] == [[3], [4, 2]]


# ---- Order and padding


def test_micro_batches_by_hand() -> None:
    """Rows of 5, 9, 2, 7 and 4 tokens in twos: 9 + 9, 7 + 7 and 4 are computed."""
    found = measure_batches([0, 1, 2, 3, 4], [5, 9, 2, 7, 4], [1, 2, 2, 6, 3], 2)
    assert (found.positions, found.longest, found.largest, found.most_supervised) == (36, 9, 18, 8)
    found = measure_batches([1, 3, 0, 4, 2], [5, 9, 2, 7, 4], [1, 2, 2, 6, 3], 2)
    assert (found.positions, found.largest, found.most_supervised) == (30, 18, 8)
    found = measure_batches([0, 1, 2, 3, 4], [5, 9, 2, 7, 4], [1, 2, 2, 6, 3], 2, padded=False)
    assert (found.positions, found.longest, found.largest, found.most_supervised) == (27, 9, 14, 8)
    nothing = measure_batches([], [], [], 2)
    assert (nothing.positions, nothing.longest, nothing.largest, nothing.most_supervised) == (0, 0, 0, 0)


def test_the_account_of_the_micro_batches_by_hand(settings: Callable[..., TrainConfig]) -> None:
    """Sequential: what the heaviest micro-batch holds decides on the memory."""
    train = settings(per_device_train_batch_size=2, train_sampling_strategy="sequential")
    split = TokenizedSplit(rows=[row(5), row(9, supervised=4), row(2), row(7, supervised=6), row(4)])
    split.counts.tokens = 27
    count_rows(split, train, seed=1)
    counts = split.counts
    assert (counts.rows, counts.positions, counts.padding) == (5, 36, 0.25)
    assert (counts.longest_row, counts.largest_batch, counts.most_supervised) == (9, 18, 7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_is_a_function_of_seed_and_epoch(strategy: str) -> None:
    """A resumed run must draw the same rows, whatever was drawn before; and each epoch all rows once."""
    import torch

    lengths = [(at * 37) % 50 + 1 for at in range(60)]
    first = epoch_order(lengths, 8, 42, strategy, 1)
    torch.rand(5)
    torch.manual_seed(3)
    assert epoch_order(lengths, 8, 42, strategy, 1) == first
    assert sorted(first) == list(range(60))
    others = [epoch_order(lengths, 8, 42, strategy, 0), epoch_order(lengths, 8, 43, strategy, 1)]
    assert all((other == first) == (strategy == "sequential") for other in others)


def test_the_order_of_the_largest_seed_and_of_one_row() -> None:
    """A seed has 32 bits, a generator's 64; and the grouping of few rows must not divide by zero."""
    assert sorted(epoch_order([3, 1, 2], 2, 2**32 - 1, "random", 999)) == [0, 1, 2]
    for strategy in STRATEGIES:
        assert epoch_order([3], 64, 1, strategy, 0) == [0]


def test_grouping_by_length_pads_less() -> None:
    """That is all it is for."""
    lengths = [(at * 37) % 200 + 1 for at in range(400)]

    def positions(strategy: str) -> int:
        return measure_batches(epoch_order(lengths, 8, 1, strategy, 0), lengths, lengths, 8).positions

    assert sum(lengths) <= positions("group_by_length") < 0.8 * positions("random")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "packing"), [("group_by_length", False), ("random", False), ("sequential", False), ("random", True)]
)
def test_the_trainer_pads_what_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, packing: bool
) -> None:
    """The real data loader with TRL's collator, over the first epoch: to the position and to the heaviest batch."""
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
        assert all(batch["attention_mask"][:, 0].all() for batch in batches)  # padded on the right


# ---- Control tokens in texts


def test_a_control_token_in_a_text_is_a_warning(tokenizer: Any, example: Callable[..., Example]) -> None:
    """The tokenizer makes the control token of it: whoever writes the prompt can end the turn and speak as another."""
    clean = [example("what is <b>im_end</b>, or <|im end|>?", "nothing")]
    assert check_special_tokens(tokenizer, {"train": clean, "validation": [], "test": clean}) == []
    rows = [*clean, example("end it <|im_end|> now", "yes", line=4), example("why", "<|im_start|>", line=9)]
    (finding,) = check_special_tokens(tokenizer, {"train": clean, "test": rows})
    assert str(finding) == (
        "data/prepared/test.jsonl: 2 examples hold control tokens as text, the first (rows, line 4) <|im_end|>; "
        "the model reads them as the template's own; "
        "drop them (data.risks.control_tokens: drop, or data.filters.drop_matching)"
    )
    assert (finding.code, finding.severity) == ("special-tokens-in-text", "warning")


def test_control_tokens_in_tool_calls_and_system_prompts_are_found(tokenizer: Any) -> None:
    """They go through the same template."""
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "<|im_end|>"}}}
    turns = [Message("user", "say it"), Message("assistant", "", tool_calls=(call,))]
    called = Example("one", "rows", 1, "a", tuple(turns))
    asked = Example("two", "rows", 2, "a", (Message("system", "<|im_start|>"), *turns[:1], Message("assistant", "x")))
    (finding,) = check_special_tokens(tokenizer, {"train": [called, asked]})
    assert "2 examples" in finding.what and "line 1) <|im_end|>" in finding.what


# ---- Test answers


def test_answers_that_cant_be_given_in_full_are_a_warning(
    tokenizer: Any, example: Callable[..., Example], change: Callable[..., Config]
) -> None:
    """They count as wrong whatever was learnt; the end token itself is not needed for an exact match."""
    rows = [example("a", "ValueError"), example("b", "UnicodeDecodeError is a subclass of ValueError")]
    whole = [tokenize(tokenizer, one.messages) for one in rows]
    most = max(one.supervised for one in whole)

    def check(tokens: int) -> list[Finding]:
        return check_test_answers(change(**{"evaluate.max_new_tokens": tokens}), tokenizer, rows, 1024)

    assert check(most) == check(most - 1) == []
    (finding,) = check(most - 2)
    assert str(finding) == (
        f"params.yaml: evaluate.max_new_tokens: {most - 2} is too few for 1 of 2 test answers (up to {most} tokens); "
        f"use {most}"
    )
    assert (finding.code, finding.severity) == ("answers-cut-off", "warning")


def test_prompts_beyond_the_bases_positions_are_an_error(
    tokenizer: Any, example: Callable[..., Example], change: Callable[..., Config]
) -> None:
    """Prompt and answer share the positions; at the last one nothing is wrong, and an unknown base says nothing."""
    rows = [example("a", "ValueError"), example("a longer prompt than the other", "TypeError")]
    prompt = max(
        one.labels.index(next(label for label in one.labels if label != IGNORED)) for one in whole_of(tokenizer, rows)
    )
    config = change(**{"evaluate.max_new_tokens": 16})
    assert check_test_answers(config, tokenizer, rows, prompt + 16) == []
    assert check_test_answers(config, tokenizer, rows, None) == []
    (finding,) = check_test_answers(config, tokenizer, rows, prompt + 15)
    assert str(finding) == (
        f"data/prepared/test.jsonl: 1 test prompts (up to {prompt} tokens) with 16 new tokens are longer than the "
        f"{prompt + 15} positions of the base; use a smaller evaluate.max_new_tokens, or bound data.filters.tokens"
    )
    assert (finding.code, finding.severity) == ("prompts-beyond-base", "error")


def whole_of(tokenizer: Any, rows: Sequence[Example]) -> list[Tokenized]:
    """The rows as tokens, uncut."""
    return [tokenize(tokenizer, one.messages) for one in rows]
