"""Duplicates: all true ones are found, none is false, and the survivor is the same in every run."""

from itertools import combinations
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import DuplicateConfig
from finetune.prepare import dedup
from finetune.prepare.dedup import (
    Chunk,
    _chunks,
    continued_pairs,
    copies,
    drop_exact,
    find_near,
    measure,
    near_copies,
    propose_pairs,
)
from finetune.prepare.hashing import ConversationKeys, clusters, equal_pairs
from finetune.prepare.row_table import open_spool
from finetune.prepare.rows import ReadRows
from finetune.prepare.workers import open_workers
from finetune.records.near_duplicates import band_hashes, bands_of, shingles, similarity
from tests.builders.tables import table_of


def settings(threshold: float = 0.8, words: int = 3, permutations: int = 64) -> DuplicateConfig:
    """Return a section `duplicates`."""
    counts = {"shingle_words": words, "permutations": permutations}
    return DuplicateConfig(exact="drop", near="drop", threshold=threshold, **counts)


# ---- Shingles and bands


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("The cat sat\n on  the mat", 3, ["the cat sat", "cat sat on", "sat on the", "on the mat"]),
        ("Hello there", 3, ["hello there"]),  # shorter than a shingle; an empty set would divide by zero
        ("", 3, [""]),
        ("猫が好き ok", 2, ["猫 が", "が 好", "好 き", "き ok"]),  # not one word per paragraph
    ],
)
def test_shingles_are_word_sequences(text: str, words: int, found: list[str]) -> None:
    """Shingles are the unit of the similarity measure."""
    assert shingles(text, words) == found


@pytest.mark.parametrize(
    ("threshold", "permutations", "expected"), [(0.8, 64, (12, 5)), (0.8, 128, (21, 6)), (0.5, 128, (42, 3))]
)
def test_bands_are_as_long_as_the_recall_allows(threshold: float, permutations: int, expected: tuple[int, int]) -> None:
    """Computed by hand: (1 - 0.8^5)^12 = 0.0085 and (1 - 0.8^6)^10 = 0.048."""
    assert bands_of(settings(threshold, permutations=permutations)) == expected


@given(threshold=st.floats(0.01, 0.99), permutations=st.integers(16, 256))
def test_bands_never_exceed_the_permutations(threshold: float, permutations: int) -> None:
    """There is at least one band, and signatures are never longer than configured."""
    bands, rows = bands_of(settings(threshold, permutations=permutations))
    assert bands >= 1
    assert rows >= 1
    assert bands * rows <= permutations


def test_bands_do_not_depend_on_the_position() -> None:
    """Batches may be split differently on another machine; the duplicates must be the same."""
    texts = [f"this is text number {at} of some that are not alike at all {at * 7}" for at in range(20)]
    whole = band_hashes(texts, settings())
    assert (np.concatenate([band_hashes(texts[:7], settings()), band_hashes(texts[7:], settings())]) == whole).all()
    assert whole.shape == (20, 12)


# ---- Pairs


@given(st.lists(st.integers(0, 6), max_size=30))
def test_equal_keys_are_linked(keys: list[int]) -> None:
    """Equal keys are connected, others are not, and the number of pairs is linear."""
    pairs = equal_pairs(np.array(keys, np.uint64))
    assert len(pairs) <= 2 * len(keys)
    assert all(keys[one] == keys[other] and one < other for one, other in pairs.tolist())
    found = clusters(len(keys), pairs)
    for one, other in combinations(range(len(keys)), 2):
        assert (found[one] == found[other]) == (keys[one] == keys[other])


def test_a_large_bucket_gives_a_linear_number_of_pairs() -> None:
    """All pairs of 100,000 rows with one boilerplate answer would be five billion."""
    bands = np.zeros((2, 100_000), np.uint64)
    pairs = propose_pairs(lambda at: bands[at], 2, np.arange(100_000))
    assert len(pairs) < 200_000


@given(st.lists(st.integers(0, 6), max_size=30))
def test_the_first_of_exact_copies_survives(keys: list[int]) -> None:
    """The first of equal rows in the file survives, deterministically."""
    found = {copy: survivor for survivor, copy in copies(np.array(keys, np.uint64)).tolist()}
    for at, key in enumerate(keys):
        assert found.get(at, at) == keys.index(key)


def test_a_row_is_dropped_only_for_a_survivor() -> None:
    """In a chain of similar rows the third is kept if it resembles only the dropped second one."""
    pairs = np.array([[1, 2], [0, 1], [2, 3], [0, 5]])
    assert near_copies(pairs).tolist() == [[0, 1], [2, 3], [0, 5]]


def test_dropped_copies_name_the_row_they_repeat() -> None:
    """The ledger names the surviving row."""
    table = table_of(prompts=[1, 2, 3, 4], texts=[7, 8, 7, 7])
    drop_exact(table, np.array([0, 1, 2, 3]))
    assert table.kept.tolist() == [0, 1]
    assert table.like.tolist() == [-1, -1, 0, 0]


