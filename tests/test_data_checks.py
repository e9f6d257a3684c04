"""Each finding about the splits: what raises it, what it says, and the case next to it that raises nothing."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.config_types import SPLITS, Split
from finetune.near import shingles, similarity
from finetune.records import Example, Message, read_examples
from finetune.validate.data_checks import check_data, check_empty, check_repeated_prompts
from finetune.validate.findings import Finding
from finetune.validate.overlap_checks import check_overlap, near_copies
from finetune.validate.shift_checks import check_shift, script_of
from finetune.validate.size_checks import check_test_size
from tests.conftest import ROOT

Splits = dict[Split, list[Example]]


def codes(findings: list[Finding]) -> list[str]:
    """The codes alone."""
    return [finding.code for finding in findings]


@pytest.fixture
def splits(example: Callable[..., Example]) -> Splits:
    """Splits that share no prompt and give nothing to find: questions 100 to 139 to train on, 200 to 219 and 300 to 329
    held out, and four answers."""

    def rows(first: int, count: int) -> list[Example]:
        return [example(f"question {first + at}", f"Answer{at % 4}") for at in range(count)]

    return {"train": rows(100, 40), "validation": rows(200, 20), "test": rows(300, 30)}


@pytest.fixture
def quiet(change: Callable[..., Config]) -> Config:
    """A config whose gate and system prompts ask for nothing."""
    cost = [{"rule": "memory_at_most", "limit": "2 GB"}]
    changes = {"decide.criteria": cost, "data.system_prompts": {}, "data.duplicates.near": "drop"}
    return change(**changes, **{"evaluate.scorers.exceptions.of": None})


# ---- The embedded data


def test_the_embedded_data_raises_nothing(config: Config) -> None:
    """A check that always warns is a check that nobody reads."""
    folder = ROOT / "data/prepared"
    if not (folder / "test.jsonl").exists():
        pytest.skip("data/prepared is not made yet (dvc repro prepare)")
    assert check_data(config, {name: read_examples(folder / f"{name}.jsonl") for name in SPLITS}) == []


# ---- Empty splits


@pytest.mark.parametrize("name", SPLITS)
def test_an_empty_split_is_an_error(splits: Splits, name: Split) -> None:
    """prepare refuses them, a hand that edits the files does not."""
    assert check_empty(splits) == []
    splits[name] = []
    (finding,) = check_empty(splits)
    assert (finding.code, finding.severity) == ("split-empty", "error")
    assert finding.where == f"data/prepared/{name}.jsonl"
    assert finding.fix == f"set a larger data.split.{name}, or loosen data.filters"


def test_empty_splits_are_told_once(splits: Splits, quiet: Config) -> None:
    """What is not there can't be compared, so nothing else is said of it."""
    assert codes(check_data(quiet, splits)) == []
    splits["test"] = []
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/test.jsonl: has no row (train 40, validation 20, test 0); "
        "set a larger data.split.test, or loosen data.filters"
    )
    assert codes(check_data(quiet, {"train": [], "validation": [], "test": []})) == ["split-empty"] * 3


# ---- Overlap


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_row_in_train_and_held_out_is_an_error(
    splits: Splits, quiet: Config, example: Callable[..., Example], name: Split
) -> None:
    """Whoever edits a split by hand must not get a score for what was learnt by heart."""
    assert check_overlap(quiet, splits) == []
    leak = example(" question  103\n", "Answer3 ", system="Another system prompt, the same question.")
    splits[name].append(leak)
    (finding,) = check_overlap(quiet, splits)
    size = len(splits[name])
    assert str(finding) == (
        f"data/prepared/{name}.jsonl: 1 of {size} rows ({100 / size:.3g}%) are in train too, prompt and answer (ids "
        f"{leak.id}); run prepare again (dvc repro -f prepare); it keeps them apart"
    )
    assert (finding.code, finding.severity) == ("split-overlap", "error")


