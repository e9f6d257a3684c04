"""The exact text of a ConfigError about params."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import load_config, parse_config
from finetune.errors import ConfigError

GOOD = {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"}  # a valid criterion
MISSING = "is missing; add it; settings that affect results have no defaults"


def error_of(params: Any) -> str:
    """Return the text of the ConfigError that these params raise."""
    with pytest.raises(ConfigError) as caught:
        parse_config(params, "params.yaml")
    return str(caught.value)


def error_of_file(path: Path, content: bytes) -> str:
    """Return the text of the ConfigError that a file with this content raises, without its path."""
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).removeprefix(f"{path}: ")


def with_criteria(params: dict[str, Any], *criteria: dict[str, Any]) -> dict[str, Any]:
    """Return the params with these criteria instead of their own."""
    params["decide"]["criteria"] = list(criteria)
    return params
