"""Splits: every row is in exactly one, shares are exact in every stratum, and related rows stay together."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import SplitConfig
from finetune.prepare.hashing import equal_pairs, shuffled
from finetune.prepare.split import allocate, place_rows, split_exact, split_sizes, split_stable
from tests.builders.tables import table_of


def settings(method: str, train: float, validation: float, test: float, stratify_by: Any = None) -> SplitConfig:
    """Return a split section."""
    return SplitConfig(method=method, train=train, validation=validation, test=test, stratify_by=stratify_by)  # type: ignore[arg-type]


@st.composite
def shares(draw: st.DrawFn, method: str) -> SplitConfig:
    """Draw three shares that sum to 1, with a positive share for train."""
    validation, test = draw(st.integers(0, 49)), draw(st.integers(0, 49))
    return settings(method, (100 - validation - test) / 100, validation / 100, test / 100)


EIGHTY = settings("exact", 0.8, 0.1, 0.1)
NO_LINKS = np.empty((0, 2), np.int64)


def test_shares_of_298_rows_are_as_documented() -> None:
    """These are the sizes of the CPU recipe's data: the remainder goes to the test set."""
    assert split_sizes(298, EIGHTY) == [238, 29, 31]


@pytest.mark.parametrize(
    ("rows", "shares_", "sizes"),
    [
        (10, EIGHTY, [8, 1, 1]),
        (1797, settings("exact", 0.7, 0.2, 0.1), [1257, 359, 181]),
        (11, settings("exact", 0.9, 0.1, 0.0), [9, 2, 0]),  # the test set is a user-provided file
        (3, settings("exact", 1.0, 0.0, 0.0), [3, 0, 0]),
        (0, EIGHTY, [0, 0, 0]),
    ],
)
def test_shares_become_integer_row_counts(rows: int, shares_: SplitConfig, sizes: list[int]) -> None:
    """0.7 x 10 is 7.000000000000001 and 0.29 x 100 is 28.999999999999996: rounding must not lose or add a row."""
    assert split_sizes(rows, shares_) == sizes


@given(strata=st.lists(st.integers(0, 300), min_size=1, max_size=8), shares_=shares("exact"))
def test_strata_are_apportioned_to_the_row(strata: list[int], shares_: SplitConfig) -> None:
    """Row and column sums are exact, no cell is negative, and each is within two rows of its share."""
    sizes = split_sizes(sum(strata), shares_)
    cells = allocate(strata, sizes)
    assert [sum(row) for row in cells] == strata
    assert [sum(column) for column in zip(*cells, strict=True)] == sizes
    for row, rows in zip(cells, strata, strict=True):
        for cell, size in zip(row, sizes, strict=True):
            assert cell >= 0
            assert abs(cell - rows * size / max(sum(strata), 1)) <= 2


@given(
    units=st.lists(st.integers(1, 40), min_size=1, max_size=200),
    strata=st.integers(1, 4),
    shares_=shares("exact"),
    seed=st.integers(0, 5),
)
def test_a_unit_is_in_one_split(units: list[int], strata: int, shares_: SplitConfig, seed: int) -> None:
    """Every row gets a split, and rows of one unit get the same, whatever the shares."""
    keys = np.array(units, np.uint64)
    places = split_exact(keys, np.arange(len(units)) % strata, shares_, seed)
    assert len(places) == len(units)
    assert set(places.tolist()) <= {0, 1, 2}
    assert len(set(zip(units, places.tolist(), strict=True))) == len(set(units))


@given(rows=st.integers(1, 400), strata=st.integers(1, 5), shares_=shares("exact"), seed=st.integers(0, 5))
def test_units_of_one_row_give_exact_shares(rows: int, strata: int, shares_: SplitConfig, seed: int) -> None:
    """`exact` gives exact shares in total and in every stratum."""
    numbers = np.arange(rows) % strata
    places = split_exact(np.arange(rows, dtype=np.uint64), numbers, shares_, seed)
    sizes = split_sizes(rows, shares_)
    assert np.bincount(places, minlength=3).tolist() == sizes
    cells = allocate(np.bincount(numbers).tolist(), sizes)
    for at, cell in enumerate(cells):
        assert np.bincount(places[numbers == at], minlength=3).tolist() == cell


@given(order=st.permutations(range(60)), seed=st.integers(0, 5), method=st.sampled_from(["exact", "stable"]))
def test_the_order_of_the_rows_does_not_matter(order: list[int], seed: int, method: str) -> None:
    """A file sorted by another program gives the same splits."""
    shares_ = settings(method, 0.6, 0.2, 0.2)
    keys = np.arange(60, dtype=np.uint64)

    def splits(rows: Sequence[int]) -> dict[int, int]:
        found = keys[list(rows)]
        if method == "exact":
            places = split_exact(found, np.zeros(60, np.int64), shares_, seed)
        else:
            places = split_stable(found, shares_, seed)
        return dict(zip(found.tolist(), places.tolist(), strict=True))

    assert splits(range(60)) == splits(order)


@given(known=st.sets(st.integers(1, 10**6), min_size=1), new=st.sets(st.integers(1, 10**6)), shares_=shares("stable"))
def test_added_rows_do_not_move_existing_ones(known: set[int], new: set[int], shares_: SplitConfig) -> None:
    """Otherwise old test rows could become train rows, and neither result would be valid."""
    before, after = sorted(known), sorted(known | new, reverse=True)
    first = split_stable(np.array(before, np.uint64), shares_, 42)
    second = split_stable(np.array(after, np.uint64), shares_, 42)
    places = dict(zip(after, second.tolist(), strict=True))
    assert first.tolist() == [places[key] for key in before]


