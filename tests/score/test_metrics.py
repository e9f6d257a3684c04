"""Metrics compared with scikit-learn and sacrebleu."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sklearn.metrics import f1_score

from finetune.config.scorers import LOSS, PERPLEXITY, Metric
from finetune.records.examples import Prediction
from finetune.score.metrics import UnmeasuredError, counted, f1_of_weights, majority_share, statistic_of, value_of

Make = Callable[..., Prediction]
REFERENCES = st.sampled_from(["KeyError", "TypeError", "ValueError", "é", ""])
ANSWERS = REFERENCES | st.none()
WEIGHTED = pytest.mark.parametrize("average", ["macro", "weighted"])
Average = Literal["macro", "weighted"]
EXACT = Metric("exact_match", "binary", "exact_match")
F1 = Metric("exceptions.macro_f1", "macro_f1", "exceptions.accuracy")
MEAN_BLEU = Metric("bleu", "bleu", "bleu")


def expected(references: list[str], answers: list[str | None], weights: list[float], average: Average) -> float:
    """Return scikit-learn's figure over the classes whose references have any weight."""
    left = sorted({name for name, weight in zip(references, weights, strict=True) if weight})
    named = ["(none)" if answer is None else answer for answer in answers]
    return float(f1_score(references, named, labels=left, average=average, sample_weight=weights, zero_division=0))


def f1(references: list[str], answers: list[str | None], average: Average = "macro") -> float:
    """Return the metric with each example counted once."""
    return f1_of_weights(references, answers, weighted=average == "weighted")(np.ones(len(references)))


@WEIGHTED
@given(st.lists(st.tuples(REFERENCES, ANSWERS), min_size=1, max_size=40))
def test_f1_equals_scikit_learns(average: Average, pairs: list[tuple[str, str | None]]) -> None:
    """An answer outside the classes is an error of the expected class, and not a separate class."""
    references, answers = map(list, zip(*pairs, strict=True))
    assert f1(references, answers, average) == pytest.approx(expected(references, answers, [1.0] * len(pairs), average))


@WEIGHTED
@given(st.lists(st.tuples(REFERENCES, ANSWERS, st.integers(0, 4)), min_size=1, max_size=40))
def test_integer_weights_are_repetitions(average: Average, rows: list[tuple[str, str | None, int]]) -> None:
    """A bootstrap draws each example a number of times, often zero; a class that is not drawn is left out."""
    assume(any(weight for *_, weight in rows))
    references, answers, weights = (list(column) for column in zip(*rows, strict=True))
    value = f1_of_weights(references, answers, weighted=average == "weighted")
    found = value(np.array(weights, dtype=np.float64))
    assert found == pytest.approx(expected(references, answers, weights, average))
    drawn = [(reference, answer) for reference, answer, weight in rows for _ in range(weight)]
    assert found == pytest.approx(f1([row[0] for row in drawn], [row[1] for row in drawn], average))


@WEIGHTED
@given(st.lists(st.tuples(REFERENCES, ANSWERS, st.floats(0.01, 10)), min_size=1, max_size=40))
def test_other_weights_agree_with_scikit_learn(average: Average, rows: list[tuple[str, str | None, float]]) -> None:
    """The formula does not require integers."""
    references, answers, weights = (list(column) for column in zip(*rows, strict=True))
    found = f1_of_weights(references, answers, weighted=average == "weighted")(np.array(weights))
    assert found == pytest.approx(expected(references, answers, weights, average))


def test_macro_f1_equals_the_value_by_hand() -> None:
    """A: precision 1, recall 1/2, F1 2/3. B: precision 2/3, recall 1, F1 4/5. C is never answered: 0."""
    assert f1(["A", "A", "B", "B", "C"], ["A", "B", "B", "B", None]) == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


def test_weighted_f1_equals_the_value_by_hand() -> None:
    """The same classes are weighted by their number of examples: 2, 2 and 1 of 5."""
    found = f1(["A", "A", "B", "B", "C"], ["A", "B", "B", "B", None], "weighted")
    assert found == pytest.approx((2 * 2 / 3 + 2 * 4 / 5 + 0) / 5)


def test_a_constant_answer_has_a_low_macro_f1() -> None:
    """Macro-F1 is useful: a constant answer that is right in 90% only reaches 0.47."""
    references = ["A"] * 9 + ["B"]
    assert majority_share(references) == 0.9
    assert f1(references, ["A"] * 10) == pytest.approx(0.4737, abs=5e-5)


