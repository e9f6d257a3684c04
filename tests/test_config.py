"""params.yaml: every mistake is told at once, in full, before a machine is rented; what loads is what was written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune.config import Config, load_config, parse_config, read_yaml
from finetune.config_decide import RULES
from finetune.config_types import UNITS, parse_bytes
from finetune.errors import ConfigError

GOOD = {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"}
MISSING = "is missing; nothing that changes a result has a default, so write it"


def error_of(params: Any) -> str:
    """The text of the ConfigError that these params raise."""
    with pytest.raises(ConfigError) as caught:
        parse_config(params, "params.yaml")
    return str(caught.value)


def error_of_file(path: Path, content: bytes) -> str:
    """The text of the ConfigError that a file with this content raises, less its path."""
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).removeprefix(f"{path}: ")


def with_criteria(params: dict[str, Any], *criteria: dict[str, Any]) -> dict[str, Any]:
    """The params with these criteria in place of their own."""
    params["decide"]["criteria"] = list(criteria)
    return params


# ---- What is right


def test_shipped_params_load_with_every_value_as_written(params: dict[str, Any], config: Config) -> None:
    """A value that is changed or dropped on loading would train something else than the file says."""
    assert config.model_dump(mode="json", exclude_unset=True) == params


def test_numbers_are_read_by_the_rules_of_yaml_1_2(tmp_path: Path) -> None:
    """PyYAML (1.1) reads 2e-4 as text, `no` as false and 1:30 as 90; a learning rate is written 2e-4 every day."""
    path = tmp_path / "params.yaml"
    path.write_text("a: 2e-4\nb: 1.0e-8\nc: no\nd: 1:30\ne: 010\nf: null\n", encoding="utf-8")
    assert read_yaml(path) == {"a": 0.0002, "b": 1e-8, "c": "no", "d": "1:30", "e": 10, "f": None}


def test_a_whole_number_is_a_float_where_a_float_is_due(change: Callable[..., Config]) -> None:
    """`weight_decay: 0` and `num_train_epochs: 3` are no mistakes."""
    train = change(**{"train.weight_decay": 0, "train.num_train_epochs": 3}).train
    assert (train.weight_decay, train.num_train_epochs) == (0.0, 3.0)


def test_a_config_is_frozen(config: Config) -> None:
    """What was hashed into the fingerprint must be what runs: no stage may change it on its way, nor its lists."""
    with pytest.raises(ValidationError, match="frozen"):
        config.train.learning_rate = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 7
    assert isinstance(config.adapter.target_modules, tuple)
    assert isinstance(config.decide.criteria, tuple)


def test_the_looks_share_the_error_probability(change: Callable[..., Config]) -> None:
    """Five looks at 95% are each taken at 99%, so that the chance of one false proof among them stays at 5%."""
    asked = change(**{"decide.confidence": 0.95, "decide.looks": 5}).decide
    assert asked.confidence_of_a_look == pytest.approx(0.99)
    assert change(**{"decide.confidence": 0.95, "decide.looks": 1}).decide.confidence_of_a_look == pytest.approx(0.95)


def test_every_rule_loads_and_says_itself_in_words(params: dict[str, Any]) -> None:
    """These words are the lines of the gate in every report."""
    criteria = parse_config(
        with_criteria(
            params,
            {"rule": "at_least", "metric": "exact_match", "group": "namer", "threshold": 0.6},
            {"rule": "at_most", "metric": "perplexity", "group": "all", "threshold": 12},
            {"rule": "better_than_baseline", "metric": "exceptions.macro_f1", "group": "all"},
            {"rule": "not_worse_than_baseline", "metric": "exact_match", "group": "all", "margin": 0.02},
            {"rule": "latency_at_most", "seconds": 12, "improvement": 0.4},
            {"rule": "latency_quantile_at_most", "quantile": 0.95, "seconds": 20},
            {"rule": "memory_at_most", "limit": "10 GiB"},
        ),
        "params.yaml",
    ).decide.criteria
    assert {type(criterion) for criterion in criteria} == set(RULES.values())
    assert [criterion.describe() for criterion in criteria] == [
        "exact_match of namer at least 0.6",
        "perplexity at most 12",
        "exceptions.macro_f1 better than the baseline",
        "exact_match not worse than the baseline by 0.02",
        "mean latency under 12 s",
        "0.95 quantile of the latency under 20 s",
        "peak memory at most 10 GiB",
    ]


EXACT = {"metric": "exact_match", "group": "all"}


@pytest.mark.parametrize(
    ("criteria", "text"),
    [
        (
            [{"rule": "at_least", "threshold": 0.9, **EXACT}, {"rule": "at_least", "threshold": 0.8, **EXACT}],
            "decide.criteria.1: contradicts or repeats decide.criteria.0 (exact_match at least); keep one",
        ),
        (
            [{"rule": "memory_at_most", "limit": "2 GB"}, {"rule": "memory_at_most", "limit": "3 GiB"}],
            "decide.criteria.1: contradicts or repeats decide.criteria.0 (peak memory); keep one",
        ),
        (
            [{"rule": "at_least", "threshold": 1.0, **EXACT}],
            "decide.criteria.0.threshold: must lie between 0 and 1; found 1",
        ),
        (
            [{"rule": "at_least", "metric": "loss", "group": "all", "threshold": 1.0}],
            "decide.criteria.0.rule: of loss, less is better; write at_most",
        ),
        (
            [{"rule": "at_most", "threshold": 0.5, **EXACT}],
            "decide.criteria.0.rule: of exact_match, more is better; write at_least",
        ),
        (
            [{"rule": "not_worse_than_baseline", "margin": 1.0, **EXACT}],
            "decide.criteria.0.margin: 1 is the whole range of exact_match",
        ),
        (
            [{"rule": "better_than_baseline", "metric": "exact_mach", "group": "all"}],
            "decide.criteria.0.metric: no scorer gives 'exact_mach'; use one of exact_match, exceptions.accuracy, "
            "exceptions.macro_f1, exceptions.weighted_f1, loss, perplexity, or add to evaluate.scorers",
        ),
    ],
)
def test_a_criterion_that_cannot_be_meant_is_refused(
    params: dict[str, Any], criteria: list[dict[str, Any]], text: str
) -> None:
    """Two thresholds for one thing, a rule in the wrong direction, a metric that nothing measures: all at once told."""
    assert error_of(with_criteria(params, *criteria)) == f"params.yaml: {text}"


def test_a_scorer_and_a_side_are_sections_of_their_kind(params: dict[str, Any]) -> None:
    """Their errors name the key as it stands in the file, not pydantic's branch of a union."""
    params["evaluate"]["scorers"]["close"] = {"scorer": "numeric", "of": None, "absolute_tolerance": -1.0}
    params["evaluate"]["scorers"]["odd"] = {"scorer": "exact_mach", "of": None}
    params["evaluate"]["baseline"] = {"form": "recorded", "name": "v1", "path": "a.jsonl", "sha256": "x"}
    params["evaluate"]["candidate"] = {}
    lines = error_of(params).splitlines()
    assert [line.split(": ", 2)[1] for line in lines] == [
        "evaluate.baseline.sha256",
        "evaluate.candidate.form",
        "evaluate.scorers.close.absolute_tolerance",
        "evaluate.scorers.close.relative_tolerance",
        "evaluate.scorers.odd.scorer",
    ]
    assert lines[1].endswith(MISSING)
    assert "found 'exact_mach'" in lines[-1]


