"""The ledger: no row is lost silently, and a ledger that does not balance is an internal error."""

import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from finetune.config.params import Config, params_of
from finetune.config.types import SPLITS
from finetune.errors import DataError
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.prepare import stage
from finetune.prepare.ledger import SourceAccount, account_splits, account_table, check_balance, to_markdown
from finetune.records.examples import text_key
from finetune.records.io import read_examples
from finetune.reports.prepare import PrepareReport, SplitReport
from tests.builders.kinds import Change
from tests.builders.tables import table_of

# One line of a source: good, failed, blank or broken; few tasks, so that there are exact and near duplicates.
WORDS = [f"word{at}" for at in range(12)]
SPACES = ["", " ", "\n"]


def task(number: int, ends: int, space: str) -> str:
    """Return a text of twelve words, one of which contains a control token."""
    return " ".join([*(f"{word}{number}" for word in WORDS), "end" * ends, "<|im_end|>" * (number == 7)]) + space


good = st.fixed_dictionaries(
    {
        "agent": st.sampled_from("ab"),
        "task": st.builds(task, st.integers(0, 20), st.integers(0, 2), st.sampled_from(SPACES)),
        "output": st.just("ValueError"),
        "success": st.sampled_from([True, True, True, False]),
        "user": st.integers(0, 30),
    }
).map(json.dumps)
bad = st.sampled_from(["{", "[1]", "null", '{"agent": "a"}', '{"agent": "a", "task": "", "output": "", "success": 1}'])
lines = st.lists(st.one_of(good, good, good, good, good, bad, st.just("  ")), min_size=10, max_size=60)
sampling = st.sampled_from([{}, {}, {"fraction": 0.6}, {"cap": 15}, {"weight": 2.0}, {"split": "train"}])
policies = {
    "data.filters.only_successful": st.booleans(),
    "data.filters.characters": st.sampled_from([{"min": None, "max": None}, {"min": 60, "max": 90}]),
    "data.filters.drop_matching": st.sampled_from([[], ["word33 "]]),
    "data.duplicates.exact": st.just("drop"),
    "data.duplicates.near": st.sampled_from(["drop", "group", "ignore"]),
    "data.risks.control_tokens": st.sampled_from(["note", "drop"]),
}


