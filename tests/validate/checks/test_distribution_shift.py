"""Splits whose languages, scripts or lengths differ."""

import random
from collections.abc import Callable

import pytest

from finetune.records.examples import Example
from finetune.validate.checks.distribution_shift import check_shift, script_of
from tests.builders.checked_settings import finding_text
from tests.builders.kinds import MakeExample

# ---- Shifts

ENGLISH = "time year people way day man thing woman life child world school state family student group country problem"
GERMAN = "zeit jahr leute weg tag mann ding frau leben kind welt schule staat familie student gruppe land problem"
RUSSIAN = "время год люди путь день человек вещь женщина жизнь ребёнок мир школа штат семья студент группа страна"

Write = Callable[..., list[Example]]


@pytest.fixture
def written(example: MakeExample) -> Write:
    """`written("train", ENGLISH, 40)`: return this many rows of eight of these words."""

    def made(name: str, words: str, count: int, length: int = 8) -> list[Example]:
        rng = random.Random(name)
        return [example(" ".join(rng.choices(words.split(), k=length)), f"Answer{at % 4}") for at in range(count)]

    return made


def test_another_script_is_a_warning(written: Write) -> None:
    """A third of the test rows is Russian and no train row is; one in ten may be chance."""
    train = written("train", ENGLISH, 90)
    test = written("test", ENGLISH, 20) + written("test", RUSSIAN, 10)
    (finding,) = check_shift({"train": train, "validation": [], "test": test})
    assert finding_text(finding, "language-shift") == (
        "data/prepared/test.jsonl: the scripts of the rows differ by 33% (total variation): "
        "CYRILLIC 0% of train, 33% of test, LATIN 100% of train, 67% of test; add train rows "
        "that resemble the test rows"
    )
    mixed = train + written("train", RUSSIAN, 45)
    assert check_shift({"train": mixed, "validation": [], "test": test}) == []
    assert check_shift({"train": train, "validation": [], "test": test[:20] + test[20:21]}) == []


def test_another_language_of_one_script_is_a_warning(written: Write) -> None:
    """Most words are new, although half of train has the words of the other half."""
    train = written("train", ENGLISH, 80)
    assert check_shift({"train": train, "validation": [], "test": written("test", ENGLISH, 40)}) == []
    (finding, *_) = check_shift({"train": train, "validation": [], "test": written("test", GERMAN, 40)})
    assert finding.code == "language-shift"
    what = "of a test row's words do not occur in one half of train, compared with 0% for row"
    assert what in finding.message
    assert finding.remedy == "add train rows that resemble the test rows"


def test_names_unique_to_each_row_are_no_shift(example: MakeExample) -> None:
    """If every row has its own words, new words are normal in test rows."""
    rng = random.Random(1)
    rows = [" ".join("".join(rng.choices("abcdefghij", k=9)) for _ in range(8)) for _ in range(120)]
    examples = [example(row) for row in rows]
    assert check_shift({"train": examples[:80], "validation": [], "test": examples[80:]}) == []


def test_different_lengths_are_a_warning(written: Write) -> None:
    """Twice the length is a warning; the same lengths with other words are not."""
    train = written("train", ENGLISH, 80)
    (finding,) = check_shift({"train": train, "validation": [], "test": written("test", ENGLISH, 40, length=16)})
    assert (finding.code, finding.severity) == ("length-shift", "warning")
    assert finding.message.startswith("test rows have 1")
    assert finding.message.endswith("the Kolmogorov-Smirnov distance is 100%")
    assert finding.remedy == "split both from the same rows (data.split), or add train rows of these lengths"


def test_a_few_rows_cause_no_warning(written: Write) -> None:
    """Three rows are not representative of later ones."""
    train, test = written("train", ENGLISH, 4), written("test", RUSSIAN, 3, 16)
    assert check_shift({"train": train, "validation": [], "test": test}) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [("Hello", "LATIN"), ("123 !?", "none"), ("", "none"), ("привет, Bob", "CYRILLIC"), ("你好", "CJK")],
)
def test_a_row_has_the_script_of_most_of_its_letters(text: str, script: str) -> None:
    """Digits and punctuation belong to no script."""
    assert script_of(text) == script