def test_answers_of_an_undrawn_class_count_as_errors() -> None:
    """B is not drawn and not averaged; but an A answered with B still counts as missed."""
    value = f1_of_weights(["A", "A", "B"], ["A", "B", "B"], weighted=False)
    assert value(np.array([1.0, 1.0, 0.0])) == pytest.approx(2 / 3)


def test_f1_of_predictions_uses_their_labels(prediction: Make) -> None:
    """The class that the scorer found counts, not the answer's text."""
    one, two = prediction(True, reference="A"), prediction(True, reference="B")
    two = replace(two, candidate=replace(two.candidate, text="B", labels={"exceptions": None}))
    assert value_of(F1, [one, two], "candidate") == pytest.approx(0.5)


WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", ".", "Katze"]), max_size=8).map(" ".join)


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12), data=st.data())
def test_bleu_equals_sacrebleus_corpus_bleu(pairs: list[tuple[str, str]], data: Any, prediction: Make) -> None:
    """With equal weights it is the corpus BLEU, not a mean over sentences; with counts, that of the repeated set."""
    made = [scored_by_bleu(prediction(answer, reference=reference)) for answer, reference in pairs]
    found = statistic_of(MEAN_BLEU, made, "candidate")
    answers, references = map(list, zip(*pairs, strict=True))
    assert found(np.ones(len(pairs))) == pytest.approx(corpus_bleu(answers, references))
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)))
    assume(any(weights))
    repeated = [pair for pair, weight in zip(pairs, weights, strict=True) for _ in range(weight)]
    answers, references = map(list, zip(*repeated, strict=True))
    assert found(np.array(weights, dtype=np.float64)) == pytest.approx(corpus_bleu(answers, references))


def scored_by_bleu(made: Prediction) -> Prediction:
    """Return the prediction with a sentence's score, which the metric does not use."""
    sides = {side: replace(getattr(made, side), scores={"bleu": 0.5}) for side in ("baseline", "candidate")}
    return replace(made, **sides)


def corpus_bleu(answers: list[str], references: list[str]) -> float:
    """Return sacrebleu's own figure."""
    return float(BLEU().corpus_score(answers, [references]).score) / 100


def test_loss_is_averaged_over_tokens(prediction: Make) -> None:
    """Longer references have more weight than short ones; perplexity is the exponential, and always finite."""
    made = [prediction(nats=6.0), replace(prediction(nats=2.0), reference_tokens=1)]
    assert value_of(LOSS, made, "candidate") == pytest.approx(8 / 4)
    assert value_of(PERPLEXITY, made, "candidate") == pytest.approx(math.exp(2))
    assert math.isfinite(value_of(PERPLEXITY, [prediction(nats=1e9)], "candidate"))
    assert statistic_of(LOSS, made, "candidate")(np.array([2.0, 0.0])) == pytest.approx(2.0)


def test_a_side_without_likelihoods_has_no_loss(prediction: Make) -> None:
    """A server does not return likelihoods."""
    with pytest.raises(UnmeasuredError, match="the baseline has no likelihoods of the references"):
        value_of(LOSS, [prediction(nats=None)], "baseline")


def test_a_missing_score_leaves_the_metric_unmeasured(prediction: Make) -> None:
    """A mean over the scored examples would be one of another set."""
    made = prediction(id="seven")
    failed = replace(made.baseline, scores={"exact_match": None}, failed="the server answered 500")
    with pytest.raises(UnmeasuredError, match=r"exact_match has no score .* baseline's answer to seven \(the server"):
        value_of(EXACT, [prediction(), replace(made, baseline=failed)], "baseline")


def test_only_examples_of_the_scorer_are_counted(prediction: Make) -> None:
    """Examples of agents that a scorer does not cover have no score, and do not affect its metric."""
    other = prediction(False, agent="other", source="else")
    other = replace(other, candidate=replace(other.candidate, scores={}))
    made = [prediction(True), other]
    assert counted(EXACT, made, "all") == made[:1]
    assert counted(LOSS, made, "all") == made
    assert counted(LOSS, made, "other") == counted(LOSS, made, "else") == made[1:]
    assert value_of(EXACT, counted(EXACT, made, "all"), "candidate") == 1.0