def test_a_prompt_with_another_answer_is_another_error(
    splits: Splits, quiet: Config, example: Callable[..., Example]
) -> None:
    """The model has read the question, and which of its answers is right is anybody's guess."""
    splits["test"] += [example("question 103", "Answer3"), example("question 104", "Another")]
    copy, prompt = check_overlap(quiet, splits)
    assert (copy.code, prompt.code) == ("split-overlap", "split-same-prompt")
    assert str(prompt) == (
        "data/prepared/test.jsonl: 1 of 32 rows (3.12%) have a prompt that is in train too, with another answer (ids "
        "namer/rows/1/question 104/Another); "
        "run prepare again (dvc repro -f prepare); it keeps rows of one prompt together"
    )
    assert prompt.severity == "error"


def test_three_ids_stand_for_all(splits: Splits, quiet: Config) -> None:
    """A hundred thousand ids are no report."""
    splits["test"] = splits["train"][:5]
    (finding,) = check_overlap(quiet, splits)
    assert "5 of 5 rows (100%)" in finding.what
    assert finding.what.count("namer/") == 3
    assert finding.what.endswith(", …)")


def test_validation_and_test_may_share_a_prompt(splits: Splits, quiet: Config, example: Callable[..., Example]) -> None:
    """Neither is trained on; prepare keeps even these apart."""
    splits["validation"].append(example("question 300"))
    assert check_overlap(quiet, splits) == []


def test_answers_without_a_question_are_told_apart_by_the_system_prompt(quiet: Config) -> None:
    """Texts to go on with: all would share the empty question otherwise."""

    def row(system: str, answer: str) -> Example:
        return Example(system, "rows", 1, "a", (Message("system", system), Message("assistant", answer)))

    one, other = row("Say yes.", "Yes."), row("Say no.", "No.")
    assert check_overlap(quiet, {"train": [one], "validation": [], "test": [other]}) == []
    assert codes(check_overlap(quiet, {"train": [one], "validation": [], "test": [one]})) == ["split-overlap"]


LONG = "the quick brown fox jumps over the lazy dog and runs away from the old grey wolf that sleeps near the river"


@pytest.mark.parametrize(
    ("near", "fix"),
    [
        ("ignore", "set data.duplicates.near: group to keep near copies in one split, or drop"),
        ("drop", "set data.duplicates.permutations: 128, so that prepare finds more of them"),
    ],
)
def test_near_copies_in_the_test_set_stop_the_run(
    splits: Splits, change: Callable[..., Config], example: Callable[..., Example], near: str, fix: str
) -> None:
    """Also where prepare was told to ignore them: what a score is worth does not hang on that."""
    config = change(**{"data.duplicates.near": near})
    splits["train"].append(example(LONG, "fox"))
    splits["test"].append(example(f"{LONG} bank", "fox"))
    (finding,) = check_overlap(config, splits)
    assert str(finding) == (
        "data/prepared/test.jsonl: 1 of 31 rows (3.23%) share 80% or more of their word shingles with a row of train "
        f"(ids namer/rows/1/{LONG} bank/fox); {fix}"
    )
    assert (finding.code, finding.severity) == ("test-near-overlap", "error")
    splits["test"][-1] = example(f"{LONG} bank", "A wolf, five hens, two cats and a hundred sheep.")
    assert check_overlap(config, splits) == []


def test_near_copies_are_found_as_brute_force_finds_them(config: Config) -> None:
    """Recall at least 99%, precision 1, in texts of 60 words with one to four of them changed."""
    rng = random.Random(3)
    words = [f"w{at}" for at in range(4000)]
    known = [rng.choices(words, k=60) for _ in range(300)]
    held_out = [list(text) for text in known]
    for at, text in enumerate(held_out):
        for place in rng.sample(range(60), 1 + at % 4):
            text[place] = "changed"
    ours, theirs = ([" ".join(text) for text in texts] for texts in (held_out, known))
    near = config.data.duplicates
    sets = [set(shingles(text, near.shingle_words)) for text in theirs]
    true = {
        at
        for at, text in enumerate(ours)
        if max(similarity(set(shingles(text, near.shingle_words)), other) for other in sets) >= near.threshold
    }
    found = set(near_copies(ours, theirs, near))
    assert found <= true
    assert 100 < len(true) < 300
    assert len(found) >= 0.99 * len(true)