@pytest.mark.parametrize("name", ["loss", "perplexity", "a.b"])
def test_a_scorer_takes_no_name_that_is_taken(params: dict[str, Any], name: str) -> None:
    """A metric's name says one thing."""
    params["evaluate"]["scorers"] |= {name: {"scorer": "exact_match", "of": None}}
    assert error_of(params).startswith(f"params.yaml: evaluate.scorers: {name!r} can't name a scorer")


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
    """A mistyped key that passes in silence leaves its value at something that nobody chose."""
    params[section][key] = 1
    assert error_of(params) == f"params.yaml: {section}.{key}: unknown key; {near}"


def test_a_mistyped_section_is_both_missing_and_unknown(params: dict[str, Any]) -> None:
    """Both halves of the mistake are told, and that one is the other."""
    params["trian"] = params.pop("train")
    assert error_of(params) == f"params.yaml: train: {MISSING}\nparams.yaml: trian: unknown key; did you mean train?"


def test_a_nested_unknown_key_has_its_full_path(params: dict[str, Any]) -> None:
    """`stratify` alone could stand in any section; the nearest key is sought in its own."""
    params["data"]["split"]["stratify"] = "agent"
    assert error_of(params) == "params.yaml: data.split.stratify: unknown key; did you mean stratify_by?"


