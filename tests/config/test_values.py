"""Values that conflict with another key, another source or the machine are reported early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.config.loading import read_yaml
from finetune.config.params import Config, parse_config
from finetune.errors import ConfigError
from tests.builders.config_errors import MISSING, error_of


@pytest.mark.parametrize(
    ("section", "key", "value", "text"),
    [
        ("train", "learning_rate", "2e-4", "must be a valid number; found '2e-4'"),
        ("train", "bf16", 1, "must be a valid boolean; found 1"),
        ("train", "bf16", "no", "must be a valid boolean; found 'no'"),
        ("train", "save_steps", 50.0, "must be a valid integer; found 50.0"),
        ("adapter", "r", True, "must be a valid integer; found True"),
        ("train", "weight_decay", False, "must be a valid number; found False"),
        ("model", "dtype", "fp32", "must be 'float32', 'bfloat16' or 'float16'; found 'fp32'"),
        ("model", "revision", "main", "must match pattern '^[0-9a-f]{40}$'; found 'main'"),
    ],
)
def test_a_value_of_another_type_is_refused(
    params: dict[str, Any], section: str, key: str, value: Any, text: str
) -> None:
    """Nothing is converted: a quoted number, or a 1 for true, suggests another intention."""
    params[section][key] = value
    assert error_of(params) == f"params.yaml: {section}.{key}: {text}"


@pytest.mark.parametrize(
    ("section", "key", "value", "text"),
    [
        ("train", "learning_rate", 2.0, "must be less than or equal to 1; found 2.0"),
        ("train", "learning_rate", 0.0, "must be greater than 0; found 0.0"),
        ("train", "save_total_limit", 1, "must be greater than or equal to 2; found 1"),
        ("train", "num_train_epochs", float("inf"), "must be a finite number; found inf"),
        ("train", "warmup_steps", float("nan"), "must be a finite number; found nan"),
        ("adapter", "lora_dropout", 1.0, "must be less than 1; found 1.0"),
        ("adapter", "r", 0, "must be greater than or equal to 1; found 0"),
        ("decide", "confidence", 0.05, "must be greater than 0.5; found 0.05"),
        ("data", "directory", "", "must have at least 1 character; found ''"),
    ],
)
def test_a_value_out_of_range_is_refused(params: dict[str, Any], section: str, key: str, value: Any, text: str) -> None:
    """The error states the allowed range."""
    params[section][key] = value
    assert error_of(params) == f"params.yaml: {section}.{key}: {text}"


NUMBERS = [
    "data.max_bad_fraction",
    "data.split.train",
    "adapter.lora_dropout",
    "train.learning_rate",
    "train.num_train_epochs",
    "train.warmup_steps",
    "train.weight_decay",
    "train.adam_beta1",
    "train.adam_epsilon",
    "train.max_grad_norm",
    "decide.confidence",
]


@pytest.mark.parametrize("key", NUMBERS)
def test_nan_is_refused(change: Callable[..., Config], key: str) -> None:
    """`.nan` is valid YAML and passes comparisons written the other way round."""
    with pytest.raises(ConfigError, match=f"^params.yaml: {key}: "):
        change(**{key: float("nan")})


@pytest.mark.parametrize("value", [1.5, 30.25])
def test_a_fractional_number_of_warmup_steps_is_refused(params: dict[str, Any], value: float) -> None:
    """transformers silently truncates 1.5 to one step."""
    params["train"]["warmup_steps"] = value
    text = f"{value:g} is neither a fraction of the run (below 1) nor an integer number of steps"
    assert error_of(params) == f"params.yaml: train.warmup_steps: {text}"


@pytest.mark.parametrize("value", [0, 0.03, 1, 30, 30.0])
def test_a_warmup_share_and_a_warmup_in_steps_load(change: Callable[..., Config], value: float) -> None:
    """Valid warmup values load."""
    assert change(**{"train.warmup_steps": value}).train.warmup_steps == value


def test_bf16_with_fp16_is_refused(params: dict[str, Any]) -> None:
    """Each key is valid alone, but not both; transformers would refuse them only after loading the base."""
    params["train"] |= {"bf16": True, "fp16": True}
    assert error_of(params) == "params.yaml: train: bf16 and fp16 are both true; choose one"


def test_split_shares_must_sum_to_one(params: dict[str, Any]) -> None:
    """A sum below 1 would silently lose examples, one above 1 would use some twice."""
    params["data"]["split"] |= {"train": 0.7, "validation": 0.1, "test": 0.1}
    text = "train + validation + test is 0.9; the three shares must sum to 1"
    assert error_of(params) == f"params.yaml: data.split: {text}"


@example(train=700, validation=200)
@given(train=st.integers(1, 900), validation=st.integers(1, 99))
def test_shares_in_tenths_of_a_percent_sum_to_one(change: Callable[..., Config], train: int, validation: int) -> None:
    """0.7 + 0.2 + 0.1 is 0.9999999999999999 in binary; rounding must not refuse valid shares."""
    test = 1000 - train - validation
    shares = {"train": train / 1000, "validation": validation / 1000, "test": test / 1000}
    split = {"method": "exact", **shares, "stratify_by": "agent"}
    assert change(**{"data.split": split}).data.split.test == test / 1000


def test_two_sources_of_one_name_are_refused(params: dict[str, Any]) -> None:
    """The ledger is kept by name: the second account would overwrite the first."""
    params["data"]["sources"] = [{"name": "rows", "path": f"{at}.jsonl", "format": "interactions"} for at in range(2)]
    text = "two sources are named 'rows'; give each source a unique name"
    assert error_of(params) == f"params.yaml: data.sources: {text}"


def test_the_documented_sources_load(params: dict[str, Any], tmp_path: Path) -> None:
    """The example of a mixture in the documentation is valid."""
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    (tmp_path / "sources.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    params["data"] |= read_yaml(tmp_path / "sources.yaml")
    params["data"]["split"] |= {"train": 0.9, "validation": 0.1, "test": 0.0}
    forum, _, test, hub = parse_config(params, "params.yaml").data.sources
    assert (forum.fraction, test.split, test.columns, hub.part) == (0.67, "test", {"label": "category"}, "train")


SOURCE = {"name": "rows", "path": "rows.jsonl"}
HUB = {"name": "rows", "hub": "org/rows", "revision": "0" * 40, "part": "train"}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"name": "rows"}, "set either path (a file in data.directory) or hub (a dataset on the Hub)"),
        (SOURCE | HUB, "set either path (a file in data.directory) or hub (a dataset on the Hub)"),
        (
            {**HUB, "revision": None},
            "a hub dataset needs revision (40 hex digits) and part (a split of the dataset, like train)",
        ),
        (SOURCE | {"revision": "0" * 40}, "revision and subset apply to a hub dataset, not to a path"),
        (SOURCE | {"fraction": 0.5, "cap": 3}, "fraction and cap are mutually exclusive; keep one"),
        (SOURCE | {"split": "test", "cap": 3}, "a test file is used unchanged; remove cap"),
        (
            SOURCE | {"columns": {"grup": "user"}},
            "columns: 'grup' is not a field of any format; did you mean group? (write FIELD: COLUMN)",
        ),
        (HUB | {"hub": "data/raw/rows"}, "hub: 'data/raw/rows' is not a dataset name on the Hub, like org/name"),
        (HUB | {"hub": "json"}, "hub: 'json' is not a dataset name on the Hub, like org/name"),
    ],
)
def test_a_contradictory_source_is_refused(params: dict[str, Any], source: Any, text: str) -> None:
    """It is unclear which of two contradicting keys was intended."""
    params["data"]["sources"] = [source]
    dot = "." if text.startswith(("columns", "hub:")) else ": "
    assert error_of(params).splitlines()[0] == f"params.yaml: data.sources.0{dot}{text}"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"duplicates.exact": "keep"},
            "duplicates: near: drop also drops exact copies; set exact: drop, or near: group",
        ),
        ({"filters.characters": {"min": 9, "max": 3}}, "filters.characters: min 9 is more than max 3"),
        (
            {"filters.drop_matching": ["a("]},
            "filters.drop_matching: 'a(' is not a regular expression: missing ) at position 2",
        ),
        ({"split.method": "stable"}, "split: method stable uses only the hash of each row; set stratify_by: null"),
        (
            {"sources": [SOURCE | {"split": "test"}]},
            ": source 'rows' is the test split, so set split.test: 0.0 (now 0.13)",
        ),
        (
            {"split.test": 0.0, "split.train": 0.93},
            ": split.test is 0 and no source is the test split; set a share or add a file",
        ),
        (
            {"split.train": 0.0, "split.test": 0.93},
            ": split.train is 0 and no source is the train split; there would be no training data",
        ),
        (
            {"max_row_size": "10"},
            "max_row_size: '10' is not an amount of memory; write a number and its unit, like '10 GB' or '10 GiB'",
        ),
    ],
)
def test_contradictory_data_settings_are_refused(
    change: Callable[..., Config], changed: dict[str, Any], text: str
) -> None:
    """Each would lead to an empty split, lost rows or a changing test set."""
    with pytest.raises(ConfigError) as caught:
        change(**{f"data.{key}": value for key, value in changed.items()})
    assert str(caught.value) == f"params.yaml: data{'' if text.startswith(':') else '.'}{text}"


def test_all_mistakes_are_reported_together(params: dict[str, Any]) -> None:
    """Reporting one mistake per run would take as many runs as mistakes."""
    params["environment"] = "gpu"
    del params["adapter"]["r"]
    params["train"] |= {"learning_rate": "2e-4", "lr_scheduler": "cosine"}
    assert error_of(params).splitlines() == [
        "params.yaml: environment: must be 'cpu', 'cuda' or 'apple'; found 'gpu'",
        f"params.yaml: adapter.r: {MISSING}",
        "params.yaml: train.learning_rate: must be a valid number; found '2e-4'",
        "params.yaml: train.lr_scheduler: unknown key; did you mean lr_scheduler_type?",
    ]


def test_one_mistake_in_the_only_source_is_one_error(params: dict[str, Any]) -> None:
    """A second message about an empty list would be wrong and misleading."""
    params["data"]["sources"] = [{"name": "rows", "path": "a.jsonl", "format": "interactions", "fromat": "x"}]
    assert error_of(params) == "params.yaml: data.sources.0.fromat: unknown key; did you mean format?"