def test_a_conversation_is_linked_to_its_continuations() -> None:
    """A log written after every answer repeats each answer in the next row."""
    table = table_of(prompts=range(6))
    table.spoken[:] = [10, 11, 12, 20, 21, 30]
    table.openings = np.array([[1, 10], [2, 10], [2, 11], [4, 20], [5, 99]], np.uint64)
    assert sorted(map(tuple, continued_pairs(table).tolist())) == [(0, 1), (0, 2), (1, 2), (3, 4)]
    table.reason[[1, 3]] = 1
    assert continued_pairs(table).tolist() == [[0, 2]]


# ---- Against brute force

WORDS = st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"])


def pairs_found(folder: Path, texts: list[str], near: DuplicateConfig) -> list[tuple[int, int]]:
    """Return the near-duplicates found among one-turn rows with these texts."""
    with open_spool(folder) as rows:
        lines = [orjson.dumps({"messages": [{"role": "assistant", "content": text}]}) + b"\n" for text in texts]
        count = len(texts)
        found = ReadRows(0, list(range(1, count + 1)), [None] * count, json=lines, bands=band_hashes(texts, near))
        found.ids, found.groups = list(range(count)), [0] * count
        found.keys = [ConversationKeys(copy=at, spoken=at, prompt=at, openings=[]) for at in range(count)]
        found.agents, found.labels = ["a"] * count, [None] * count
        rows.add(0, found)
        with open_workers(0) as workers:
            return [(one, other) for one, other in find_near(rows.table(), near, workers).tolist()]


@given(
    texts=st.lists(st.lists(WORDS, min_size=1, max_size=14).map(" ".join), min_size=2, max_size=12),
    threshold=st.sampled_from([0.3, 0.5, 0.8]),
)
def test_every_found_pair_is_similar(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], threshold: float
) -> None:
    """A false pair would drop a unique row."""
    near = settings(threshold, words=2)
    pairs = pairs_found(tmp_path_factory.mktemp("spool") / "rows", texts, near)
    sets = [set(shingles(text, 2)) for text in texts]
    for one, other in pairs:
        assert one < other
        assert similarity(sets[one], sets[other]) >= threshold


def test_pairs_agree_with_brute_force(tmp_path: Path) -> None:
    """Of 400 texts of 60 words, half are copies with one to three changes: recall is at least 99%, precision 1."""
    rng = np.random.default_rng(5)
    texts: list[str] = []
    for at in range(200):
        words = [f"w{number}" for number in rng.integers(0, 4000, 60)]
        texts.append(" ".join(words))
        for place in rng.integers(0, 60, 1 + at % 3):
            words[place] = "changed"
        texts.append(" ".join(words))
    near = settings()
    found = set(pairs_found(tmp_path / "rows", texts, near))
    sets = [set(shingles(text, 3)) for text in texts]
    true = {(one, other) for one, other in combinations(range(400), 2) if similarity(sets[one], sets[other]) >= 0.8}
    assert found <= true
    assert len(true) > 100
    assert len(found) >= 0.99 * len(true)


def test_a_shared_template_reduces_recall_only(tmp_path: Path) -> None:
    """As docs/data.md states, rows that are all nearly alike hide some pairs, but give no false one."""
    rng = np.random.default_rng(5)
    template = [f"t{at}" for at in range(80)]
    texts: list[str] = []
    for _ in range(300):
        words = template + [f"w{number}" for number in rng.integers(0, 10**6, 20)]
        texts.append(" ".join(words))
        texts.append(" ".join([*words[:-2], "changed", "twice"]))
    found = set(pairs_found(tmp_path / "rows", texts, settings()))
    true = {(at, at + 1) for at in range(0, 600, 2)}
    assert len(found & true) >= 0.8 * len(true)
    sets = [set(shingles(text, 3)) for text in texts]
    assert all(similarity(sets[one], sets[other]) >= 0.8 for one, other in found)


def test_long_rows_are_compared_in_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker holds only a few MB of rows: 5,000 pairs of 50 KB would be gigabytes of shingles."""
    monkeypatch.setattr(dedup, "BYTES_AT_ONCE", 10_000)
    table = table_of(prompts=range(40))
    table.size[:] = [3000] * 20 + [200] * 20
    pairs = np.array([[at, at + 1] for at in range(39)])
    chunks = list(_chunks(table, pairs, settings()))
    assert sum(len(chunk.pairs) for chunk in chunks) == 39
    assert all(sum(chunk.sizes) <= 12_000 for chunk in chunks)
    assert len(chunks) < 25


def test_a_compared_chunk_gives_one_boolean_per_pair(tmp_path: Path) -> None:
    """A worker receives ranges of the spool and returns one boolean per pair."""
    texts = ["one two three four five", "one two three four five six", "quite another text altogether here"]
    lines = [orjson.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts]
    (tmp_path / "rows").write_bytes(b"".join(lines))
    starts = [0, len(lines[0]), len(lines[0]) + len(lines[1])]
    chunk = Chunk(tmp_path / "rows", starts, [len(line) for line in lines], [[0, 1], [0, 2]], settings(0.7))
    assert measure(chunk).tolist() == [True, False]
