"""Criteria of mean scores and of set-level figures, and clustered examples."""

from collections.abc import Sequence
from typing import Any

import pytest

from finetune.config.criteria import Criterion
from finetune.records.examples import Prediction
from finetune.statistics.decision import Gate, Status
from finetune.statistics.proportions import clopper_pearson
from tests.builders.gates import (
    GATE,
    POINT,
    at_least,
    at_most,
    better,
    classes,
    not_worse,
    outcome,
    pairs,
    predicted,
    status,
)

# ---- Metrics that are means, and set-level figures


def scored(values: Sequence[tuple[float, float]], **fields: Any) -> list[Prediction]:
    """Return examples whose overlap scores, candidate's and baseline's, are the given ones."""
    return [
        predicted("a", "b", id=f"{at}", of_candidate={"overlap": mine}, of_baseline={"overlap": theirs}, **fields)
        for at, (mine, theirs) in enumerate(values)
    ]


SPREAD = [(0.6 + 0.01 * (at % 21), 0.5 + 0.01 * (at % 13)) for at in range(60)]  # means 0.70 and 0.56


@pytest.mark.parametrize(("threshold", "expected"), [(0.65, "pass"), (0.70, "inconclusive"), (0.75, "fail")])
def test_a_mean_score_is_judged_on_its_interval(threshold: float, expected: Status) -> None:
    """The interval of a mean is about 0.70 ± 0.013."""
    assert status(at_least(threshold, "overlap"), scored(SPREAD)) == expected


def test_a_mean_score_is_paired_with_the_baseline() -> None:
    """Scores are paired by example; a tie is not better, and a loss smaller than the margin is not worse."""
    worse = [(theirs, mine) for mine, theirs in SPREAD]
    assert status(better("overlap"), scored(SPREAD)) == "pass"
    assert status(better("overlap"), scored(worse)) == "fail"
    assert status(better("overlap"), scored([(0.5, 0.5)] * 60)) == "inconclusive"
    assert status(not_worse(0.3, "overlap"), scored(worse)) == "pass"
    assert status(not_worse(0.05, "overlap"), scored(worse)) == "fail"
    assert "paired permutation p = " in outcome(better("overlap"), scored(SPREAD)).reason


def by_loss(candidate: float, baseline: float) -> list[Prediction]:
    """Return forty examples with about this loss of the references, in nats for 3 tokens."""
    nats = [({"nats": candidate + 0.05 * (at % 5)}, {"nats": baseline + 0.05 * (at % 7)}) for at in range(40)]
    return [
        predicted("a", "a", id=f"{at}", of_candidate=mine, of_baseline=theirs) for at, (mine, theirs) in enumerate(nats)
    ]


def test_less_loss_is_better() -> None:
    """Each metric has its direction: 0.7 nats per token is better than 1.05."""
    assert status(at_most(0.8), by_loss(2.0, 3.0)) == "pass"
    assert status(at_most(0.6), by_loss(2.0, 3.0)) == "fail"
    assert status(at_most(2.3, "perplexity"), by_loss(2.0, 3.0)) == "pass"
    assert status(better("loss"), by_loss(2.0, 3.0)) == "pass"
    assert status(better("loss"), by_loss(3.0, 2.0)) == "fail"
    assert status(not_worse(0.5, "loss"), by_loss(3.0, 2.0)) == "pass"
    assert outcome(at_most(0.8), by_loss(2.0, 3.0)).higher_is_better is False
    assert outcome(better("loss"), by_loss(2.0, 3.0)).estimate == pytest.approx(0.35, abs=0.02)  # a gain


def test_a_metric_missing_on_one_side_is_unmeasured() -> None:
    """Recorded runs and servers give no likelihoods: their loss is unknown and never passes."""
    predictions = by_loss(2.0, 3.0)
    predictions[7] = predicted("a", "a", id="7", of_baseline={"nats": None})
    assert status(at_most(0.9), predictions) == "pass"
    found = outcome(better("loss"), predictions)
    why = "the baseline has no likelihoods of the references"
    assert (found.status, found.reason) == ("unmeasured", why)


@pytest.mark.parametrize("metric", ["exact_match", "overlap"])
@pytest.mark.parametrize("gate", [GATE, POINT])
def test_a_missing_score_is_never_a_pass(metric: str, gate: Gate) -> None:
    """One answer without a score leaves the criterion unmeasured: the mean of the rest would be another metric."""
    predictions = pairs(gained=200)
    predictions[3].candidate.scores[metric] = None
    for criterion in (at_least(0.5, metric), better(metric), not_worse(0.1, metric)):
        found = outcome(criterion, predictions, gate)
        assert found.status == "unmeasured"
        assert found.reason == f"{metric} has no score for the candidate's answer to namer-3"


def test_a_metric_is_judged_on_scored_examples() -> None:
    """Agents that a scorer does not cover do not count; a group of only these is unmeasured."""
    predictions = pairs(gained=149) + pairs(neither=31, agent="prose")
    for item in predictions[149:]:
        del item.candidate.scores["exact_match"]
    assert status(at_least(0.98), predictions) == "pass"
    found = outcome(at_least(0.98, group="prose"), predictions)
    assert (found.status, found.reason) == ("unmeasured", "exact_match has no scores for test examples of prose")


# ---- Clusters


def in_clusters(predictions: list[Prediction], size: int) -> list[Prediction]:
    """Return the same examples in clusters of this size."""
    return [
        Prediction(**{name: getattr(item, name) for name in item.__slots__} | {"cluster": f"c{at // size}"})
        for at, item in enumerate(predictions)
    ]


def test_repeated_prompts_add_no_evidence() -> None:
    """149 right answers prove 98%; the same number from 30 conversations of five does not."""
    assert status(at_least(0.98), pairs(gained=149)) == "pass"
    found = outcome(at_least(0.98), in_clusters(pairs(gained=149), 5))
    assert found.status == "inconclusive"
    assert found.reason == "149 of 149 correct in 30 clusters"
    assert found.lower is not None and found.lower < clopper_pearson(149, 149, 0.95, "lower").lower


@pytest.mark.parametrize("criterion", [better(), better("overlap"), not_worse(0.05), not_worse(0.05, "overlap")])
def test_a_clustered_comparison_needs_enough_clusters(criterion: Criterion) -> None:
    """Six gained answers give p = 0.016; six from one conversation count as one."""
    alone = pairs(both=120, gained=6)
    assert status(criterion, alone) == "pass"
    together = [*in_clusters(alone[:120], 60), *in_clusters(alone[120:], 6)]
    assert status(criterion, together) == "inconclusive"


def test_a_set_level_figure_resamples_clusters() -> None:
    """The interval of F1 is wider if answers come from conversations."""
    predictions = classes(60, 12, 30)
    single = outcome(at_least(0.6, "classes.macro_f1"), predictions)
    grouped = outcome(at_least(0.6, "classes.macro_f1"), in_clusters(sorted(predictions, key=right_first), 2))
    assert single.lower is not None and grouped.lower is not None
    assert grouped.lower < single.lower
    assert outcome(at_least(0.6, "classes.macro_f1"), in_clusters(predictions, 6)).status == "inconclusive"


def right_first(item: Prediction) -> float:
    """Sort right answers before wrong ones, so that clusters of neighbours are alike."""
    return -(item.candidate.scores["exact_match"] or 0)
