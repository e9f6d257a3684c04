"""The verdict over all criteria, its reasons, and the suggestions that go with it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.criteria import Criterion
from finetune.config.decide import DecideConfig
from finetune.decide.advice import suggest, what_would_change
from finetune.decide.criteria import Evidence, judge
from finetune.decide.outcomes import Outcome
from finetune.decide.verdict import Verdict, found_harm, reach_verdict
from finetune.records.examples import Prediction
from finetune.statistics.decision import Gate
from tests.builders.gates import (
    METRICS,
    PEAKS,
    at_least,
    better,
    classes,
    evidence,
    latency,
    memory,
    not_worse,
    pairs,
    timings,
)
from tests.builders.kinds import Change
from tests.builders.whole_reports import run_reports

KINDS = [(True, True), (True, False), (False, True), (False, False)]
FALLING = {"loss": [(step, 5.0 - 0.1 * step) for step in range(1, 41)]}
TIMES = {"mean_seconds": 0.9, "p50_seconds": 0.9, "p95_seconds": 1.0, "mean_first_seconds": None}
TIMES |= {"mean_tokens": 3.0, "tokens_per_second": 3.3}
COST = {"same_length": None, "baseline": None, "candidate": TIMES}
TRAINED = {"validation_loss": 1.0, "last_validation_loss": 1.0, "steps": 100, "kept_step": 50}

Reach = Callable[..., Verdict]


@pytest.fixture(scope="session")
def verdict_of(change: Change) -> Reach:
    """`verdict_of([at_least(0.98)], predictions)`: judge at 95% with one use of the test set."""

    def reached(
        criteria: Sequence[Criterion],
        predictions: Sequence[Prediction],
        *,
        look: int = 1,
        policy: str = "interval",
        latency: Any = (),
        memory: Sequence[int] = PEAKS,
        cost: Any = None,
        curves: Any = FALLING,
        **trained: Any,
    ) -> Verdict:
        gate = Gate(policy, 0.95, seed=1)  # type: ignore[arg-type]
        found = Evidence(predictions, latency, memory, METRICS)
        outcomes = [item for criterion in criteria for item in judge(criterion, found, gate)]
        config = config_with(change, criteria, policy)
        verdict = reach_verdict(config, outcomes, found, gate, look)
        if verdict.name != "iterate":
            return verdict
        reports = run_reports({"train": TRAINED | trained, "cost": {"latency": cost or COST}})
        return replace(verdict, suggestions=suggest(config, outcomes, found, gate, look, reports, curves))

    return reached


def config_with(change: Change, criteria: Sequence[Criterion], policy: str = "interval") -> DecideConfig:
    """Return a gate of these criteria: 95%, one use of the test set."""
    written = [criterion.model_dump(mode="json") for criterion in criteria]
    keys = {"policy": policy, "confidence": 0.95, "looks": 1, "seeds": 1, "license": None, "criteria": written}
    scorers = {
        "exact_match": {"scorer": "exact_match", "of": None},
        "classes": {"scorer": "classification", "of": None, "by": "generation", "labels": None},
        "overlap": {"scorer": "chrf", "of": None},
    }
    return change(**{"decide": keys, "evaluate.scorers": scorers}).decide


def codes_of(verdict: Verdict) -> list[str]:
    """Return the codes of a verdict's suggestions."""
    return [item.code for item in verdict.suggestions]


def test_deploy_needs_every_criterion(verdict_of: Reach) -> None:
    """If all criteria pass, the verdict is deploy without suggestions. One byte of memory too many prevents it."""
    criteria = [at_least(0.5), better(), memory("2 GB")]
    found = verdict_of(criteria, pairs(gained=30))
    assert found == Verdict("deploy", "All 3 criteria pass: deploy this adapter.", (), ())
    found = verdict_of(criteria, pairs(gained=30), memory=(2_000_000_001,) * 3)
    assert found.name == "iterate"
    assert found.reasons == ("fail: peak memory at most 2 GB (largest of 3 fresh processes)",)
    assert found.sentence == "1 of 3 criteria do not pass yet."


@pytest.mark.parametrize(
    ("criterion", "cost"),
    [(memory("2 GB"), {"memory": ()}), (latency(9), {"latency": ()}), (at_least(0.5, group="nobody"), {})],
)
def test_unmeasured_criteria_prevent_deploy(verdict_of: Reach, criterion: Criterion, cost: Any) -> None:
    """Missing evidence counts against the candidate under either policy."""
    for policy in ("interval", "point"):
        found = verdict_of([better(), criterion], pairs(gained=30), policy=policy, **cost)
        assert found.name == "iterate"
        assert found.reasons[0].startswith("unmeasured: ")


