"""The size of the test set against what its criteria can prove."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune.config.params import Config
from finetune.records.examples import Example
from finetune.validate.checks.sample_size import check_test_size
from tests.builders.checked_settings import codes, finding_text
from tests.builders.kinds import Change, MakeExample

# ---- The size of the test set

MakeTests = Callable[..., list[Example]]


@pytest.fixture
def gate(change: Change) -> Change:
    """Return a config with one criterion and one use of the test set at 95%."""

    def made(policy: str = "interval", looks: int = 1, prompts: int = 20, **criterion: Any) -> Config:
        keys = {"decide.confidence": 0.95, "decide.looks": looks, "decide.policy": policy}
        keys |= {"decide.criteria": [criterion], "evaluate.latency.prompts": prompts}
        return change(**keys, **{"evaluate.scorers.exceptions.of": None})

    return made


AT_LEAST = {"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.98}
NOT_WORSE = {"rule": "not_worse_than_baseline", "metric": "exact_match", "group": "all", "margin": 0.05}
BETTER = {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"}
MACRO_F1 = {"rule": "at_least", "metric": "exceptions.macro_f1", "group": "all", "threshold": 0.5}


@pytest.fixture
def tests_of(example: MakeExample) -> MakeTests:
    """Return this number of test examples of an agent."""

    def made(count: int, agent: str = "namer") -> list[Example]:
        return [example(f"{agent} {at}", agent=agent) for at in range(count)]

    return made


def test_a_test_set_that_can_prove_nothing_is_a_warning(gate: Change, tests_of: MakeTests) -> None:
    """With 148 examples even a perfect score fails the gate, with 149 it passes: this is known before the run."""
    assert check_test_size(gate(**AT_LEAST), tests_of(149)) == []
    (finding,) = check_test_size(gate(**AT_LEAST), tests_of(148))
    assert finding_text(finding, "test-set-too-small") == (
        "params.yaml: decide.criteria.0: 148 test examples can't prove exact_match at least 0.98 "
        "even with no failure (236 with one failure, 313 with two): 149 are required at 95.0% "
        "confidence; add 1 test example, or set decide.criteria.0.threshold: 0.97"
    )


def test_the_advised_threshold_can_be_proved(gate: Change, tests_of: MakeTests) -> None:
    """The advised threshold does not cause the same finding again."""
    for count in (20, 31, 59, 100):
        (finding,) = check_test_size(gate(**AT_LEAST), tests_of(count))
        advised = float(finding.remedy.rsplit(" ", 1)[1])
        assert check_test_size(gate(**AT_LEAST | {"threshold": advised}), tests_of(count)) == []
        again = check_test_size(gate(**AT_LEAST | {"threshold": round(advised + 0.01, 2)}), tests_of(count))
        assert codes(again) == ["test-set-too-small"]


def test_the_sample_size_is_that_of_the_group(gate: Change, tests_of: MakeTests) -> None:
    """148 examples of one agent are too few, regardless of hundreds of another."""
    test = tests_of(148) + tests_of(300, "other")
    assert check_test_size(gate(**AT_LEAST), test) == []
    (finding,) = check_test_size(gate(**AT_LEAST | {"group": "namer"}), test)
    assert finding.remedy == "add 1 test example of 'namer', or set decide.criteria.0.threshold: 0.97"
    assert check_test_size(gate(**AT_LEAST | {"group": "other"}), test) == []


def test_not_worse_needs_examples_even_without_a_difference(gate: Change, tests_of: MakeTests) -> None:
    """52 examples without a discordant pair prove a margin of 5 points, 51 do not."""
    assert check_test_size(gate(**NOT_WORSE), tests_of(52)) == []
    (finding,) = check_test_size(gate(**NOT_WORSE), tests_of(51))
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 51 test examples can't prove exact_match not worse than "
        "the baseline by 0.05 even if both models are correct on the same examples: 52 are "
        "required at 95.0% confidence; add 1 test example, or set decide.criteria.0.margin: 0.06"
    )
    assert check_test_size(gate(**NOT_WORSE | {"margin": 0.06}), tests_of(51)) == []


def test_better_needs_as_many_discordant_pairs_as_the_exact_test(gate: Change, tests_of: MakeTests) -> None:
    """0.5^5 = 0.03 is below 0.05, 0.5^4 is not; five uses require 0.01, so 7 pairs."""
    (finding,) = check_test_size(gate(**BETTER), tests_of(4))
    assert finding.message == (
        "4 test examples can't prove exact_match better than the baseline even if the candidate "
        "is correct and the baseline wrong on each of them: 5 are required at 95.0% confidence"
    )
    assert finding.remedy == "add 1 test example"
    assert codes(check_test_size(gate(**BETTER), tests_of(5))) == ["test-set-tiny"]
    assert codes(check_test_size(gate(looks=5, **BETTER), tests_of(6))) == ["test-set-too-small"]
    assert codes(check_test_size(gate(looks=5, **BETTER), tests_of(7))) == ["test-set-tiny"]


def test_a_bootstrap_needs_twenty_examples(gate: Change, tests_of: MakeTests) -> None:
    """With fewer examples the gate gives no interval."""
    assert check_test_size(gate(**MACRO_F1), tests_of(20)) == []
    (finding,) = check_test_size(gate(**MACRO_F1), tests_of(19))
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 19 test examples can't prove exceptions.macro_f1 at "
        "least 0.5 whatever the answers are: a bootstrap: 20 are required at 95.0% confidence; "
        "add 1 test example"
    )


def test_a_tiny_group_is_a_warning(gate: Change, tests_of: MakeTests) -> None:
    """The gate can be passed, but a single answer would change the result."""
    easy = gate(**AT_LEAST | {"threshold": 0.5, "group": "namer"})
    assert check_test_size(easy, tests_of(20)) == []
    (finding,) = check_test_size(easy, tests_of(19))
    assert finding_text(finding, "test-set-tiny") == (
        "params.yaml: decide.criteria.0: 19 test examples of 'namer': one answer moves the score by 5.3%; "
        "add 1 test example of 'namer'"
    )


def test_latency_needs_enough_different_prompts(gate: Change, tests_of: MakeTests) -> None:
    """The latency measurement uses the available prompts without a warning of its own."""
    fast = {"rule": "latency_at_most", "seconds": 1.0, "improvement": None}
    assert check_test_size(gate(prompts=30, **fast), tests_of(30)) == []
    (finding,) = check_test_size(gate(prompts=31, **fast), tests_of(30))
    assert str(finding) == (
        "params.yaml: evaluate.latency.prompts: 31 prompts are to be timed, but the test split "
        "has 30; set evaluate.latency.prompts: 30"
    )
    (finding,) = check_test_size(gate(**fast), tests_of(12))
    assert finding.remedy == "add 8 test examples"
    assert check_test_size(gate(prompts=31, **AT_LEAST | {"threshold": 0.5}), tests_of(30)) == []


@pytest.mark.parametrize("criterion", [AT_LEAST, NOT_WORSE, BETTER, MACRO_F1])
def test_the_point_policy_needs_no_sample_size(gate: Change, tests_of: MakeTests, criterion: dict[str, Any]) -> None:
    """The policy `point` compares estimates of any number of examples."""
    assert check_test_size(gate("point", **criterion), tests_of(1)) == []
    assert codes(check_test_size(gate(**criterion), tests_of(1))) == ["test-set-too-small"]


def test_more_test_set_uses_need_more_examples(gate: Change, tests_of: MakeTests) -> None:
    """Five uses share the 5%: each has 99% confidence, for which 149 examples are too few (228 are needed)."""
    assert check_test_size(gate(looks=5, **AT_LEAST), tests_of(228)) == []
    assert (
        "228 are required at 99.0% confidence" in check_test_size(gate(looks=5, **AT_LEAST), tests_of(227))[0].message
    )


def test_a_group_without_examples_is_an_error(gate: Change, tests_of: MakeTests) -> None:
    """A mistyped agent is never measured, so no policy could reach deploy."""
    for policy in ("interval", "point"):
        (finding,) = check_test_size(gate(policy, **MACRO_F1 | {"group": "nmaer"}), tests_of(30))
        text = "group 'nmaer' has no examples in the test split; use one of all, namer, rows"
        assert finding_text(finding, "group-unknown") == f"params.yaml: decide.criteria.0.group: {text}"
