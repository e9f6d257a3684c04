"""Splits: equal shares in every stratum, no prompt in two of them, and no dependence on the order of the rows."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import SPLITS, SplitShares
from finetune.prepare.split import split_examples
from finetune.records import Example, leaked

EIGHTY = SplitShares(train=0.8, validation=0.1, test=0.1, stratify_by="agent")
seeds = st.integers(0, 2**32 - 1)


@st.composite
def shares(draw: st.DrawFn) -> SplitShares:
    """Three shares in hundredths."""
    train = draw(st.integers(1, 98))
    validation = draw(st.integers(1, 99 - train))
    test = 100 - train - validation
    return SplitShares(train=train / 100, validation=validation / 100, test=test / 100, stratify_by="agent")


# Few agents, tasks and answers, so that prompts meet; each combination at most once, as after deduplication.
contents = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 25).map(str), st.sampled_from(["x", "y", "z"])),
    unique=True,
    max_size=60,
)


def build(example: Callable[..., Example], rows: list[tuple[str, str, str]]) -> list[Example]:
    """Examples of (agent, task, answer); no system prompt, so agents may share prompts."""
    return [example(task, answer, agent=agent, system=None) for agent, task, answer in rows]


def ids(splits: Any) -> dict[str, set[str]]:
    """The ids of each split, without their order."""
    return {name: {example.id for example in examples} for name, examples in splits.items()}


@settings(max_examples=60)
@given(rows=contents, shares=shares(), seed=seeds)
def test_every_example_is_in_exactly_one_split(
    example: Callable[..., Example], rows: Any, shares: SplitShares, seed: int
) -> None:
    """Lost examples are wasted work, doubled ones are a leak; and each split keeps the order of the input."""
    examples = build(example, rows)
    splits = split_examples(examples, shares, seed)
    assert tuple(splits) == SPLITS
    placed = [one.id for members in splits.values() for one in members]
    assert sorted(placed) == sorted(one.id for one in examples)
    order = {one.id: at for at, one in enumerate(examples)}
    for members in splits.values():
        assert [order[one.id] for one in members] == sorted(order[one.id] for one in members)


@settings(max_examples=60)
@given(rows=contents, shares=shares(), seed=seeds)
def test_no_prompt_is_in_two_splits(example: Callable[..., Example], rows: Any, shares: SplitShares, seed: int) -> None:
    """A test prompt that was trained on, with whatever answer, makes its score a memory test; so does validation's."""
    examples = build(example, rows)
    spaced = [example(f" {one.prompt[-1].content}\n", "other", agent=one.agent, system=None) for one in examples[::3]]
    splits = split_examples(examples + spaced, shares, seed)
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or leaked(splits[first], splits[second]) == []


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3), shares=shares(), seed=seeds)
def test_every_stratum_has_its_shares(
    example: Callable[..., Example], sizes: list[int], shares: SplitShares, seed: int
) -> None:
    """Within one of the exact number in each stratum: a rare agent must not end up in train alone by bad luck."""
    rows = [(agent, f"{agent}{at}", "x") for agent, size in zip("abc", sizes, strict=False) for at in range(size)]
    splits = split_examples(build(example, rows), shares, seed)
    for agent, size in zip("abc", sizes, strict=False):
        found = {name: sum(one.agent == agent for one in splits[name]) for name in SPLITS}
        assert sum(found.values()) == size
        for name in SPLITS:
            assert abs(found[name] - getattr(shares, name) * size) < 1 + 1e-9


@settings(max_examples=100)
@given(rows=contents, seed=seeds, data=st.data())
def test_the_order_of_the_rows_does_not_matter(
    example: Callable[..., Example], rows: Any, seed: int, data: st.DataObject
) -> None:
    """The same rows in another order must be the same splits, also where two agents share a prompt."""
    examples = build(example, rows)
    shuffled = data.draw(st.permutations(examples))
    assert ids(split_examples(examples, EIGHTY, seed)) == ids(split_examples(shuffled, EIGHTY, seed))


def test_sizes_are_rounded_by_the_largest_remainder(example: Callable[..., Example]) -> None:
    """By hand: 298 prompts at 0.8, 0.1, 0.1 are 238.4, 29.8 and 29.8; the two that are left go to the two last."""
    examples = [example(f"task {at}") for at in range(298)]
    splits = split_examples(examples, EIGHTY, 42)
    assert [len(splits[name]) for name in SPLITS] == [238, 30, 30]


def test_the_stratum_is_the_field_that_was_asked_for(example: Callable[..., Example]) -> None:
    """By source, each file keeps its shares, whatever agents are in it."""
    examples = [example(f"{source} {at}", source=source) for source in ("one", "two") for at in range(20)]
    by_source = EIGHTY.model_copy(update={"stratify_by": "source"})
    splits = split_examples(examples, by_source, 42)
    assert Counter(one.source for one in splits["test"]) == {"one": 2, "two": 2}
    assert Counter(one.source for one in splits["validation"]) == {"one": 2, "two": 2}


def test_another_seed_is_another_split(example: Callable[..., Example]) -> None:
    """A seed that did nothing would make five "independent" runs one."""
    examples = [example(f"task {at}") for at in range(100)]
    assert ids(split_examples(examples, EIGHTY, 1)) != ids(split_examples(examples, EIGHTY, 2))
    assert ids(split_examples(examples, EIGHTY, 1)) == ids(split_examples(examples, EIGHTY, 1))


def test_a_prompt_and_its_answers_go_together(example: Callable[..., Example]) -> None:
    """Ten answers to one prompt are one prompt: the whole group moves."""
    examples = [example(f"task {at % 10}", f"answer {at}") for at in range(100)]
    splits = split_examples(examples, EIGHTY, 42)
    assert [len(splits[name]) for name in SPLITS] == [80, 10, 10]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_examples_are_still_accounted_for(example: Callable[..., Example], count: int) -> None:
    """The stage says that a split is empty; the split itself loses nothing and raises nothing."""
    splits = split_examples([example(f"task {at}") for at in range(count)], EIGHTY, 42)
    assert sum(len(members) for members in splits.values()) == count