def test_31_of_31_is_too_few_for_98_percent(verdict_of: Reach) -> None:
    """The most common false proof: the verdict is iterate, and it names the 149 examples that suffice."""
    found = verdict_of([at_least(0.98)], pairs(gained=31))
    assert found.name == "iterate"
    assert found.reasons == ("inconclusive: exact_match at least 0.98 (31 of 31 correct)",)
    assert found.suggestions[0].code == "more-test-examples"
    assert found.suggestions[0].text == (
        "exact_match at least 0.98: 31 of 31 is too little evidence; at the same rate, 149 test "
        "examples with at most 0 failures would prove it"
    )


def test_the_advised_number_of_examples_suffices(verdict_of: Reach) -> None:
    """With the advised number of examples the criterion passes."""
    criteria = [at_least(0.9)]
    found = verdict_of(criteria, pairs(gained=57, neither=3))
    numbers = re.search(r"at the same rate, (\d+) test examples with at most (\d+) failures", found.suggestions[0].text)
    assert numbers
    needed, failures = int(numbers[1]), int(numbers[2])
    assert failures == round(needed * 3 / 60)
    assert verdict_of(criteria, pairs(gained=needed - failures, neither=failures)).name == "deploy"


def test_more_examples_are_not_advised_below_the_threshold(verdict_of: Reach) -> None:
    """30 of 31 is below 98%: at this rate more examples would prove the failure."""
    assert "more-test-examples" not in codes_of(verdict_of([at_least(0.98)], pairs(gained=30, neither=1)))


def test_harm_leads_to_abort(verdict_of: Reach) -> None:
    """Ten answers lost and none gained give p = 1/1024: more of the same training does not help."""
    found = verdict_of([at_least(0.5)], pairs(both=5, lost=10))
    assert found.name == "abort"
    assert found.sentence == "The candidate is worse than the baseline: do not continue with it."
    assert found.reasons[0] == (
        "worse than the baseline in exact_match: 0 of 15 answered correctly only by the "
        "candidate, 10 only by the baseline (p = 0.00098)"
    )
    assert found.suggestions == ()
    assert verdict_of([at_least(0.5)], pairs(both=5, lost=4)).name != "abort"


def test_a_refuted_target_without_improvement_leads_to_abort(verdict_of: Reach) -> None:
    """A refuted target and no improvement: further iterations are not worthwhile."""
    found = verdict_of([at_least(0.9)], pairs(both=10, neither=30), latency=timings(1.0))
    assert found.name == "abort"
    assert found.sentence == "Neither quality nor cost improved, and targets are out of reach: stop."
    assert found.reasons == ("fail: exact_match at least 0.9 (10 of 40 correct)",)


@pytest.mark.parametrize("way", ["quality", "latency"])
def test_an_improvement_leads_to_iterate(verdict_of: Reach, way: str) -> None:
    """The target is out of reach, but the metric demonstrably improved."""
    predictions = pairs(both=10, gained=5, neither=25) if way == "quality" else pairs(both=10, neither=30)
    seconds = timings(0.6 if way == "latency" else 1.0)
    assert verdict_of([at_least(0.9)], predictions, latency=seconds).name == "iterate"


def test_too_little_evidence_never_leads_to_abort(verdict_of: Reach) -> None:
    """Inconclusive and no improvement: nothing is refuted yet."""
    assert verdict_of([at_least(0.9)], pairs(both=9, neither=1)).name == "iterate"


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ({"kept_step": 100}, "more-epochs"),
        ({"kept_step": 50, "last_validation_loss": 1.03}, "lower-learning-rate"),
        ({"kept_step": 50, "last_validation_loss": 1.01}, None),
    ],
)
def test_the_curve_decides_the_suggestion(verdict_of: Reach, trained: dict[str, Any], expected: str | None) -> None:
    """Cases: the loss still falls at the end, has risen by more than 2%, or neither."""
    found = codes_of(verdict_of([better()], pairs(both=5, gained=2, neither=1), **trained))
    suggested = [code for code in found if code in ("more-epochs", "lower-learning-rate")]
    assert suggested == ([expected] if expected else [])


def test_a_risen_loss_is_reported_with_its_figures(verdict_of: Reach) -> None:
    """The suggestion contains the loss values, so that readers can judge them."""
    found = verdict_of([better()], pairs(gained=2), last_validation_loss=1.25)
    text = "the validation loss rose from 1.000 (step 50) to 1.250: lower the learning rate, or train for fewer epochs"
    assert text in [item.text for item in found.suggestions]


