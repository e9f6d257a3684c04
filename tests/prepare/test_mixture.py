"""The mixture has exactly the configured shares, and the choice in one source does not depend on another."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import Source
from finetune.prepare.mixture import left_out, sample, sizes_taken
from tests.builders.tables import table_of


def source(name: str = "rows", **keys: Any) -> Source:
    """Return a source of the mixture."""
    return Source(name=name, path=f"{name}.jsonl", **keys)


def test_two_thirds_of_a_large_forum_and_all_of_two_small_sources() -> None:
    """This is the mixture of the finance recipe."""
    sources = [source("forum", fraction=0.67), source("news"), source("calls", fraction=1.0)]
    assert sizes_taken(sources, [45_000, 3_100, 871]) == [30_150, 3_100, 871]


@pytest.mark.parametrize(
    ("weights", "kept", "taken"),
    [([1.0, 1.0], [100, 40], [40, 40]), ([3.0, 1.0], [100, 40], [100, 33]), ([1.0, 0.5], [10, 100], [10, 5])],
)
def test_weights_are_proportions(weights: list[float], kept: list[int], taken: list[int]) -> None:
    """The scarcest source is used completely, the others in proportion: no row is repeated to fill a quota."""
    assert sizes_taken([source(f"s{at}", weight=weight) for at, weight in enumerate(weights)], kept) == taken


def test_a_cap_is_an_upper_bound() -> None:
    """A source with fewer rows than its cap gives all of them."""
    assert sizes_taken([source(cap=50), source("b", cap=50)], [200, 20]) == [50, 20]


@given(st.sets(st.integers(0, 2**64 - 1), max_size=80), st.integers(0, 80), st.integers(0, 9))
def test_the_number_of_left_out_rows_is_exact(ids: set[int], size: int, seed: int) -> None:
    """The fraction is exact, not a random choice per row."""
    keys = np.array(sorted(ids), np.uint64)
    out = left_out(keys, size, seed, "rows")
    assert len(out) == max(len(ids) - size, 0)
    assert len(set(out.tolist())) == len(out)


@given(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=80))
def test_a_smaller_share_is_a_subset_of_a_larger_one(ids: set[int]) -> None:
    """From 50% to 60%, rows are added and none is exchanged."""
    keys = np.array(sorted(ids), np.uint64)
    few, more = (set(left_out(keys, len(ids) * share // 10, 42, "rows").tolist()) for share in (6, 5))
    assert few <= more


def test_other_sources_do_not_change_the_choice() -> None:
    """The choice in one source does not depend on other sources or their order."""
    forum, news = source("forum", fraction=0.5), source("news", fraction=0.3)
    alone = table_of(prompts=range(100))
    sample(alone, [forum], 42)
    both = table_of(prompts=range(130), sources=[1] * 30 + [0] * 100)
    both.id[30:], both.id[:30] = np.arange(100), np.arange(1000, 1030)
    sample(both, [forum, news], 42)
    assert (both.reason[30:] == alone.reason).all()
    assert (both.reason[:30] == 0).sum() == 9


def test_each_source_has_its_own_random_stream() -> None:
    """The same rows under two names are chosen independently; under one name, identically."""
    keys = np.arange(200, dtype=np.uint64)
    assert left_out(keys, 100, 42, "a").tolist() == left_out(keys, 100, 42, "a").tolist()
    assert left_out(keys, 100, 42, "a").tolist() != left_out(keys, 100, 42, "b").tolist()
    assert left_out(keys, 100, 42, "a").tolist() != left_out(keys, 100, 43, "a").tolist()
