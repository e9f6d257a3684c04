"""Agents, labels and answers: which are trained, which are tested, and how often."""

from dataclasses import replace

from finetune.config.params import Config
from finetune.records.examples import Example, Message
from finetune.validate.checks.data import check_data
from tests.builders.checked_settings import codes, finding_text
from tests.builders.checked_splits import Splits
from tests.builders.checked_splits import quiet as quiet
from tests.builders.checked_splits import splits as splits
from tests.builders.kinds import Change, MakeExample

# ---- Agents, labels, answers


def test_an_agent_tested_and_not_trained_is_an_error(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """The usual cause is that two sources name the same agent differently."""
    splits["test"] += [example(f"odd {at}", agent="nmaer") for at in range(2)]
    (finding,) = check_data(quiet, splits)
    assert finding_text(finding, "agent-missing") == (
        "data/prepared/train.jsonl: 'nmaer' has 2 test examples but none in train; rename it to "
        "'namer' (agent of its source), or add rows"
    )
    splits["train"].append(example("odd", agent="nmaer"))
    assert "agent-missing" not in codes(check_data(quiet, splits))


def test_an_agent_of_one_row_in_twenty_is_enough(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """40 to 2 is 20 to 1, the largest ratio without a warning."""
    splits["train"] += [example(f"rare {at}", agent="rare") for at in range(2)]
    assert check_data(quiet, splits) == []
    splits["train"].pop()
    (finding,) = check_data(quiet, splits)
    assert finding_text(finding, "agents-imbalanced") == (
        "data/prepared/train.jsonl: 'namer' has 40 of the 41 train examples and 'rare' has 1, 40 times fewer; "
        "add rows of 'rare'"
    )


def test_the_source_to_limit_is_named(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """If the rare agent has its own source, a cap on the other source balances them."""
    splits["train"] = [replace(row, source="cpython") for row in splits["train"]] + [example("one", agent="rare")]
    (finding,) = check_data(quiet, splits)
    assert finding.remedy == "add rows of 'rare', or set data.sources.0.cap: 20"


def labelled(rows: list[Example], names: list[str]) -> list[Example]:
    """Return the rows with these labels in turn, which are also their answers."""
    return [
        replace(row, label=name, messages=(*row.prompt, Message("assistant", name)))
        for row, name in zip(rows, names * len(rows), strict=False)
    ]


def test_labels_of_both_splits_cause_no_finding(splits: Splits, quiet: Config) -> None:
    """Four labels in both splits cause no finding; rows without a label are ignored."""
    names = ["1", "2", "3", "4"]
    splits["train"], splits["test"] = labelled(splits["train"], names), labelled(splits["test"], names)
    assert check_data(quiet, splits) == []
    splits["train"] += [replace(row, label=None, id=f"{row.id}x") for row in splits["validation"]]
    splits["validation"] = splits["validation"][:0]
    assert codes(check_data(quiet, splits)) == ["split-empty"]


def test_a_label_that_is_tested_and_not_trained_is_an_error(splits: Splits, quiet: Config) -> None:
    """Of seven new labels, five are named and the rest are counted."""
    splits["train"] = labelled(splits["train"], ["1", "2"])
    splits["test"] = labelled(splits["test"], [*"123456789"])
    (finding,) = check_data(quiet, splits)
    assert finding_text(finding, "label-missing-in-train") == (
        "data/prepared/train.jsonl: 7 labels (3, 4, 5, 6, 7 and 2 more) of 'namer' in test, with "
        "22 examples, but not in train; add rows of them to train, or set "
        "data.split.stratify_by: label"
    )


def test_a_label_that_is_never_tested_is_a_warning(splits: Splits, quiet: Config) -> None:
    """The score of such a label is unknown."""
    splits["train"] = labelled(splits["train"], ["1", "2", "3"])
    splits["test"] = labelled(splits["test"], ["1", "2"])
    (finding,) = check_data(quiet, splits)
    assert finding_text(finding, "label-missing-in-test") == (
        "data/prepared/test.jsonl: 1 label (3) of 'namer' in train, with 13 examples, but not in "
        "test; add test rows of them, or set data.split.stratify_by: label"
    )


def test_a_label_twenty_times_as_frequent_is_a_warning(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """42 to 2 is above 20 to 1, 40 to 2 is not; the answers are sentences, so no answer is constant."""

    def rows(first: int, a: int, b: int) -> list[Example]:
        made = [example(f"question {first + at}", f"Because {at % 5}") for at in range(a + b)]
        return [replace(row, label="b" if at < b else "a") for at, row in enumerate(made)]

    splits["test"] = rows(300, 20, 4)
    splits["train"] = rows(100, 40, 2)
    assert check_data(quiet, splits) == []
    splits["train"] = rows(100, 42, 2)
    (finding,) = check_data(quiet, splits)
    assert finding_text(finding, "labels-imbalanced") == (
        "data/prepared/train.jsonl: label 'a' of 'namer' has 42 train examples, up to 21 times "
        "as many as 1 label (b) (2 for the rarest); add rows of the rare labels, or judge this "
        "agent by macro_f1 of a classification scorer"
    )


def test_a_constant_answer_is_a_warning(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """33 of 40 are above 80%, 32 are not: a model that ignores its input would reach that score."""
    splits["test"] = [example(f"question {300 + at}", "Same" if at < 24 else "Other") for at in range(30)]
    splits["train"] = [example(f"question {100 + at}", "Same" if at < 32 else f"Other{at}") for at in range(40)]
    assert check_data(quiet, splits) == []
    splits["train"][-1] = example("question 139", "Same")
    (finding,) = check_data(quiet, splits)
    assert finding_text(finding, "answers-constant") == (
        "data/prepared/train.jsonl: 33 of 40 train answers of 'namer' (82.5%) are 'Same'; a "
        "majority-class baseline would score 0.800 on test; judge 'namer' by macro_f1 of a "
        "classification scorer, or require more than 0.83"
    )


def test_a_few_rows_with_one_answer_cause_no_finding(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """19 equal rows of a second agent may be coincidence."""
    splits["train"] += [example(f"second {at}", "Same", agent="second") for at in range(19)]
    assert check_data(quiet, splits) == []


def test_long_answers_in_many_rows_are_a_note(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """A refusal in three of 40 rows would be learnt; two of 40 are 5%, and answers of eight words count as labels."""
    refusal = "I am sorry but I can not help you with that"

    def with_answer(answer: str, times: int) -> Splits:
        rows = [example(f"question {100 + at}", answer) for at in range(times)]
        return splits | {"train": rows + splits["train"][times:]}

    assert check_data(quiet, with_answer(refusal, 2)) == []
    assert check_data(quiet, with_answer("I am sorry but I can not help", 3)) == []
    (finding,) = check_data(quiet, with_answer(refusal, 3))
    assert finding_text(finding, "answers-repeated") == (
        f"data/prepared/train.jsonl: 3 of 40 train answers (7.5%) are {refusal!r}; "
        "keep them if this answer is intended; otherwise drop them with data.filters.drop_matching"
    )


def test_a_constant_long_answer_is_reported_once(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """A constant answer is also a repeated one, so the latter is not reported."""
    splits["train"] = [example(f"question {100 + at}", "no " * 10) for at in range(40)]
    splits["test"] = [example(f"question {300 + at}", "no " * 10) for at in range(30)]
    assert codes(check_data(quiet, splits)) == ["answers-constant"]


def test_an_unused_system_prompt_is_a_warning(splits: Splits, change: Change) -> None:
    """The usual cause is a mistyped name: the agent then has no system prompt."""
    cost = [{"rule": "memory_at_most", "limit": "2 GB"}]
    prompts = {"namer": "Name it.", "Namer": "Name it.", "xyz": "?"}
    config = change(**{"decide.criteria": cost, "data.system_prompts": prompts, "evaluate.scorers.exceptions.of": None})
    near, far = check_data(config, splits)
    assert str(near) == (
        "params.yaml: data.system_prompts.Namer: none of the 90 rows belongs to agent 'Namer'; did you mean 'namer'?"
    )
    assert far.remedy == "remove it, or name one of the agents: namer"
    assert (near.code, near.severity) == ("system-prompt-unused", "warning")