def test_a_shared_template_does_not_make_every_pair_be_measured(config: Config) -> None:
    """1,000 x 1,000 rows whose bands are nearly all alike: a million measures would take half a minute."""
    rng = random.Random(3)
    template = " ".join(f"t{at}" for at in range(70))
    rows = [f"{template} {' '.join(str(rng.randrange(10**6)) for _ in range(30))}" for _ in range(2000)]
    started = time.perf_counter()
    assert near_copies(rows[:1000], rows[1000:], config.data.duplicates) == []
    assert time.perf_counter() - started < 15


# ---- Repeated prompts


def test_repeated_prompts_are_a_warning_up_to_five_percent(
    change: Callable[..., Config], example: Callable[..., Example]
) -> None:
    """Intervals take every example for an independent one."""
    config = change(**{"data.duplicates.near": "drop"})
    test = [example(f"test {at}") for at in range(19)]
    assert check_repeated_prompts(config, test) == []
    (finding,) = check_repeated_prompts(config, [*test, example("test  0", "another")])
    assert str(finding) == (
        "data/prepared/test.jsonl: 1 of 20 test examples (5%) repeat a prompt; intervals take them for independent "
        "ones; put other test examples in their place"
    )
    assert (finding.code, finding.severity) == ("test-prompts-repeated", "warning")
    (finding,) = check_repeated_prompts(config, [*test[1:], example("test  1", "another")])
    assert (finding.code, finding.severity) == ("test-prompts-mostly-repeated", "error")
    assert "1 of 19 test examples (5.26%)" in finding.what


@pytest.mark.parametrize(
    ("exact", "near", "fix"),
    [
        ("keep", "group", ", or set data.duplicates.exact: drop"),
        ("drop", "ignore", ", or set data.duplicates.near: drop"),
    ],
)
def test_what_would_drop_repeated_prompts_is_named(
    change: Callable[..., Config], example: Callable[..., Example], exact: str, near: str, fix: str
) -> None:
    """Where the config keeps copies, that is the line to change."""
    config = change(**{"data.duplicates.exact": exact, "data.duplicates.near": near})
    (finding,) = check_repeated_prompts(config, [example("one"), example("one")])
    assert finding.fix.endswith(fix)


# ---- The size of the test set


@pytest.fixture
def gate(change: Callable[..., Config]) -> Callable[..., Config]:
    """A config with one criterion and one look at 95%."""

    def made(policy: str = "interval", looks: int = 1, prompts: int = 20, **criterion: Any) -> Config:
        return change(
            **{
                "decide.confidence": 0.95,
                "decide.looks": looks,
                "decide.policy": policy,
                "decide.criteria": [criterion],
                "evaluate.latency.prompts": prompts,
                "evaluate.scorers.exceptions.of": None,
            }
        )

    return made


AT_LEAST = {"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.98}
NOT_WORSE = {"rule": "not_worse_than_baseline", "metric": "exact_match", "group": "all", "margin": 0.05}
BETTER = {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"}
MACRO_F1 = {"rule": "at_least", "metric": "exceptions.macro_f1", "group": "all", "threshold": 0.5}


@pytest.fixture
def tests_of(example: Callable[..., Example]) -> Callable[..., list[Example]]:
    """So many test examples of an agent."""

    def made(count: int, agent: str = "namer") -> list[Example]:
        return [example(f"{agent} {at}", agent=agent) for at in range(count)]

    return made


def test_a_test_set_that_can_prove_nothing_is_a_warning(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]]
) -> None:
    """At 148 examples even a perfect score fails the gate, at 149 it passes: known before the run, not after."""
    assert check_test_size(gate(**AT_LEAST), tests_of(149)) == []
    (finding,) = check_test_size(gate(**AT_LEAST), tests_of(148))
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 148 test examples can't prove exact_match at least 0.98 even with no failure "
        "(236 with one failure, 313 with two): 149 are needed at 95.0% confidence; add 1 test example, or set "
        "decide.criteria.0.threshold: 0.97"
    )
    assert (finding.code, finding.severity) == ("test-set-too-small", "warning")


