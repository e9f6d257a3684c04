"""The inputs for tokenized rows: a tokenizer and settings."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from finetune.config.params import Config, parse_config
from finetune.config.train import TrainConfig
from finetune.model.tokens import load_tokenizer
from tests.builders.small_run import ROOT, params


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Return the embedded base's tokenizer."""
    return load_tokenizer(parse_config(params(), "params").model, ROOT / "models/tiny-base")


def tokenizer_with(path: Path) -> Any:
    """Return the embedded tokenizer with this template, whose marks become tokens as in the original one."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny-base")
    template = path.read_text(encoding="utf-8")
    marks = set(re.findall(r"<[|\uff5c][^<>\s]+[|\uff5c]>|<[a-z]+_of_[a-z]+>|<\|?turn\|?>|\[/?INST\]", template))
    tokenizer.add_tokens(sorted(marks), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def settings(change: Callable[..., Config]) -> Callable[..., TrainConfig]:
    """`settings(max_length=20)`: return the section train with keys changed."""

    def changed(**keys: Any) -> TrainConfig:
        return change(**{f"train.{key}": value for key, value in keys.items()}).train

    return changed
