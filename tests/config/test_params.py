"""params.yaml: all mistakes are reported at once and early, and valid values load as written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune.config.loading import read_yaml
from finetune.config.params import Config, load_config
from finetune.config.types import UNITS, parse_bytes
from finetune.errors import ConfigError
from tests.builders.config_errors import GOOD, MISSING, error_of, error_of_file, with_criteria

# ---- What is right


def test_shipped_params_load_with_every_value_as_written(params: dict[str, Any], config: Config) -> None:
    """A value changed or dropped on loading would train something other than the file states."""
    assert config.model_dump(mode="json", exclude_unset=True) == params


def test_numbers_are_read_as_in_yaml_1_2(tmp_path: Path) -> None:
    """PyYAML (1.1) reads 2e-4 as text, `no` as false and 1:30 as 90; learning rates are often written 2e-4."""
    path = tmp_path / "params.yaml"
    path.write_text("a: 2e-4\nb: 1.0e-8\nc: no\nd: 1:30\ne: 010\nf: null\n", encoding="utf-8")
    assert read_yaml(path) == {"a": 0.0002, "b": 1e-8, "c": "no", "d": "1:30", "e": 10, "f": None}


def test_an_integer_is_accepted_for_a_float(change: Callable[..., Config]) -> None:
    """`weight_decay: 0` and `num_train_epochs: 3` are valid."""
    train = change(**{"train.weight_decay": 0, "train.num_train_epochs": 3}).train
    assert (train.weight_decay, train.num_train_epochs) == (0.0, 3.0)


def test_a_config_is_frozen(config: Config) -> None:
    """The fingerprint covers the config, so no stage may change it or its lists."""
    with pytest.raises(ValidationError, match="frozen"):
        config.train.learning_rate = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 7
    assert isinstance(config.adapter.target_modules, tuple)
    assert isinstance(config.decide.criteria, tuple)


# ---- Keys


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("train", "learning_rat", "did you mean learning_rate?"),
        ("adapter", "lora_alfa", "did you mean lora_alpha?"),
        ("model", "zzzz", "remove it"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    params: dict[str, Any], section: str, key: str, near: str
) -> None:
    """A mistyped key that is ignored would silently leave a default value."""
    params[section][key] = 1
    assert error_of(params) == f"params.yaml: {section}.{key}: unknown key; {near}"


def test_a_mistyped_section_is_both_missing_and_unknown(params: dict[str, Any]) -> None:
    """Both errors are reported, with a hint that they belong together."""
    params["trian"] = params.pop("train")
    assert error_of(params) == f"params.yaml: train: {MISSING}\nparams.yaml: trian: unknown key; did you mean train?"


def test_a_nested_unknown_key_has_its_full_path(params: dict[str, Any]) -> None:
    """`stratify` alone is ambiguous; the nearest key is one of the same section."""
    params["data"]["split"]["stratify"] = "agent"
    assert error_of(params) == "params.yaml: data.split.stratify: unknown key; did you mean stratify_by?"


def test_a_missing_key_is_an_error_and_not_a_default(params: dict[str, Any]) -> None:
    """A default in code could change results without a trace in params.yaml."""
    del params["train"]["optim"]
    assert error_of(params) == f"params.yaml: train.optim: {MISSING}"


@pytest.mark.parametrize("section", list(Config.model_fields))
def test_every_section_is_required(params: dict[str, Any], section: str) -> None:
    """No section is optional: a recipe replaces complete sections, located by their keys."""
    del params[section]
    assert error_of(params) == f"params.yaml: {section}: {MISSING}"


# ---- Memory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 GB", 10_000_000_000),
        ("10 GiB", 10_737_418_240),
        ("512 MB", 512_000_000),
        ("512MiB", 536_870_912),
        ("1.5 GB", 1_500_000_000),
    ],
)
def test_a_limit_is_read_in_its_unit(change: Callable[..., Config], text: str, expected: int) -> None:
    """GB and GiB differ by 7%, more than the margin of many candidates."""
    assert parse_bytes(text) == expected
    criteria = [{"rule": "memory_at_most", "limit": text}]
    assert change(**{"decide.criteria": criteria}).decide.criteria[0].limit_bytes == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", ["10", "10 gb", "10 Gb", "GB", "-1 GB", "0 GB", "1,5 GB", "10 GB ", ""])
def test_a_limit_without_a_unit_is_refused(params: dict[str, Any], limit: str) -> None:
    """A bare 10 could be bytes, GB or GiB; zero would fail every candidate."""
    text = error_of(with_criteria(params, GOOD, {"rule": "memory_at_most", "limit": limit}))
    advice = "is not an amount of memory; write a number and its unit, like '10 GB' or '10 GiB'"
    assert text == f"params.yaml: decide.criteria.1.limit: {limit!r} {advice}"


@given(number=st.integers(1, 10**6), unit=st.sampled_from(sorted(UNITS)), space=st.sampled_from(["", " ", "  "]))
def test_integer_amounts_are_exact(number: int, unit: str, space: str) -> None:
    """A limit is converted through a float, but must stay exactly the written number."""
    assert parse_bytes(f"{number}{space}{unit}") == number * UNITS[unit]


# ---- The file


def test_a_missing_file_suggests_another_directory(tmp_path: Path) -> None:
    """The usual cause is a wrong working directory."""
    path = tmp_path / "params.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: no such file; run from the root of the repository"


@pytest.mark.parametrize("content", [b"", b"# nothing but a comment\n", b"- a\n- list\n", b"text\n"])
def test_a_file_without_sections_is_refused(tmp_path: Path, content: bytes) -> None:
    """An interrupted editor may leave an empty file."""
    sections = "recipe, machine, environment, seed, data, model, adapter, train, findings, evaluate, decide, runtime"
    text = error_of_file(tmp_path / "params.yaml", content)
    assert text == f"is empty or not a mapping; it must have the sections {sections}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"seed: 42\ntrain: [1\ndata: 2\n", "line 3: not valid YAML: expected ',' or ']', but got ':'"),
        (b"seed: 42\ntrain: a: b\n", "line 2: not valid YAML: mapping values are not allowed here"),
        (b"seed: 42\n\ttrain: 1\n", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
        (b"seed: 42\nseed: 43\n", 'line 2: not valid YAML: found duplicate key "seed" with value "43"'),
    ],
)
def test_broken_yaml_is_reported_with_its_line(tmp_path: Path, content: bytes, text: str) -> None:
    """A duplicate key is broken YAML too, as its value is ambiguous."""
    assert error_of_file(tmp_path / "params.yaml", content).startswith(text)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Read as Latin-1, a system prompt would be trained on with wrong letters."""
    text = error_of_file(tmp_path / "params.yaml", "recipe: größe\n".encode("latin-1"))
    assert text == "is not UTF-8 (byte 10); save it as UTF-8"


def test_a_yaml_tag_runs_no_code(tmp_path: Path) -> None:
    """params.yaml may come from another person: loading it must create only plain values."""
    target = tmp_path / "made"
    content = f"seed: !!python/object/apply:os.mkdir ['{target}']\n"
    assert "could not determine a constructor" in error_of_file(tmp_path / "params.yaml", content.encode())
    assert not target.exists()