def test_the_advised_threshold_can_be_proved(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]]
) -> None:
    """Advice that raises the same finding again is no advice."""
    for count in (20, 31, 59, 100):
        (finding,) = check_test_size(gate(**AT_LEAST), tests_of(count))
        advised = float(finding.fix.rsplit(" ", 1)[1])
        assert check_test_size(gate(**AT_LEAST | {"threshold": advised}), tests_of(count)) == []
        again = check_test_size(gate(**AT_LEAST | {"threshold": round(advised + 0.01, 2)}), tests_of(count))
        assert codes(again) == ["test-set-too-small"]


def test_the_size_is_that_of_the_group(gate: Callable[..., Config], tests_of: Callable[..., list[Example]]) -> None:
    """148 examples of one agent are not saved by the hundreds of another."""
    test = tests_of(148) + tests_of(300, "other")
    assert check_test_size(gate(**AT_LEAST), test) == []
    (finding,) = check_test_size(gate(**AT_LEAST | {"group": "namer"}), test)
    assert finding.fix == "add 1 test example of 'namer', or set decide.criteria.0.threshold: 0.97"
    assert check_test_size(gate(**AT_LEAST | {"group": "other"}), test) == []


def test_not_worse_needs_examples_even_without_a_difference(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]]
) -> None:
    """52 examples without a discordant pair show a margin of 5 points, 51 do not."""
    assert check_test_size(gate(**NOT_WORSE), tests_of(52)) == []
    (finding,) = check_test_size(gate(**NOT_WORSE), tests_of(51))
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 51 test examples can't prove exact_match not worse than the baseline by 0.05 "
        "even if both models are right on the same ones: 52 are needed at 95.0% confidence; add 1 test example, or "
        "set decide.criteria.0.margin: 0.06"
    )
    assert check_test_size(gate(**NOT_WORSE | {"margin": 0.06}), tests_of(51)) == []


def test_better_needs_as_many_discordant_pairs_as_the_exact_test(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]]
) -> None:
    """0.5^5 = 0.03 is below 0.05, 0.5^4 is not; five looks ask for 0.01, so for 7."""
    (finding,) = check_test_size(gate(**BETTER), tests_of(4))
    assert finding.what == (
        "4 test examples can't prove exact_match better than the baseline even if the candidate is right and the "
        "baseline wrong on each of them: 5 are needed at 95.0% confidence"
    )
    assert finding.fix == "add 1 test example"
    assert codes(check_test_size(gate(**BETTER), tests_of(5))) == ["test-set-tiny"]
    assert codes(check_test_size(gate(looks=5, **BETTER), tests_of(6))) == ["test-set-too-small"]
    assert codes(check_test_size(gate(looks=5, **BETTER), tests_of(7))) == ["test-set-tiny"]


def test_a_bootstrap_needs_twenty_examples(gate: Callable[..., Config], tests_of: Callable[..., list[Example]]) -> None:
    """Below, the gate gives no interval at all."""
    assert check_test_size(gate(**MACRO_F1), tests_of(20)) == []
    (finding,) = check_test_size(gate(**MACRO_F1), tests_of(19))
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 19 test examples can't prove exceptions.macro_f1 at least 0.5 whatever is "
        "answered: a bootstrap: 20 are needed at 95.0% confidence; add 1 test example"
    )


def test_a_tiny_group_is_a_warning(gate: Callable[..., Config], tests_of: Callable[..., list[Example]]) -> None:
    """The gate can be passed, and one answer more or less turns it."""
    easy = gate(**AT_LEAST | {"threshold": 0.5, "group": "namer"})
    assert check_test_size(easy, tests_of(20)) == []
    (finding,) = check_test_size(easy, tests_of(19))
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 19 test examples of 'namer': one answer moves the score by 5.3%; "
        "add 1 test example of 'namer'"
    )
    assert (finding.code, finding.severity) == ("test-set-tiny", "warning")


