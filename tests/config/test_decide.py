"""The gate and its scorers in params.yaml: criteria are measurable and not duplicated."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune.config.criteria import RULES
from finetune.config.params import Config, parse_config
from tests.builders.config_errors import GOOD, MISSING, error_of, with_criteria


def test_test_set_uses_share_the_error_probability(change: Callable[..., Config]) -> None:
    """Five uses at 95% have 99% each, so that the probability of any false proof stays at 5%."""
    section = change(**{"decide.confidence": 0.95, "decide.looks": 5}).decide
    assert section.confidence_of_a_look == pytest.approx(0.99)
    assert change(**{"decide.confidence": 0.95, "decide.looks": 1}).decide.confidence_of_a_look == pytest.approx(0.95)


def test_every_rule_loads_and_is_described_in_words(params: dict[str, Any]) -> None:
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
            "decide.criteria.0.rule: for loss, less is better; use at_most",
        ),
        (
            [{"rule": "at_most", "threshold": 0.5, **EXACT}],
            "decide.criteria.0.rule: for exact_match, more is better; use at_least",
        ),
        (
            [{"rule": "not_worse_than_baseline", "margin": 1.0, **EXACT}],
            "decide.criteria.0.margin: 1 is the entire range of exact_match",
        ),
        (
            [{"rule": "better_than_baseline", "metric": "exact_mach", "group": "all"}],
            "decide.criteria.0.metric: no scorer provides 'exact_mach'; use one of exact_match, exceptions.accuracy, "
            "exceptions.macro_f1, exceptions.weighted_f1, loss, perplexity, or add a scorer to evaluate.scorers",
        ),
    ],
)
def test_contradictory_criteria_are_refused(params: dict[str, Any], criteria: list[dict[str, Any]], text: str) -> None:
    """Duplicate thresholds, rules in the wrong direction and unmeasured metrics are all reported at once."""
    assert error_of(with_criteria(params, *criteria)) == f"params.yaml: {text}"


def test_errors_in_scorers_and_sides_name_the_key(params: dict[str, Any]) -> None:
    """Errors name the key as in the file, not pydantic's branch of a union."""
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
def test_a_scorer_with_a_taken_name_is_refused(params: dict[str, Any], name: str) -> None:
    """The name of a metric must be unambiguous."""
    params["evaluate"]["scorers"] |= {name: {"scorer": "exact_match", "of": None}}
    assert error_of(params).startswith(f"params.yaml: evaluate.scorers: {name!r} can't be the name of a scorer")


# ---- Criteria


def test_an_unknown_rule_is_reported_with_the_known_ones(params: dict[str, Any]) -> None:
    """The rule determines the other keys of a criterion, so they are checked only after it is right."""
    text = error_of(with_criteria(params, {"rule": "at_lest", "metric": "exact_match", "group": "all"}))
    assert text.startswith("params.yaml: decide.criteria.0")
    assert "'at_lest'" in text
    for rule in ("at_least", "better_than_baseline", "not_worse_than_baseline", "latency_at_most", "memory_at_most"):
        assert f"'{rule}'" in text


def test_a_criterion_without_a_rule_misses_its_rule(params: dict[str, Any]) -> None:
    """The error is that of any other missing key, with the key to add."""
    text = error_of(with_criteria(params, {"metric": "exact_match", "group": "all"}, GOOD))
    assert text == f"params.yaml: decide.criteria.0.rule: {MISSING}"


def test_a_missing_key_of_a_criterion_is_reported(params: dict[str, Any]) -> None:
    """An `at_least` without a threshold would hold for any candidate."""
    text = error_of(with_criteria(params, {"rule": "at_least", "metric": "exact_match", "group": "all"}, GOOD))
    assert text == f"params.yaml: decide.criteria.0.threshold: {MISSING}"


def test_a_key_of_another_rule_is_not_suggested(params: dict[str, Any]) -> None:
    """For `threshold` in `better_than_baseline`, "did you mean threshold?" would not help."""
    text = error_of(with_criteria(params, GOOD | {"threshold": 0.6}, GOOD))
    assert text.startswith("params.yaml: decide.criteria.0.threshold: unknown key; ")
    assert "did you mean threshold?" not in text


def test_a_mistyped_key_of_a_criterion_is_named(params: dict[str, Any]) -> None:
    """The nearest key is one of the criterion's own rule."""
    latency = {"rule": "latency_at_most", "seconds": 1.0, "improvement": None, "second": 1}
    text = error_of(with_criteria(params, GOOD, latency))
    assert text == "params.yaml: decide.criteria.1.second: unknown key; did you mean seconds?"


def test_a_gate_without_criteria_is_refused(params: dict[str, Any]) -> None:
    """An empty gate has no failing criterion and would deploy everything."""
    text = error_of(with_criteria(params))
    assert text.startswith("params.yaml: decide.criteria: must have at least 1 item")
