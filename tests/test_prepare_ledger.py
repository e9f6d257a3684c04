"""The ledger: no row is lost in silence, whatever the rows are, and a ledger that does not balance is a defect."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from finetune.artifacts import read_json
from finetune.config import SPLITS, Config
from finetune.errors import DataError
from finetune.paths import Paths
from finetune.prepare import stage
from finetune.prepare.ledger import SourceAccount, account_splits, check_balance
from finetune.records import Example, read_examples, text_key

# One line of a source: good, failed, blank or broken; few tasks, so that lines repeat.
good = st.builds(
    lambda agent, task, space, success: json.dumps(
        {"agent": agent, "task": task + space, "output": "ValueError", "success": success}
    ),
    st.sampled_from("ab"),
    st.integers(0, 20).map(str),
    st.sampled_from(["", " ", "\n"]),
    st.sampled_from([True, True, True, False]),
)
bad = st.sampled_from(["{", "[1]", "null", '{"agent": "a"}', '{"agent": "a", "task": "", "output": "", "success": 1}'])
lines = st.lists(st.one_of(good, good, good, good, bad, st.just("  ")), min_size=10, max_size=50)


@settings(max_examples=50)
@given(
    sources=st.lists(lines, min_size=1, max_size=2),
    deduplicate=st.sampled_from(["exact", "none"]),
    only_successful=st.booleans(),
)
def test_every_row_is_in_a_split_or_dropped_for_a_reason(
    change: Callable[..., Config],
    tmp_path_factory: pytest.TempPathFactory,
    sources: list[list[str]],
    deduplicate: str,
    only_successful: bool,
) -> None:
    """Through the whole stage: each line that is not blank is in the ledger once, each kept one in one split."""
    paths = Paths(tmp_path_factory.mktemp("run"))
    (paths.root / "raw").mkdir()
    named = {f"s{at}": rows for at, rows in enumerate(sources)}
    for name, rows in named.items():
        (paths.root / f"raw/{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = change(
        **{
            "data.directory": "raw",
            "data.sources": [{"name": name, "path": f"{name}.jsonl", "format": "interactions"} for name in named],
            "data.on_bad_row": "skip",
            "data.max_bad_fraction": 1.0,
            "data.deduplicate": deduplicate,
            "data.only_successful": only_successful,
            "data.system_prompts": {},
            "data.split": {"train": 0.4, "validation": 0.3, "test": 0.3, "stratify_by": "agent"},
        }
    )
    try:
        stage.run(config, paths)
    except DataError:  # a split is empty: too few of the lines were good
        reject()
    ledger = read_json(paths.reports / "prepare.json")
    splits = {name: read_examples(paths.prepared / f"{name}.jsonl") for name in SPLITS}
    placed = [one for name in SPLITS for one in splits[name]]
    assert ledger["splits"] == account_splits(splits)
    for name, rows in named.items():
        account = ledger["sources"][name]
        assert account["read"] == sum(bool(row.strip()) for row in rows)
        assert account["read"] == account["kept"] + sum(account["dropped"].values())
        assert account["kept"] == sum(one.source == name for one in placed)
    # The line of each example is the line it came from, and no line is in two places.
    assert len({(one.source, one.line) for one in placed}) == len(placed)
    for one in placed:
        row = json.loads(named[one.source][one.line - 1])
        assert (row["agent"], row["task"], row["output"]) == (one.agent, one.prompt[-1].content, one.completion)
        assert row["success"] or not only_successful
    if deduplicate == "exact":
        assert len({text_key(one.messages) for one in placed}) == len(placed)


def account(read: int, kept: int, **dropped: int) -> SourceAccount:
    """An account of the source `rows`."""
    return SourceAccount("rows.jsonl", "abc", 100, read=read, dropped=Counter(dropped), kept=kept)


def test_a_balanced_ledger_passes(example: Callable[..., Example]) -> None:
    """The counterpart of the next test."""
    first, second, third = (example(task, line=at) for at, task in enumerate("abc"))
    splits: Any = {"train": [first, second], "validation": [third], "test": []}
    check_balance({"rows": account(5, 3, bad_row=1, exact_duplicate=1)}, splits)


@pytest.mark.parametrize(
    ("read", "kept", "tasks", "text"),
    [
        (6, 3, "abc", "ledger of rows does not balance"),
        (5, 3, "ab", "rows: 3 rows kept, 2 in the splits"),
        (5, 3, "abcd", "rows: 3 rows kept, 4 in the splits"),
        (5, 3, "aab", "one row is in two places"),
    ],
)
def test_a_ledger_that_does_not_balance_is_a_defect(
    example: Callable[..., Example], read: int, kept: int, tasks: str, text: str
) -> None:
    """A row that nothing accounts for must stop the stage before anything is published."""
    first, *rest = [example(task, line=ord(task)) for task in tasks]
    splits: Any = {"train": [first], "validation": rest, "test": []}
    with pytest.raises(AssertionError, match=text):
        check_balance({"rows": account(read, kept, bad_row=2)}, splits)


def test_an_account_is_written_in_a_fixed_order() -> None:
    """The report is hashed: the order in which reasons were met must not change it."""
    one, other = account(5, 3, a=1, b=1).to_json(), account(5, 3, b=1, a=1).to_json()
    assert json.dumps(one) == json.dumps(other)


def test_splits_are_counted_by_agent_and_by_source(example: Callable[..., Example]) -> None:
    """By hand; what the report and the model card show of the data."""
    rows = [example("a"), example("b", agent="other"), example("c", source="more")]
    assert account_splits({"train": rows, "test": []}) == {
        "train": {
            "examples": 3,
            "by_agent": {"namer": 2, "other": 1},
            "by_source": {"more": 1, "rows": 2},
        },
        "test": {"examples": 0, "by_agent": {}, "by_source": {}},
    }
