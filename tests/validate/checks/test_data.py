"""Findings about whole splits: the cause of each, its text, and the nearest case without a finding."""

import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.params import Config
from finetune.config.types import SPLITS, Split
from finetune.records.examples import Example, Message
from finetune.records.io import read_examples
from finetune.validate.checks.data import check_data, check_empty, check_repeated_prompts
from tests.builders.checked_settings import codes, finding_text
from tests.builders.checked_splits import Splits
from tests.builders.checked_splits import quiet as quiet
from tests.builders.checked_splits import splits as splits
from tests.builders.kinds import Change, MakeExample
from tests.conftest import ROOT

# ---- The embedded data


def test_the_embedded_data_causes_no_finding(config: Config) -> None:
    """The shipped data cause no finding: users ignore checks that always warn."""
    folder = ROOT / "data/prepared"
    if not (folder / "test.jsonl").exists():
        pytest.skip("data/prepared is not made yet (dvc repro prepare)")
    assert check_data(config, {name: read_examples(folder / f"{name}.jsonl") for name in SPLITS}) == []


# ---- Empty splits


@pytest.mark.parametrize("name", SPLITS)
def test_an_empty_split_is_an_error(splits: Splits, name: Split) -> None:
    """prepare refuses empty splits, but the files may be edited by hand."""
    assert check_empty(splits) == []
    splits[name] = []
    (finding,) = check_empty(splits)
    assert (finding.code, finding.severity) == ("split-empty", "error")
    assert finding.place == f"data/prepared/{name}.jsonl"
    assert finding.remedy == f"set a larger data.split.{name}, or loosen data.filters"


def test_empty_splits_are_reported_once(splits: Splits, quiet: Config) -> None:
    """An empty split cannot be compared, so no other finding mentions it."""
    assert codes(check_data(quiet, splits)) == []
    splits["test"] = []
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/test.jsonl: has no row (train 40, validation 20, test 0); "
        "set a larger data.split.test, or loosen data.filters"
    )
    assert codes(check_data(quiet, {"train": [], "validation": [], "test": []})) == ["split-empty"] * 3


# ---- Repeated prompts


def test_repeated_prompts_are_a_warning_up_to_five_percent(change: Change, example: MakeExample) -> None:
    """Confidence intervals assume independent examples."""
    config = change(**{"data.duplicates.near": "drop"})
    test = [example(f"test {at}") for at in range(19)]
    assert check_repeated_prompts(config, test) == []
    (finding,) = check_repeated_prompts(config, [*test, example("test  0", "another")])
    assert finding_text(finding, "test-prompts-repeated") == (
        "data/prepared/test.jsonl: 1 of 20 test examples (5%) repeat a prompt, but intervals "
        "assume independent examples; replace them with other test examples"
    )
    (finding,) = check_repeated_prompts(config, [*test[1:], example("test  1", "another")])
    assert (finding.code, finding.severity) == ("test-prompts-mostly-repeated", "error")
    assert "1 of 19 test examples (5.26%)" in finding.message


@pytest.mark.parametrize(
    ("exact", "near", "fix"),
    [
        ("keep", "group", ", or set data.duplicates.exact: drop"),
        ("drop", "ignore", ", or set data.duplicates.near: drop"),
    ],
)
def test_the_setting_to_drop_repeats_is_named(
    change: Change, example: MakeExample, exact: str, near: str, fix: str
) -> None:
    """If the config keeps copies, the finding names that setting."""
    config = change(**{"data.duplicates.exact": exact, "data.duplicates.near": near})
    (finding,) = check_repeated_prompts(config, [example("one"), example("one")])
    assert finding.remedy.endswith(fix)


# ---- All checks


PROMPTS = ["one two three four", "один два", "一二三", "", "x " * 40, "one two three four five six seven"]
ANSWERS = ["yes", "no", "I am very sorry but I can not answer this", ""]
PARTS = (["a", "b", "c"], PROMPTS, ANSWERS, [None, "l", "m", "n"])
ROWS: Any = st.lists(st.tuples(*map(st.sampled_from, PARTS)), max_size=60)


def made_of(rows: list[tuple[str, str, str, str | None]], name: str) -> list[Example]:
    """Return examples with these agents, prompts, answers and labels."""
    return [
        Example(f"{name}{at:03}", "rows", at, agent, (Message("user", prompt), Message("assistant", answer)), label)
        for at, (agent, prompt, answer, label) in enumerate(rows)
    ]


@given(train=ROWS, validation=ROWS, test=ROWS, order=st.randoms())
def test_findings_do_not_depend_on_the_order_of_rows(
    config: Config, train: Any, validation: Any, test: Any, order: random.Random
) -> None:
    """No rows cause a crash, and shuffled rows give the same findings."""
    splits: Splits = {"train": made_of(train, "r"), "validation": made_of(validation, "v"), "test": made_of(test, "t")}
    shuffled: Splits = {name: order.sample(rows, len(rows)) for name, rows in splits.items()}
    found = check_data(config, splits)
    assert check_data(config, shuffled) == found
    assert all(finding.message and finding.remedy and finding.place for finding in found)


def test_a_large_split_is_checked_in_seconds(config: Config, example: MakeExample) -> None:
    """20,000 x 2,000 rows: users disable checks that take minutes."""
    rng = random.Random(2)
    words = [f"w{at}" for at in range(3000)]

    def rows(count: int) -> list[Example]:
        return [example(" ".join(rng.choices(words, k=40)), f"Answer{at % 7}") for at in range(count)]

    splits: Splits = {"train": rows(20_000), "validation": rows(1000), "test": rows(2000)}
    started = time.process_time()
    assert "test-near-overlap" not in codes(check_data(config, splits))
    assert time.process_time() - started < 30