def test_latencies_are_taken_of_different_prompts(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]]
) -> None:
    """The latency pass takes what is there, and says nothing."""
    fast = {"rule": "latency_at_most", "seconds": 1.0, "improvement": None}
    assert check_test_size(gate(prompts=30, **fast), tests_of(30)) == []
    (finding,) = check_test_size(gate(prompts=31, **fast), tests_of(30))
    assert str(finding) == (
        "params.yaml: evaluate.latency.prompts: 31 prompts are to be timed, and the test split has 30; "
        "set evaluate.latency.prompts: 30"
    )
    (finding,) = check_test_size(gate(**fast), tests_of(12))
    assert finding.fix == "add 8 test examples"
    assert check_test_size(gate(prompts=31, **AT_LEAST | {"threshold": 0.5}), tests_of(30)) == []


@pytest.mark.parametrize("criterion", [AT_LEAST, NOT_WORSE, BETTER, MACRO_F1])
def test_what_proves_nothing_needs_no_size(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]], criterion: dict[str, Any]
) -> None:
    """The policy `point` compares estimates, of however few examples."""
    assert check_test_size(gate("point", **criterion), tests_of(1)) == []
    assert codes(check_test_size(gate(**criterion), tests_of(1))) == ["test-set-too-small"]


def test_more_looks_need_more_examples(gate: Callable[..., Config], tests_of: Callable[..., list[Example]]) -> None:
    """Five looks share the 5%: each is taken at 99%, where 149 examples are too few (228 are needed)."""
    assert check_test_size(gate(looks=5, **AT_LEAST), tests_of(228)) == []
    assert "228 are needed at 99.0% confidence" in check_test_size(gate(looks=5, **AT_LEAST), tests_of(227))[0].what


def test_a_group_without_examples_is_an_error(
    gate: Callable[..., Config], tests_of: Callable[..., list[Example]]
) -> None:
    """A mistyped agent could never be measured, so the verdict could never be deploy, under any policy."""
    for policy in ("interval", "point"):
        (finding,) = check_test_size(gate(policy, **MACRO_F1 | {"group": "nmaer"}), tests_of(30))
        text = "group 'nmaer' has no example in the test split; use one of all, namer, rows"
        assert str(finding) == f"params.yaml: decide.criteria.0.group: {text}"
        assert (finding.code, finding.severity) == ("group-unknown", "error")


# ---- Agents, labels, answers


def test_an_agent_that_is_tested_and_not_trained_is_an_error(
    splits: Splits, quiet: Config, example: Callable[..., Example]
) -> None:
    """Two sources that call one agent by two names are the usual reason."""
    splits["test"] += [example(f"odd {at}", agent="nmaer") for at in range(2)]
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/train.jsonl: 'nmaer' has 2 test examples and none in train; "
        "name it 'namer' (agent of its source), or add rows"
    )
    assert (finding.code, finding.severity) == ("agent-missing", "error")
    splits["train"].append(example("odd", agent="nmaer"))
    assert "agent-missing" not in codes(check_data(quiet, splits))


def test_an_agent_of_one_row_in_twenty_is_enough(
    splits: Splits, quiet: Config, example: Callable[..., Example]
) -> None:
    """40 to 2 is 20 to 1, the most that is silent."""
    splits["train"] += [example(f"rare {at}", agent="rare") for at in range(2)]
    assert check_data(quiet, splits) == []
    splits["train"].pop()
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/train.jsonl: 'namer' has 40 of the 41 train examples and 'rare' has 1, 40 times fewer; "
        "add rows of 'rare'"
    )
    assert (finding.code, finding.severity) == ("agents-imbalanced", "warning")


def test_the_source_to_cap_is_named(splits: Splits, quiet: Config, example: Callable[..., Example]) -> None:
    """Where the rare agent has a source of its own, a cap on the other's makes them even."""
    splits["train"] = [replace(row, source="cpython") for row in splits["train"]] + [example("one", agent="rare")]
    (finding,) = check_data(quiet, splits)
    assert finding.fix == "add rows of 'rare', or set data.sources.0.cap: 20"


def labelled(rows: list[Example], names: list[str]) -> list[Example]:
    """The rows with these labels in turn, which are their answers too."""
    return [
        replace(row, label=name, messages=(*row.prompt, Message("assistant", name)))
        for row, name in zip(rows, names * len(rows), strict=False)
    ]