def test_a_missing_key_is_an_error_and_not_a_default(params: dict[str, Any]) -> None:
    """A default in code would change results without a trace in params.yaml."""
    del params["train"]["optim"]
    assert error_of(params) == f"params.yaml: train.optim: {MISSING}"


@pytest.mark.parametrize("section", list(Config.model_fields))
def test_every_section_must_be_there(params: dict[str, Any], section: str) -> None:
    """No section is optional: a recipe replaces whole ones and finds its place by their keys."""
    del params[section]
    assert error_of(params) == f"params.yaml: {section}: {MISSING}"


# ---- Values


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
    """Nothing is converted: a quoted number or a 1 for true is a sign that something else was meant."""
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
    """The text says what is allowed, so that the second try is right."""
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
def test_no_number_may_be_nan(change: Callable[..., Config], key: str) -> None:
    """`.nan` is valid YAML and passes any comparison that is written the wrong way round."""
    with pytest.raises(ConfigError, match=f"^params.yaml: {key}: "):
        change(**{key: float("nan")})


@pytest.mark.parametrize("value", [1.5, 30.25])
def test_a_warmup_is_a_share_or_a_whole_number_of_steps(params: dict[str, Any], value: float) -> None:
    """transformers cuts 1.5 to one step without a word."""
    params["train"]["warmup_steps"] = value
    text = f"{value:g} is neither a share of the run (below 1) nor a whole number of steps"
    assert error_of(params) == f"params.yaml: train.warmup_steps: {text}"


@pytest.mark.parametrize("value", [0, 0.03, 1, 30, 30.0])
def test_a_warmup_share_and_a_warmup_in_steps_load(change: Callable[..., Config], value: float) -> None:
    """The counterpart: the check refuses no good value."""
    assert change(**{"train.warmup_steps": value}).train.warmup_steps == value


def test_bf16_with_fp16_is_refused(params: dict[str, Any]) -> None:
    """Two keys that are right one by one and wrong together; transformers would say so only after loading the base."""
    params["train"] |= {"bf16": True, "fp16": True}
    assert error_of(params) == "params.yaml: train: bf16 and fp16 are both true; choose one"


def test_split_shares_must_sum_to_one(params: dict[str, Any]) -> None:
    """A sum below 1 would lose examples in silence, one above 1 would use some twice."""
    params["data"]["split"] |= {"train": 0.7, "validation": 0.1, "test": 0.1}
    text = "train + validation + test is 0.9; the three shares must sum to 1"
    assert error_of(params) == f"params.yaml: data.split: {text}"


@example(train=700, validation=200)
@given(train=st.integers(1, 900), validation=st.integers(1, 99))
def test_shares_in_tenths_of_a_percent_sum_to_one(change: Callable[..., Config], train: int, validation: int) -> None:
    """0.7 + 0.2 + 0.1 is 0.9999999999999999 in binary; rounding must not refuse a right split."""
    test = 1000 - train - validation
    shares = {"train": train / 1000, "validation": validation / 1000, "test": test / 1000}
    split = {"method": "exact", **shares, "stratify_by": "agent"}
    assert change(**{"data.split": split}).data.split.test == test / 1000


def test_two_sources_of_one_name_are_refused(params: dict[str, Any]) -> None:
    """The ledger is kept by name: the second account would overwrite the first."""
    params["data"]["sources"] = [{"name": "rows", "path": f"{at}.jsonl", "format": "interactions"} for at in range(2)]
    text = "two sources are named 'rows'; give each source its own name"
    assert error_of(params) == f"params.yaml: data.sources: {text}"


