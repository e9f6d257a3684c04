"""The figures of a group cover only its members, and are null if unknown."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from finetune.config.scorers import LOSS, Metric
from finetune.evaluate.groups import describe_classes, describe_group, groups_of
from finetune.records.examples import Prediction

Make = Callable[..., Prediction]
METRICS = {"exact_match": Metric("exact_match", "binary", "exact_match"), "loss": LOSS}


def test_groups_are_the_total_agents_and_sources(prediction: Make) -> None:
    """A single source equals the total, so it is not a separate group."""
    one, two = prediction(agent="b"), prediction(agent="a")
    assert list(groups_of([one, two])) == ["all", "a", "b"]
    assert groups_of([one, two])["b"] == [one]
    groups = groups_of([one, replace(two, source="more")])
    assert list(groups) == ["all", "a", "b", "more", "rows"]
    assert groups["rows"] == [one]


def test_a_source_with_an_agents_name_is_not_a_second_group(prediction: Make) -> None:
    """A criterion names a group by one name, which must be unambiguous."""
    made = [prediction(agent="a", source="a"), prediction(agent="b", source="c")]
    assert list(groups_of(made)) == ["all", "a", "b", "c"]


def test_figures_cover_the_members(prediction: Make) -> None:
    """The figures are mean, loss per token, share of the most frequent reference, and number of clusters."""
    made = [
        prediction(True, False, id="1", cluster="x"),
        prediction(False, False, id="2", cluster="x", reference="KeyError", nats=6.0),
    ]
    described = describe_group(made, METRICS)
    assert (described["examples"], described["clusters"], described["majority_share"]) == (2, 1, 0.5)
    assert described["candidate"] == {
        "exact_match": 0.5,
        "loss": pytest.approx(7 / 6),
        "mean_tokens": 3.0,
        "cut_off": 0.0,
        "failed": 0,
    }
    assert described["baseline"]["exact_match"] == 0.0


def test_unknown_figures_are_null(prediction: Make) -> None:
    """Unknown are token counts of recorded answers, a missing loss, and scores for other agents; none is zero."""
    made = prediction(nats=None)
    unknown = replace(made.baseline, tokens=None, finished=None, scores={"exact_match": None})
    described = describe_group([replace(made, baseline=unknown)], METRICS)["baseline"]
    assert described == {"exact_match": None, "loss": None, "mean_tokens": None, "cut_off": None, "failed": 0}
    other = replace(made, candidate=replace(made.candidate, scores={}))
    assert describe_group([other], METRICS)["candidate"]["exact_match"] is None


def test_failed_answers_are_counted_without_a_length(prediction: Make) -> None:
    """A missing answer counts neither as short nor as cut off."""
    made = prediction(id="1")
    failed = replace(made.candidate, text="", tokens=None, finished=None, failed="timeout")
    cut = replace(made.candidate, finished=False)
    described = describe_group([replace(made, candidate=failed), replace(made, candidate=cut)], METRICS)["candidate"]
    assert (described["failed"], described["mean_tokens"], described["cut_off"]) == (1, 3.0, 1.0)


def labelled(made: Prediction, label: str | None) -> Prediction:
    """Return the prediction with this class in the candidate's answer."""
    return replace(made, candidate=replace(made.candidate, labels={"exceptions": label}))


def test_confusion_is_counted_by_reference_and_answer(prediction: Make) -> None:
    """Rows sum to the class's examples; answers outside the classes have their own column."""
    made = [
        labelled(prediction(reference="A", id="1"), "A"),
        labelled(prediction(reference="A", id="2"), "B"),
        labelled(prediction(reference="B", id="3"), None),
        replace(prediction(id="4"), candidate=replace(prediction().candidate, labels={})),  # of another agent
    ]
    described = describe_classes(made, "exceptions")
    assert described["labels"] == ["A", "B", "wrong"]  # the baseline answers "wrong"
    found = described["candidate"]
    assert found["confusion"] == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert found["per_class"]["A"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "examples": 2}
    assert found["per_class"]["B"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 1}
    assert found["per_class"]["wrong"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 0}
    assert described["baseline"]["confusion"] == [[0, 0, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