def test_the_group_with_the_highest_failure_rate_needs_data(verdict_of: Reach) -> None:
    """The share decides, not the number: the large group has more failures, the small one a higher failure rate."""
    predictions = pairs(gained=40, neither=10, agent="large") + pairs(gained=2, neither=3, agent="small")
    found = verdict_of([at_least(0.9)], predictions)
    assert found.suggestions[-1].code == "more-data"
    assert found.suggestions[-1].text == "add training examples of small, the group with the most failures"


LONG = {
    "same_length": {"tokens": 40.0, "baseline_seconds": 1.0, "candidate_seconds": 0.4},
    "baseline": None,
    "candidate": TIMES | {"mean_tokens": 90.0},
}


@pytest.mark.parametrize("criterion", [latency(0.5), latency(5.0, 0.4)])
def test_long_and_slow_answers_should_be_shorter(verdict_of: Reach, criterion: Criterion) -> None:
    """Length explains the time; the second part of the criterion is about time too, although it is a share."""
    found = verdict_of([better(), criterion], pairs(gained=30), latency=timings(0.9), cost=LONG)
    assert codes_of(found) == ["shorter-answers"]
    text = "train on shorter answers: its answers have 90 tokens; at 40 tokens, it would take 0.4 s"
    assert found.suggestions[0].text == text


@pytest.mark.parametrize(
    ("criterion", "seconds", "code"),
    [
        (latency(0.5), 0.9, "faster-base"),  # LoRA adds no speed, nor do more data
        (latency(0.5), 0.5, "more-latency-prompts"),  # an interval that includes the limit does not prove slowness
        (memory("0.5 GB"), 0.9, "less-memory"),  # the base decides: the adapter is the smallest part
    ],
)
def test_excess_cost_leads_to_a_suggestion(verdict_of: Reach, criterion: Criterion, seconds: float, code: str) -> None:
    """With short answers, the other suggestions are left out."""
    assert codes_of(verdict_of([better(), criterion], pairs(gained=30), latency=timings(seconds))) == [code]


def test_a_persistently_high_loss_suggests_a_higher_rank(verdict_of: Reach) -> None:
    """If an adapter lowers the training loss by less than a fifth, it has too few weights or the wrong ones."""
    flat = {"loss": [(step, 3.0 - 0.01 * step) for step in range(1, 41)]}
    found = verdict_of([better()], pairs(gained=2), curves=flat)
    assert "higher-rank" in codes_of(found)
    text = "the training loss stayed high (2.975 to 2.615): raise adapter.r, or adapt more modules"
    assert text in [item.text for item in found.suggestions]
    assert "higher-rank" not in codes_of(verdict_of([better()], pairs(gained=2)))


def test_the_examples_needed_for_a_margin_are_advised(verdict_of: Reach) -> None:
    """At the same rates, the advised number of examples suffices."""
    criteria = [not_worse(0.05)]
    found = verdict_of(criteria, pairs(both=38, gained=1, lost=1))
    assert codes_of(found)[0] == "more-test-examples"
    numbers = re.search(
        r"40 test examples are too few; at the same rate, (\d+) would prove it", found.suggestions[0].text
    )
    assert numbers
    needed = int(numbers[1])
    moved = round(needed / 40)
    assert verdict_of(criteria, pairs(both=needed - 2 * moved, gained=moved, lost=moved)).name == "deploy"


