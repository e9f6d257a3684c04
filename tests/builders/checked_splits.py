"""Splits to check, and the findings about them."""

from collections.abc import Callable

import pytest

from finetune.config.params import Config
from finetune.config.types import Split
from finetune.records.examples import Example

Splits = dict[Split, list[Example]]


@pytest.fixture
def splits(example: Callable[..., Example]) -> Splits:
    """Return splits without a common prompt and without findings: questions 100 to 139 for training, 200 to 219 and 300
    to 329 held out, and four answers."""

    def rows(first: int, count: int) -> list[Example]:
        return [example(f"question {first + at}", f"Answer{at % 4}") for at in range(count)]

    return {"train": rows(100, 40), "validation": rows(200, 20), "test": rows(300, 30)}


@pytest.fixture
def quiet(change: Callable[..., Config]) -> Config:
    """Return a config whose gate and system prompts cause no findings."""
    cost = [{"rule": "memory_at_most", "limit": "2 GB"}]
    changes = {"decide.criteria": cost, "data.system_prompts": {}, "data.duplicates.near": "drop"}
    return change(**changes, **{"evaluate.scorers.exceptions.of": None})
