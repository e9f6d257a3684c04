"""The inputs for tokenized rows: a tokenizer and settings."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune.config.params import Config, parse_config
from finetune.config.train import TrainConfig
from finetune.model.tokens import load_tokenizer
from tests.builders.small_run import ROOT, params


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Return the embedded base's tokenizer."""
    return load_tokenizer(parse_config(params(), "params").model, ROOT / "models/tiny-base")


@pytest.fixture
def settings(change: Callable[..., Config]) -> Callable[..., TrainConfig]:
    """`settings(max_length=20)`: return the section train with keys changed."""

    def changed(**keys: Any) -> TrainConfig:
        return change(**{f"train.{key}": value for key, value in keys.items()}).train

    return changed
