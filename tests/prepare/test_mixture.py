"""The mixture: exactly the share that was asked for, and no source has a say in what another gives."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import Source
from finetune.prepare.mixture import left_out, sample, sizes_taken
from tests.builders.tables import table_of


def source(name: str = "rows", **keys: Any) -> Source:
    """A source in the mixture."""
    return Source(name=name, path=f"{name}.jsonl", **keys)


def test_two_thirds_of_a_large_forum_and_all_of_two_small_sources() -> None:
    """The mixture that the finance recipe asks for."""
    sources = [source("forum", fraction=0.67), source("news"), source("calls", fraction=1.0)]
    assert sizes_taken(sources, [45_000, 3_100, 871]) == [30_150, 3_100, 871]


@pytest.mark.parametrize(
    ("weights", "kept", "taken"),
    [([1.0, 1.0], [100, 40], [40, 40]), ([3.0, 1.0], [100, 40], [100, 33]), ([1.0, 0.5], [10, 100], [10, 5])],
)
def test_weights_are_proportions(weights: list[float], kept: list[int], taken: list[int]) -> None:
    """The scarcest source is taken whole, the others in proportion: nothing is repeated to fill a quota."""
    assert sizes_taken([source(f"s{at}", weight=weight) for at, weight in enumerate(weights)], kept) == taken


def test_a_cap_is_no_promise() -> None:
    """A source that has less gives what it has."""
    assert sizes_taken([source(cap=50), source("b", cap=50)], [200, 20]) == [50, 20]


@given(st.sets(st.integers(0, 2**64 - 1), max_size=80), st.integers(0, 80), st.integers(0, 9))
def test_so_many_are_left_out_as_were_not_taken(ids: set[int], size: int, seed: int) -> None:
    """The fraction is exact, not a coin for each row."""
    keys = np.array(sorted(ids), np.uint64)
    out = left_out(keys, size, seed, "rows")
    assert len(out) == max(len(ids) - size, 0)
    assert len(set(out.tolist())) == len(out)


@given(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=80))
def test_a_smaller_share_is_part_of_a_larger_one(ids: set[int]) -> None:
    """From 50% to 60% rows are added, and none is exchanged."""
    keys = np.array(sorted(ids), np.uint64)
    few, more = (set(left_out(keys, len(ids) * share // 10, 42, "rows").tolist()) for share in (6, 5))
    assert few <= more


def test_another_source_changes_no_choice() -> None:
    """What is taken of the forum is the same with and without the news, and in any order of the sources."""
    forum, news = source("forum", fraction=0.5), source("news", fraction=0.3)
    alone = table_of(prompts=range(100))
    sample(alone, [forum], 42)
    both = table_of(prompts=range(130), sources=[1] * 30 + [0] * 100)
    both.id[30:], both.id[:30] = np.arange(100), np.arange(1000, 1030)
    sample(both, [forum, news], 42)
    assert (both.reason[30:] == alone.reason).all()
    assert (both.reason[:30] == 0).sum() == 9


def test_sources_draw_by_streams_of_their_own() -> None:
    """The same rows under two names are two independent choices; the same name, the same one."""
    keys = np.arange(200, dtype=np.uint64)
    assert left_out(keys, 100, 42, "a").tolist() == left_out(keys, 100, 42, "a").tolist()
    assert left_out(keys, 100, 42, "a").tolist() != left_out(keys, 100, 42, "b").tolist()
    assert left_out(keys, 100, 42, "a").tolist() != left_out(keys, 100, 43, "a").tolist()