def test_the_sources_of_the_readme_load(params: dict[str, Any], tmp_path: Path) -> None:
    """The page's example of a mixture is one that the tool takes."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
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
        ({"name": "rows"}, "name either path (a file in data.directory) or hub (a dataset of the Hub)"),
        (SOURCE | HUB, "name either path (a file in data.directory) or hub (a dataset of the Hub)"),
        (
            {**HUB, "revision": None},
            "a hub dataset needs revision (40 hex digits) and part (its own split, like train)",
        ),
        (SOURCE | {"revision": "0" * 40}, "revision and subset belong to a hub dataset, not to a path"),
        (SOURCE | {"fraction": 0.5, "cap": 3}, "fraction and cap exclude each other; keep one"),
        (SOURCE | {"split": "test", "cap": 3}, "a test file is taken as it is; drop cap"),
        (
            SOURCE | {"columns": {"grup": "user"}},
            "columns: 'grup' is a field of no format; did you mean group? (our name comes first, then the file's)",
        ),
        (HUB | {"hub": "data/raw/rows"}, "hub: 'data/raw/rows' is no name of a dataset of the Hub, like org/name"),
        (HUB | {"hub": "json"}, "hub: 'json' is no name of a dataset of the Hub, like org/name"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(params: dict[str, Any], source: Any, text: str) -> None:
    """Which of two contradicting keys was meant is not ours to guess."""
    params["data"]["sources"] = [source]
    dot = "." if text.startswith(("columns", "hub:")) else ": "
    assert error_of(params).splitlines()[0] == f"params.yaml: data.sources.0{dot}{text}"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"duplicates.exact": "keep"},
            "duplicates: near: drop would drop exact copies too; set exact: drop, or near: group",
        ),
        ({"filters.characters": {"min": 9, "max": 3}}, "filters.characters: min 9 is more than max 3"),
        (
            {"filters.drop_matching": ["a("]},
            "filters.drop_matching: 'a(' is no regular expression: missing ) at position 2",
        ),
        ({"split.method": "stable"}, "split: method stable decides by each row's hash alone; set stratify_by: null"),
        (
            {"sources": [SOURCE | {"split": "test"}]},
            ": source 'rows' is the test split, so set split.test: 0.0 (it is 0.13)",
        ),
        (
            {"split.test": 0.0, "split.train": 0.93},
            ": split.test is 0 and no source is the test split; give it a share or a file",
        ),
        (
            {"split.train": 0.0, "split.test": 0.93},
            ": split.train is 0 and no source is the train split; nothing would be trained on",
        ),
        (
            {"max_row_size": "10"},
            "max_row_size: '10' is no amount of memory; write a number and its unit, like '10 GB' or '10 GiB'",
        ),
    ],
)
def test_data_that_contradicts_itself_is_refused(
    change: Callable[..., Config], changed: dict[str, Any], text: str
) -> None:
    """Each would end in an empty split, in rows lost or in a test set that moves."""
    with pytest.raises(ConfigError) as caught:
        change(**{f"data.{key}": value for key, value in changed.items()})
    assert str(caught.value) == f"params.yaml: data{'' if text.startswith(':') else '.'}{text}"


def test_all_mistakes_are_told_together(params: dict[str, Any]) -> None:
    """One mistake a try costs a person as many tries as mistakes."""
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
    """A second line that says the list is empty, though it is not, sends its reader to the wrong place."""
    params["data"]["sources"] = [{"name": "rows", "path": "a.jsonl", "format": "interactions", "fromat": "x"}]
    assert error_of(params) == "params.yaml: data.sources.0.fromat: unknown key; did you mean format?"


# ---- Criteria


def test_an_unknown_rule_is_told_with_the_known_ones(params: dict[str, Any]) -> None:
    """The rule decides which other keys a criterion has, so nothing else can be said before it is right."""
    text = error_of(with_criteria(params, {"rule": "at_lest", "metric": "exact_match", "group": "all"}))
    assert text.startswith("params.yaml: decide.criteria.0")
    assert "'at_lest'" in text
    for rule in ("at_least", "better_than_baseline", "not_worse_than_baseline", "latency_at_most", "memory_at_most"):
        assert f"'{rule}'" in text


def test_a_criterion_without_a_rule_misses_its_rule(params: dict[str, Any]) -> None:
    """The same words as for any other missing key, with the key to write."""
    text = error_of(with_criteria(params, {"metric": "exact_match", "group": "all"}, GOOD))
    assert text == f"params.yaml: decide.criteria.0.rule: {MISSING}"


def test_a_criterion_misses_its_own_key(params: dict[str, Any]) -> None:
    """An `at_least` without a threshold would hold for any candidate."""
    text = error_of(with_criteria(params, {"rule": "at_least", "metric": "exact_match", "group": "all"}, GOOD))
    assert text == f"params.yaml: decide.criteria.0.threshold: {MISSING}"


def test_a_key_of_another_rule_is_no_suggestion_for_itself(params: dict[str, Any]) -> None:
    """`threshold` in `better_than_baseline` is a misunderstanding; "did you mean threshold?" leaves it standing."""
    text = error_of(with_criteria(params, GOOD | {"threshold": 0.6}, GOOD))
    assert text.startswith("params.yaml: decide.criteria.0.threshold: unknown key; ")
    assert "did you mean threshold?" not in text


def test_a_mistyped_key_of_a_criterion_is_named(params: dict[str, Any]) -> None:
    """The nearest key is sought among those of the criterion's own rule."""
    latency = {"rule": "latency_at_most", "seconds": 1.0, "improvement": None, "second": 1}
    text = error_of(with_criteria(params, GOOD, latency))
    assert text == "params.yaml: decide.criteria.1.second: unknown key; did you mean seconds?"