def test_labels_of_both_splits_raise_nothing(splits: Splits, quiet: Config) -> None:
    """Four labels, each in both; and rows that have no label at all have no part in it."""
    names = ["1", "2", "3", "4"]
    splits["train"], splits["test"] = labelled(splits["train"], names), labelled(splits["test"], names)
    assert check_data(quiet, splits) == []
    splits["train"] += [replace(row, label=None, id=f"{row.id}x") for row in splits["validation"]]
    splits["validation"] = splits["validation"][:0]
    assert codes(check_data(quiet, splits)) == ["split-empty"]


def test_a_label_that_is_tested_and_not_trained_is_an_error(splits: Splits, quiet: Config) -> None:
    """Seven labels are new: five are named, the rest are counted."""
    splits["train"] = labelled(splits["train"], ["1", "2"])
    splits["test"] = labelled(splits["test"], [*"123456789"])
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/train.jsonl: 7 labels (3, 4, 5, 6, 7 and 2 more) of 'namer' in test, 22 examples, and none in "
        "train; add rows of them to train, or set data.split.stratify_by: label"
    )
    assert (finding.code, finding.severity) == ("label-missing-in-train", "error")


def test_a_label_that_is_never_tested_is_a_warning(splits: Splits, quiet: Config) -> None:
    """What it scores is not known."""
    splits["train"] = labelled(splits["train"], ["1", "2", "3"])
    splits["test"] = labelled(splits["test"], ["1", "2"])
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/test.jsonl: 1 label (3) of 'namer' in train, 13 examples, and none in test; "
        "add test rows of them, or set data.split.stratify_by: label"
    )
    assert (finding.code, finding.severity) == ("label-missing-in-test", "warning")


def test_a_label_twenty_times_as_frequent_is_a_warning(
    splits: Splits, quiet: Config, example: Callable[..., Example]
) -> None:
    """42 to 2 is over 20 to 1, 40 to 2 is not; the answers are sentences, so that no answer is constant."""

    def rows(first: int, a: int, b: int) -> list[Example]:
        made = [example(f"question {first + at}", f"Because {at % 5}") for at in range(a + b)]
        return [replace(row, label="b" if at < b else "a") for at, row in enumerate(made)]

    splits["test"] = rows(300, 20, 4)
    splits["train"] = rows(100, 40, 2)
    assert check_data(quiet, splits) == []
    splits["train"] = rows(100, 42, 2)
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/train.jsonl: of 'namer' the label 'a' has 42 train examples, up to 21 times as many as 1 label "
        "(b) (2 at the least); add rows of the rare ones, or judge this agent by a classification scorer's macro_f1"
    )
    assert (finding.code, finding.severity) == ("labels-imbalanced", "warning")


def test_a_constant_answer_is_a_warning(splits: Splits, quiet: Config, example: Callable[..., Example]) -> None:
    """33 of 40 are over 80%, 32 are not: a model that reads nothing would score that."""
    splits["test"] = [example(f"question {300 + at}", "Same" if at < 24 else "Other") for at in range(30)]
    splits["train"] = [example(f"question {100 + at}", "Same" if at < 32 else f"Other{at}") for at in range(40)]
    assert check_data(quiet, splits) == []
    splits["train"][-1] = example("question 139", "Same")
    (finding,) = check_data(quiet, splits)
    assert str(finding) == (
        "data/prepared/train.jsonl: 33 of 40 train answers of 'namer' (82.5%) are 'Same'; always answering it would "
        "score 0.800 on test; judge 'namer' by a classification scorer's macro_f1, or ask for more than 0.83"
    )
    assert (finding.code, finding.severity) == ("answers-constant", "warning")


def test_a_few_rows_with_one_answer_are_no_finding(
    splits: Splits, quiet: Config, example: Callable[..., Example]
) -> None:
    """19 rows of a second agent, all alike, may be so by chance."""
    splits["train"] += [example(f"second {at}", "Same", agent="second") for at in range(19)]
    assert check_data(quiet, splits) == []