@settings(max_examples=60)
@given(
    sources=st.lists(st.tuples(lines, sampling, st.booleans()), min_size=1, max_size=3),
    own_test=st.none() | st.lists(good, min_size=1, max_size=12),
    method=st.sampled_from(["exact", "stable"]),
    keys=st.fixed_dictionaries(policies),
)
def test_every_row_is_in_a_split_or_dropped_for_a_reason(
    change: Change,
    tmp_path_factory: pytest.TempPathFactory,
    sources: list[tuple[list[str], dict[str, Any], bool]],
    own_test: list[str] | None,
    method: str,
    keys: dict[str, Any],
) -> None:
    """This holds for the complete stage, with any filters, mixtures, groups and user-provided files."""
    paths = Paths(tmp_path_factory.mktemp("run"))
    (paths.root / "raw").mkdir()
    named = {f"s{at}": rows for at, (rows, _, _) in enumerate(sources)}
    listed = [
        {"name": name, "path": f"{name}.jsonl", **how} | ({"columns": {"group": "user"}} if grouped else {})
        for name, (_, how, grouped) in zip(named, sources, strict=True)
    ]
    if own_test is not None:
        named["own"] = own_test
        listed.append({"name": "own", "path": "own.jsonl", "split": "test"})
    for name, rows in named.items():
        (paths.root / f"raw/{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    train, validation, test = (0.4, 0.3, 0.3) if own_test is None else (0.6, 0.4, 0.0)
    split = {"method": method, "stratify_by": "agent" if method == "exact" else None}
    split |= {"train": train, "validation": validation, "test": test}
    keys |= {"data.directory": "raw", "data.sources": [source | {"format": "interactions"} for source in listed]}
    keys |= {"data.on_bad_row": "skip", "data.max_bad_fraction": 1.0, "data.system_prompts": {}, "data.split": split}
    config = change(**keys)
    try:
        stage.run(params_of("prepare", config), paths)
    except DataError as error:
        if "split is empty" not in str(error):
            raise
        reject()  # too few of the lines were good
    check_files(paths, named, config)


def check_files(paths: Paths, named: dict[str, list[str]], config: Config) -> None:
    """Compare the written files with the source's lines and the ledger."""
    ledger = read_json(paths.reports / "prepare.json")
    splits = {name: read_examples(paths.prepared / f"{name}.jsonl") for name in SPLITS}
    placed = [(name, one) for name in SPLITS for one in splits[name]]
    dropped = [json.loads(line) for line in (paths.prepared / "dropped.jsonl").read_text().splitlines()]
    for name, rows in named.items():
        account = ledger["sources"][name]
        there = {at for at, row in enumerate(rows, start=1) if row.strip()}
        kept = [one.line for _, one in placed if one.source == name]
        gone = [row["line"] for row in dropped if row["source"] == name]
        assert sorted(kept + gone) == sorted(there)  # each line is in a split or dropped, exactly once
        assert account["read"] == len(there)
        assert account["kept"] == len(kept)
        assert account["dropped"] == Counter(row["reason"] for row in dropped if row["source"] == name)
        assert account["splits"] == {split: sum(one.source == name for one in splits[split]) for split in SPLITS}
    for split in SPLITS:
        assert ledger["splits"][split]["by_agent"] == Counter(one.agent for one in splits[split])
    # The rows are those of the source, and no prompt and no user is in two splits.
    prompts, users = {}, {}
    for name, one in placed:
        row = json.loads(named[one.source][one.line - 1])
        assert (row["agent"], row["task"], row["output"]) == (one.agent, one.prompt[-1].content, one.completion)
        assert prompts.setdefault(text_key(one.prompt), name) == name
        if any(source.name == one.source and source.columns for source in config.data.sources):
            assert users.setdefault(row["user"], name) == name
    if "own" in named:
        assert [one.line for one in splits["test"]] == list(range(1, len(named["own"]) + 1))
    else:
        assert len({(one.agent, text_key(one.messages)) for _, one in placed}) == len(placed)


# ---- A ledger that does not balance


def account(read: int, **dropped: int) -> SourceAccount:
    """Return an account of the source `rows`."""
    return SourceAccount("rows.jsonl", "chat", False, "abc", None, 100, [], read=read, dropped=Counter(dropped))


def balanced() -> tuple[list[SourceAccount], dict[str, Any], dict[str, int]]:
    """Return counts of five rows read, one bad, one a duplicate, three in the splits."""
    table = table_of(prompts=range(4), agents=[0, 0, 1, 1])
    table.reason[3] = 2
    places = np.array([0, 0, 2, 0], np.int8)
    accounts = [account(5, bad_row=1)]
    account_table(accounts, table, places, np.arange(4))
    splits = account_splits(table, places, np.arange(4), ["rows"])
    return accounts, splits, {"train": 2, "validation": 0, "test": 1}


def test_a_balanced_ledger_passes() -> None:
    """A balanced ledger passes, and its counts equal those computed by hand."""
    accounts, splits, written = balanced()
    check_balance(accounts, splits, written)
    assert accounts[0].dropped == {"bad_row": 1, "exact_duplicate": 1}
    assert accounts[0].splits == {"train": 2, "validation": 0, "test": 1}
    assert (accounts[0].groups, accounts[0].labels) == (3, {})
    counts = {"by_agent": {"a": 2}, "by_source": {"rows": 2}, "by_label": {}}
    assert splits["train"] == SplitReport(examples=2, groups=2, **counts)


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda accounts, splits, written: setattr(accounts[0], "read", 6), "the ledger of rows.jsonl does not "),
        (
            lambda accounts, splits, written: accounts[0].splits.update(train=1),
            "kept rows and rows in the splits differ",
        ),
        (lambda accounts, splits, written: splits.update(test=splits["train"]), "test: sources do not add up"),
        (
            lambda accounts, splits, written: splits["train"].by_agent.update(b=1),
            "train: counts by agent do not add up",
        ),
        (lambda accounts, splits, written: written.update(test=0), "test: 1 examples accounted for, 0 written"),
    ],
)
def test_an_unbalanced_ledger_is_an_internal_error(break_it: Callable[..., Any], text: str) -> None:
    """An unaccounted row must stop the stage before anything is published."""
    accounts, splits, written = deepcopy(balanced())
    break_it(accounts, splits, written)
    with pytest.raises(AssertionError, match=text):
        check_balance(accounts, splits, written)


def test_an_account_is_written_in_a_fixed_order() -> None:
    """The report is hashed, so the order of reasons must not affect it."""
    one, other = account(5, a=1, b=1).report().to_json(), account(5, b=1, a=1).report().to_json()
    assert json.dumps(one) == json.dumps(other)


def test_the_markdown_ledger_is_a_table_for_any_names() -> None:
    """Names of sources and labels must not break the page or add to it."""
    accounts, splits, _ = balanced()
    accounts[0].bad_rows = ["rows.jsonl:2: has no `task`"]
    accounts[0].unused_columns = ["<b>", "x" * 999]
    splits["train"] = splits["train"].model_copy(update={"by_agent": {"a|b\n# c\r\x1b\u202e\\|d": 2}})
    source = {"my|rows": accounts[0].report()}
    text = to_markdown(PrepareReport(settings={}, sources=source, splits=splits, labels={}, prepared_sha256={}))
    lines_ = text.split("\n")
    assert "| my\\|rows | 5 | 1 bad_row, 1 exact_duplicate | 3 | 2 | 0 | 1 |" in lines_
    assert "| a\\|b\ufffd# c\ufffd\ufffd\ufffd\\\\\\|d | 2 | 0 | 0 |" in lines_
    assert "| rows.jsonl:2: has no \\`task\\` |" in lines_
    (about,) = (line for line in lines_ if "sha256 abc" in line)
    assert about.startswith("| my\\|rows | chat | 100 | sha256 abc | 3 | 0 | \\<b\\>, xxx")
    assert len(about) < 400