def test_a_gate_without_criteria_is_refused(params: dict[str, Any]) -> None:
    """No criterion fails where there is none: an empty gate would deploy everything."""
    text = error_of(with_criteria(params))
    assert text.startswith("params.yaml: decide.criteria: must have at least 1 item")


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
def test_a_limit_means_what_its_unit_says(change: Callable[..., Config], text: str, expected: int) -> None:
    """GB and GiB differ by 7%, more than many a candidate is under its limit."""
    assert parse_bytes(text) == expected
    criteria = [{"rule": "memory_at_most", "limit": text}]
    assert change(**{"decide.criteria": criteria}).decide.criteria[0].limit_bytes == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", ["10", "10 gb", "10 Gb", "GB", "-1 GB", "0 GB", "1,5 GB", "10 GB ", ""])
def test_a_limit_without_its_unit_is_refused(params: dict[str, Any], limit: str) -> None:
    """A bare 10 could be bytes, GB or GiB; zero would fail every candidate."""
    text = error_of(with_criteria(params, GOOD, {"rule": "memory_at_most", "limit": limit}))
    advice = "is no amount of memory; write a number and its unit, like '10 GB' or '10 GiB'"
    assert text == f"params.yaml: decide.criteria.1.limit: {limit!r} {advice}"


@given(number=st.integers(1, 10**6), unit=st.sampled_from(sorted(UNITS)), space=st.sampled_from(["", " ", "  "]))
def test_whole_amounts_are_exact(number: int, unit: str, space: str) -> None:
    """A limit goes through a float; it must still be the very number that was written."""
    assert parse_bytes(f"{number}{space}{unit}") == number * UNITS[unit]


# ---- The file


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    """The commonest reason is another working directory."""
    path = tmp_path / "params.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: no such file; run from the top of the repository"


@pytest.mark.parametrize("content", [b"", b"# nothing but a comment\n", b"- a\n- list\n", b"text\n"])
def test_a_file_without_sections_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file is what an interrupted editor leaves."""
    sections = "recipe, machine, environment, runtime, seed, data, model, adapter, train, findings, evaluate, decide"
    text = error_of_file(tmp_path / "params.yaml", content)
    assert text == f"is empty or no mapping; it must hold the sections {sections}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"seed: 42\ntrain: [1\ndata: 2\n", "line 3: not valid YAML: expected ',' or ']', but got ':'"),
        (b"seed: 42\ntrain: a: b\n", "line 2: not valid YAML: mapping values are not allowed here"),
        (b"seed: 42\n\ttrain: 1\n", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
        (b"seed: 42\nseed: 43\n", 'line 2: not valid YAML: found duplicate key "seed" with value "43"'),
    ],
)
def test_broken_yaml_is_told_with_its_line(tmp_path: Path, content: bytes, text: str) -> None:
    """A key that stands twice is broken too: the value that counts would be anybody's guess."""
    assert error_of_file(tmp_path / "params.yaml", content).startswith(text)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Read as Latin-1 by guess, a system prompt would be trained on with wrong letters."""
    text = error_of_file(tmp_path / "params.yaml", "recipe: größe\n".encode("latin-1"))
    assert text == "is not UTF-8 (byte 10); save it as UTF-8"


def test_a_yaml_tag_runs_no_code(tmp_path: Path) -> None:
    """params.yaml may come from another person: loading it must construct plain values alone."""
    target = tmp_path / "made"
    content = f"seed: !!python/object/apply:os.mkdir ['{target}']\n"
    assert "could not determine a constructor" in error_of_file(tmp_path / "params.yaml", content.encode())
    assert not target.exists()