@pytest.mark.parametrize("criterion", [better(), better("classes.macro_f1"), at_least(0.75, "classes.macro_f1")])
def test_other_criteria_estimate_the_number_of_examples(verdict_of: Reach, criterion: Criterion) -> None:
    """The number scales with the square of the precision and is called approximate; four times as many suffice."""
    few = classes(40, 8, 10)
    found = verdict_of([criterion], few)
    assert found.name == "iterate"
    (text,) = [item.text for item in found.suggestions if item.code == "more-test-examples"]
    numbers = re.search(r": 40 test examples are inconclusive; at the same rate, about ([\d,]+) would prove it", text)
    assert numbers
    needed = int(numbers[1].replace(",", ""))
    assert 40 < needed < 100_000
    names = ((item, f"{item.id}-{at}") for at in range(needed // 10) for item in few)
    many = [replace(item, id=name, cluster=name) for item, name in names]
    assert verdict_of([criterion], many[: 4 * needed]).name == "deploy"


def test_unmeasured_criteria_are_suggested_for_measurement(verdict_of: Reach) -> None:
    """The suggestion contains the reason, which names the missing measurement."""
    found = verdict_of([better(), memory("2 GB")], pairs(gained=30), memory=())
    text = "peak memory at most 2 GB: 0 peaks, the smallest 0; at least three peaks above zero are required"
    assert [item.text for item in found.suggestions] == [text]


@pytest.mark.parametrize(
    ("predictions", "text"),
    [
        (pairs(gained=160), "passes with 160 correct of 160; 160 are required, and 0 fewer would still pass"),
        (pairs(gained=240), "passes with 240 correct of 240; 239 are required, and 1 fewer would still pass"),
        (pairs(gained=31), "even 31 correct of 31 would not prove it"),
        (pairs(gained=230, neither=10), "230 of 240 are correct; 239 are required"),
    ],
)
def test_the_distance_to_another_verdict_is_given_in_answers(
    change: Change, predictions: list[Prediction], text: str
) -> None:
    """The distance to a threshold is given as a number of answers."""
    config = config_with(change, [at_least(0.98)])
    gate = Gate("interval", 0.95, 1)
    outcomes = judge(config.criteria[0], evidence(predictions), gate)
    found = what_would_change(config, outcomes, evidence(predictions), gate)
    assert found[0] == f"exact_match at least 0.98: {text}"


def test_harm_in_one_group_is_detected_at_a_shared_level(verdict_of: Reach) -> None:
    """A gate that names an agent tests it too: five lost answers are p = 0.03, too little for one of two tests."""
    many = pairs(gained=30) + pairs(both=5, lost=9, agent="small")
    found = verdict_of([better(), better(group="small")], many)
    assert found.name == "abort"
    assert found.reasons[0].startswith(
        "worse than the baseline in exact_match of small: 0 of 14 answered correctly only by"
    )
    few = pairs(gained=30) + pairs(both=5, lost=5, agent="small")
    assert verdict_of([better(), better(group="small")], few).name == "iterate"
    assert verdict_of([better(group="small")], few).name == "abort"


def test_no_deploy_beyond_the_declared_test_set_uses(verdict_of: Reach) -> None:
    """The error probability of this test set is used up, whatever the criteria say; first advice: a fresh set."""
    criteria = [at_least(0.5), better(), memory("2 GB")]
    assert verdict_of(criteria, pairs(gained=30), look=1).name == "deploy"
    found = verdict_of(criteria, pairs(gained=30), look=2)
    assert found.name == "iterate"
    assert found.reasons == ("look 2 at this test set, but 1 were declared: a fresh test set is required",)
    assert codes_of(found)[0] == "fresh-test-set"


def test_used_up_test_set_uses_do_not_count_as_a_criterion(verdict_of: Reach) -> None:
    """All three criteria pass; the text must not claim that one of them fails."""
    found = verdict_of([at_least(0.5), better(), memory("2 GB")], pairs(gained=30), look=2)
    assert "1 of 3 criteria" not in found.sentence
    found = verdict_of([better()], pairs(gained=2), look=2)
    assert "2 of 1 criteria" not in found.sentence


def test_the_point_policy_is_in_the_verdicts_name(verdict_of: Reach) -> None:
    """The best verdict under `point` carries the policy in its name, even if intervals would have passed."""
    found = verdict_of([at_least(0.5), better()], pairs(gained=30), policy="point")
    assert found.name == "deploy-unproven"
    assert found.sentence == "Every estimate meets its target, but none is proven."


@given(
    found=st.lists(
        st.tuples(st.sampled_from(["pass", "fail", "inconclusive", "unmeasured"]), st.sampled_from(["", "s", "bytes"])),
        min_size=1,
        max_size=5,
    ),
    kinds=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8),
    look=st.integers(1, 3),
    policy=st.sampled_from(["interval", "point"]),
)
def test_deploy_requires_all_criteria_on_intervals(
    change: Change, found: list[tuple[Any, str]], kinds: list[tuple[bool, bool]], look: int, policy: Any
) -> None:
    """Deploy if and only if every criterion passes within the declared uses, on intervals; else the reason is given."""
    made = enumerate(found)
    outcomes = [
        Outcome(f"c{at}", "at_least", "quality", kind, 0, 0, 0, 0, unit, "", "why") for at, (kind, unit) in made
    ]
    predictions = [pairs(*(int(kind == other) for other in KINDS), agent=f"{at}")[0] for at, kind in enumerate(kinds)]
    config = config_with(change, [better()], policy)
    verdict = reach_verdict(config, outcomes, evidence(predictions), Gate(policy, 0.95, 1), look)
    harmed = found_harm(config, evidence(predictions), Gate(policy, 0.95, 1)) is not None
    proven = all(kind == "pass" for kind, _ in found) and look <= config.looks and not harmed
    assert (verdict.name == "abort") or not harmed
    assert (verdict.name == "deploy") == (proven and policy == "interval")
    assert (verdict.name == "deploy-unproven") == (proven and policy == "point")
    assert bool(verdict.reasons) != proven
    for at, (kind, _) in enumerate(found):
        assert (f"{kind}: c{at} (why)" in verdict.reasons) == (kind != "pass")
