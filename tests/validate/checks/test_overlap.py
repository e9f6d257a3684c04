"""Overlap of two splits: rows, prompts and near duplicates."""

import random
import time

import pytest

from finetune.config.params import Config
from finetune.config.types import Split
from finetune.records.examples import Example, Message
from finetune.records.near_duplicates import shingles, similarity
from finetune.validate.checks.overlap import check_overlap, near_copies
from tests.builders.checked_settings import codes, finding_text
from tests.builders.checked_splits import Splits
from tests.builders.checked_splits import quiet as quiet
from tests.builders.checked_splits import splits as splits
from tests.builders.kinds import Change, MakeExample

# ---- Overlap


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_row_in_train_and_held_out_is_an_error(
    splits: Splits, quiet: Config, example: MakeExample, name: Split
) -> None:
    """Manually edited splits must not give a score for memorised rows."""
    assert check_overlap(quiet, splits) == []
    leak = example(" question  103\n", "Answer3 ", system="Another system prompt, the same question.")
    splits[name].append(leak)
    (finding,) = check_overlap(quiet, splits)
    size = len(splits[name])
    assert finding_text(finding, "split-overlap") == (
        f"data/prepared/{name}.jsonl: 1 of {size} rows ({100 / size:.3g}%) also occur in train, prompt and answer (ids "
        f"{leak.id}); run prepare again (dvc repro -f -s prepare); it keeps them apart"
    )


def test_a_prompt_with_another_answer_is_another_error(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """The model was trained on the question, and which of its answers is right is unknown."""
    splits["test"] += [example("question 103", "Answer3"), example("question 104", "Another")]
    copy, prompt = check_overlap(quiet, splits)
    assert (copy.code, prompt.code) == ("split-overlap", "split-same-prompt")
    assert str(prompt) == (
        "data/prepared/test.jsonl: 1 of 32 rows (3.12%) have a prompt that also occurs in train with a "
        "different answer (ids "
        "namer/rows/1/question 104/Another); "
        "run prepare again (dvc repro -f -s prepare); it keeps rows of one prompt together"
    )
    assert prompt.severity == "error"


def test_at_most_three_ids_are_listed(splits: Splits, quiet: Config) -> None:
    """A report of a hundred thousand ids would be unreadable."""
    splits["test"] = splits["train"][:5]
    (finding,) = check_overlap(quiet, splits)
    assert "5 of 5 rows (100%)" in finding.message
    assert finding.message.count("namer/") == 3
    assert finding.message.endswith(", …)")


def test_validation_and_test_may_share_a_prompt(splits: Splits, quiet: Config, example: MakeExample) -> None:
    """Neither split is trained on; prepare separates even these."""
    splits["validation"].append(example("question 300"))
    assert check_overlap(quiet, splits) == []


def test_the_system_prompt_distinguishes_answers_without_a_question(quiet: Config) -> None:
    """Texts to continue would otherwise all share the empty question."""

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
def test_near_duplicates_in_the_test_set_stop_the_run(
    splits: Splits, change: Change, example: MakeExample, near: str, fix: str
) -> None:
    """They are detected even if prepare ignored them: the score is affected in any case."""
    config = change(**{"data.duplicates.near": near})
    splits["train"].append(example(LONG, "fox"))
    splits["test"].append(example(f"{LONG} bank", "fox"))
    (finding,) = check_overlap(config, splits)
    assert finding_text(finding, "test-near-overlap") == (
        "data/prepared/test.jsonl: 1 of 31 rows (3.23%) share 80% or more of their word shingles with a row of train "
        f"(ids namer/rows/1/{LONG} bank/fox); {fix}"
    )
    splits["test"][-1] = example(f"{LONG} bank", "A wolf, five hens, two cats and a hundred sheep.")
    assert check_overlap(config, splits) == []


def test_near_duplicates_agree_with_brute_force(config: Config) -> None:
    """Recall is at least 99% and precision 1 for texts of 60 words with one to four of them changed."""
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


def test_a_shared_template_does_not_compare_every_pair(config: Config) -> None:
    """1,000 x 1,000 rows whose bands are nearly all equal: a million comparisons would take half a minute."""
    rng = random.Random(3)
    template = " ".join(f"t{at}" for at in range(70))
    rows = [f"{template} {' '.join(str(rng.randrange(10**6)) for _ in range(30))}" for _ in range(2000)]
    started = time.process_time()
    assert near_copies(rows[:1000], rows[1000:], config.data.duplicates) == []
    assert time.process_time() - started < 15