def test_a_stable_test_set_only_grows_with_its_share() -> None:
    """Larger shares of validation or test take rows from train and none from the test set."""
    keys = np.arange(5000, dtype=np.uint64)
    small, large = settings("stable", 0.8, 0.1, 0.1), settings("stable", 0.6, 0.2, 0.2)
    test = np.flatnonzero(split_stable(keys, small, 1) == 2)
    assert set(test) <= set(np.flatnonzero(split_stable(keys, large, 1) == 2))
    assert 400 < len(test) < 600


def test_another_seed_gives_another_split() -> None:
    """The seed is a parameter of the run, so it must have an effect."""
    keys = np.arange(300, dtype=np.uint64)
    for method in (split_stable, lambda *given_: split_exact(given_[0], np.zeros(300, np.int64), *given_[1:])):
        assert (method(keys, EIGHTY, 1) != method(keys, EIGHTY, 2)).any()


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50, unique=True))
def test_shuffling_gives_every_key_a_unique_position(keys: list[int]) -> None:
    """SplitMix64's finalizer is a bijection: only rows with equal hashes can tie."""
    assert len(set(shuffled(np.array(keys, np.uint64), 3, "split").tolist())) == len(keys)


def test_a_unit_larger_than_the_test_set_is_trained_on() -> None:
    """Otherwise one user with a third of all rows would be the entire evidence."""
    units = np.array([1] * 40 + list(range(2, 62)), np.uint64)
    for seed in range(20):
        places = split_exact(units, np.zeros(100, np.int64), EIGHTY, seed)
        assert set(places[:40]) == {0}
        assert np.bincount(places).tolist() == [80, 10, 10]


# ---- Table rows: groups, prompts, user-provided files


def test_rows_of_a_group_stay_together() -> None:
    """A user's second question is not independent of the first, on which the model was trained."""
    table = table_of(prompts=range(60), groups=[at // 4 + 1 for at in range(60)])
    for method in ("exact", "stable"):
        places, _ = place_rows(table, NO_LINKS, [None], settings(method, 0.5, 0.25, 0.25), 42)
        assert all(len(set(places[at : at + 4])) == 1 for at in range(0, 60, 4))
    assert len(table.kept) == 60


def test_a_prompt_shared_by_groups_leaves_the_less_protected_split() -> None:
    """A common greeting must neither tie all users together nor be in both train and test."""
    rows = range(200)
    table = table_of(prompts=[0 if at % 10 == 0 else at for at in rows], groups=[at // 10 + 1 for at in rows])
    places, _ = place_rows(table, equal_pairs(table.prompt), [None], settings("exact", 0.5, 0.25, 0.25), 42)
    assert np.bincount(places).tolist() == [100, 50, 50]
    hello = table.kept[table.prompt[table.kept] == 0]
    assert set(places[hello]) == {2}
    assert Counter(table.reason.tolist())[5] == 15


def test_a_user_provided_test_file_stays_complete() -> None:
    """All its rows stay, and train rows that repeat its prompts are dropped with a reason."""
    table = table_of(prompts=[1, 2, 3, 4, 5, 1, 2, 1], sources=[0, 0, 0, 0, 0, 1, 1, 1])
    places, _ = place_rows(table, equal_pairs(table.prompt), [None, "test"], settings("exact", 0.7, 0.3, 0.0), 42)
    assert table.reason.tolist() == [5, 5, 0, 0, 0, 0, 0, 0]
    assert places[5:].tolist() == [2, 2, 2]
    assert sorted(places[2:5].tolist()) == [0, 0, 1]


def test_only_direct_repeats_of_the_test_file_leave_train() -> None:
    """Train rows similar to a dropped row stay; the ledger names the test row that is repeated."""
    table = table_of(prompts=range(8), sources=[0, 0, 0, 0, 0, 0, 0, 1])
    links = np.array([[0, 1], [1, 2], [2, 7]])
    place_rows(table, links, [None, "test"], settings("exact", 0.6, 0.4, 0.0), 42)
    assert table.reason.tolist() == [0, 0, 5, 0, 0, 0, 0, 0]
    assert table.like[2] == 7


def test_a_row_in_both_user_provided_files_is_a_test_row() -> None:
    """Validation loses rows that are in test; train loses both."""
    table = table_of(prompts=[1, 2, 3, 4, 1, 2, 1], sources=[0, 0, 0, 0, 1, 1, 2])
    place_rows(table, NO_LINKS, [None, "validation", "test"], settings("exact", 1.0, 0.0, 0.0), 42)
    assert table.reason.tolist() == [5, 4, 0, 0, 5, 0, 0]


def test_a_group_of_the_test_file_leaves_train() -> None:
    """The model is not trained on a user whose messages are in the test set."""
    table = table_of(prompts=range(6), groups=[7, 7, 8, 8, 9, 7], sources=[0, 0, 0, 0, 0, 1])
    place_rows(table, NO_LINKS, [None, "test"], settings("exact", 0.5, 0.5, 0.0), 42)
    assert table.reason.tolist() == [5, 5, 0, 0, 0, 0]


def test_stable_splits_keep_a_prompt_together() -> None:
    """Two answers to one prompt have one hash; near-duplicates with two hashes leave the less protected split."""
    table = table_of(prompts=[1, 1, 2, 2, *range(3, 99)])
    links = np.concatenate([equal_pairs(table.prompt), [[1, 2]]])  # the first two prompts are near-duplicates
    places, _ = place_rows(table, links, [None], settings("stable", 0.4, 0.3, 0.3), 2)
    kept = [at for at in range(4) if table.reason[at] == 0]
    assert len({places[at] for at in kept}) == 1
    assert kept in ([0, 1], [2, 3], [0, 1, 2, 3])