def test_long_answers_in_many_rows_are_a_note(splits: Splits, quiet: Config, example: Callable[..., Example]) -> None:
    """A refusal in three of 40 rows is what the model will say; two of 40 are 5%, and eight words are a name."""
    refusal = "I am sorry but I can not help you with that"

    def with_answer(answer: str, times: int) -> Splits:
        rows = [example(f"question {100 + at}", answer) for at in range(times)]
        return splits | {"train": rows + splits["train"][times:]}

    assert check_data(quiet, with_answer(refusal, 2)) == []
    assert check_data(quiet, with_answer("I am sorry but I can not help", 3)) == []
    (finding,) = check_data(quiet, with_answer(refusal, 3))
    assert str(finding) == (
        f"data/prepared/train.jsonl: 3 of 40 train answers (7.5%) are {refusal!r}; "
        "keep them if that is what is to be said; else leave them out by data.filters.drop_matching"
    )
    assert (finding.code, finding.severity) == ("answers-repeated", "note")


def test_a_constant_long_answer_is_told_once(splits: Splits, quiet: Config, example: Callable[..., Example]) -> None:
    """It is repeated too, which goes without saying."""
    splits["train"] = [example(f"question {100 + at}", "no " * 10) for at in range(40)]
    splits["test"] = [example(f"question {300 + at}", "no " * 10) for at in range(30)]
    assert codes(check_data(quiet, splits)) == ["answers-constant"]


def test_a_system_prompt_for_nobody_is_a_warning(splits: Splits, change: Callable[..., Config]) -> None:
    """Mostly a mistyped name, and then an agent runs without its prompt."""
    cost = [{"rule": "memory_at_most", "limit": "2 GB"}]
    prompts = {"namer": "Name it.", "Namer": "Name it.", "xyz": "?"}
    config = change(**{"decide.criteria": cost, "data.system_prompts": prompts, "evaluate.scorers.exceptions.of": None})
    near, far = check_data(config, splits)
    assert str(near) == (
        "params.yaml: data.system_prompts.Namer: none of the 90 rows is of agent 'Namer'; did you mean 'namer'?"
    )
    assert far.fix == "remove it, or name one of the agents: namer"
    assert (near.code, near.severity) == ("system-prompt-unused", "warning")


# ---- Shifts

ENGLISH = "time year people way day man thing woman life child world school state family student group country problem"
GERMAN = "zeit jahr leute weg tag mann ding frau leben kind welt schule staat familie student gruppe land problem"
RUSSIAN = "время год люди путь день человек вещь женщина жизнь ребёнок мир школа штат семья студент группа страна"


@pytest.fixture
def written(example: Callable[..., Example]) -> Callable[..., list[Example]]:
    """`written("train", ENGLISH, 40)`: so many rows of eight of these words."""

    def made(name: str, words: str, count: int, length: int = 8) -> list[Example]:
        rng = random.Random(name)
        return [example(" ".join(rng.choices(words.split(), k=length)), f"Answer{at % 4}") for at in range(count)]

    return made


def test_another_script_is_a_warning(written: Callable[..., list[Example]]) -> None:
    """A third of the test rows is in Russian, and not one of train; one in ten by chance is none."""
    train = written("train", ENGLISH, 90)
    test = written("test", ENGLISH, 20) + written("test", RUSSIAN, 10)
    (finding,) = check_shift({"train": train, "validation": [], "test": test})
    assert str(finding) == (
        "data/prepared/test.jsonl: the scripts of the rows differ by 33% (total variation): CYRILLIC 0% of train and "
        "33% of test, LATIN 100% of train and 67% of test; add train rows like those that are tested"
    )
    assert (finding.code, finding.severity) == ("language-shift", "warning")
    mixed = train + written("train", RUSSIAN, 45)
    assert check_shift({"train": mixed, "validation": [], "test": test}) == []
    assert check_shift({"train": train, "validation": [], "test": test[:20] + test[20:21]}) == []


def test_another_language_of_one_script_is_a_warning(written: Callable[..., list[Example]]) -> None:
    """All but the words that both have are new, though half of train knows the words of the other half."""
    train = written("train", ENGLISH, 80)
    assert check_shift({"train": train, "validation": [], "test": written("test", ENGLISH, 40)}) == []
    (finding, *_) = check_shift({"train": train, "validation": [], "test": written("test", GERMAN, 40)})
    assert finding.code == "language-shift"
    assert "of a test row's words do not stand in one half of train, against 0% of the words of a row" in finding.what
    assert finding.fix == "add train rows like those that are tested"


def test_names_that_are_always_new_are_no_shift(example: Callable[..., Example]) -> None:
    """Where each row has words of its own, test rows are like train rows in just that."""
    rng = random.Random(1)
    rows = [" ".join("".join(rng.choices("abcdefghij", k=9)) for _ in range(8)) for _ in range(120)]
    examples = [example(row) for row in rows]
    assert check_shift({"train": examples[:80], "validation": [], "test": examples[80:]}) == []


def test_other_lengths_are_a_warning(written: Callable[..., list[Example]]) -> None:
    """Twice as long; and of the same lengths with other words, nothing."""
    train = written("train", ENGLISH, 80)
    (finding,) = check_shift({"train": train, "validation": [], "test": written("test", ENGLISH, 40, length=16)})
    assert (finding.code, finding.severity) == ("length-shift", "warning")
    assert finding.what.startswith("test rows have 1")
    assert finding.what.endswith("the distributions are 100% apart (Kolmogorov-Smirnov)")
    assert finding.fix == "draw both from the same rows (data.split), or add train rows of these lengths"


def test_a_few_rows_shift_nothing(written: Callable[..., list[Example]]) -> None:
    """Three rows say little about what the next ones are like."""
    train, test = written("train", ENGLISH, 4), written("test", RUSSIAN, 3, 16)
    assert check_shift({"train": train, "validation": [], "test": test}) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "LATIN"),
        ("123 !?", "none"),
        ("", "none"),
        ("привет, Bob", "CYRILLIC"),
        ("你好", "CJK"),
    ],
)
def test_a_row_has_the_script_of_most_letters(text: str, script: str) -> None:
    """Digits and signs are of no script."""
    assert script_of(text) == script


# ---- All of them


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(
            ["one two three four", "один два", "一二三", "", "x " * 40, "one two three four five six seven"]
        ),
        st.sampled_from(["yes", "no", "I am very sorry but I can not answer this", ""]),
        st.sampled_from([None, "l", "m", "n"]),
    ),
    max_size=60,
)


def made_of(rows: list[tuple[str, str, str, str | None]], name: str) -> list[Example]:
    """Examples of these agents, prompts, answers and labels."""
    return [
        Example(f"{name}{at:03}", "rows", at, agent, (Message("user", prompt), Message("assistant", answer)), label)
        for at, (agent, prompt, answer, label) in enumerate(rows)
    ]


@given(train=ROWS, validation=ROWS, test=ROWS, order=st.randoms())
def test_findings_hang_on_no_order_of_the_rows(
    config: Config, train: Any, validation: Any, test: Any, order: random.Random
) -> None:
    """Whatever the rows are, nothing crashes, and shuffled files say the same."""
    splits: Splits = {"train": made_of(train, "r"), "validation": made_of(validation, "v"), "test": made_of(test, "t")}
    shuffled: Splits = {name: order.sample(rows, len(rows)) for name, rows in splits.items()}
    found = check_data(config, splits)
    assert check_data(config, shuffled) == found
    assert all(finding.what and finding.fix and finding.where for finding in found)


def test_a_large_split_is_checked_in_seconds(config: Config, example: Callable[..., Example]) -> None:
    """20,000 x 2,000 rows: a check that takes minutes is one that is switched off."""
    rng = random.Random(2)
    words = [f"w{at}" for at in range(3000)]

    def rows(count: int) -> list[Example]:
        return [example(" ".join(rng.choices(words, k=40)), f"Answer{at % 7}") for at in range(count)]

    splits: Splits = {"train": rows(20_000), "validation": rows(1000), "test": rows(2000)}
    started = time.perf_counter()
    assert "test-near-overlap" not in codes(check_data(config, splits))
    assert time.perf_counter() - started < 30
