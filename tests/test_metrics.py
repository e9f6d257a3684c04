"""Metrics against scikit-learn, which is slow and right."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from finetune.metrics import macro_f1, majority_share, weighted_macro_f1

REFERENCES = st.sampled_from(["KeyError", "TypeError", "ValueError", "é", ""])
ANSWERS = REFERENCES | st.sampled_from(["no such class", "valueerror"])


def expected(references: list[str], answers: list[str], weights: list[float]) -> float:
    """scikit-learn's figure over the classes whose references have any weight."""
    left = sorted({name for name, weight in zip(references, weights, strict=True) if weight})
    return float(f1_score(references, answers, labels=left, average="macro", sample_weight=weights, zero_division=0))


@given(st.lists(st.tuples(REFERENCES, ANSWERS), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    """An answer outside the classes is an error of the class that was due, and no class of its own."""
    references, answers = map(list, zip(*pairs, strict=True))
    assert macro_f1(references, answers) == pytest.approx(expected(references, answers, [1.0] * len(pairs)))


@given(st.lists(st.tuples(REFERENCES, ANSWERS, st.integers(0, 4)), min_size=1, max_size=40))
def test_whole_weights_are_repetitions(rows: list[tuple[str, str, int]]) -> None:
    """A bootstrap draws each example so many times, often never; a class that is not drawn at all is left out."""
    assume(any(weight for *_, weight in rows))
    references, answers, weights = (list(column) for column in zip(*rows, strict=True))
    found = weighted_macro_f1(references, answers)(np.array(weights, dtype=np.float64))
    assert found == pytest.approx(expected(references, answers, weights))
    drawn = [(reference, answer) for reference, answer, weight in rows for _ in range(weight)]
    assert found == pytest.approx(macro_f1([row[0] for row in drawn], [row[1] for row in drawn]))


@given(st.lists(st.tuples(REFERENCES, ANSWERS, st.floats(0.01, 10)), min_size=1, max_size=40))
def test_other_weights_are_scikit_learns(rows: list[tuple[str, str, float]]) -> None:
    """Nothing in the formula asks for whole numbers."""
    references, answers, weights = (list(column) for column in zip(*rows, strict=True))
    found = weighted_macro_f1(references, answers)(np.array(weights))
    assert found == pytest.approx(expected(references, answers, weights))


def test_macro_f1_by_hand() -> None:
    """A: precision 1, recall 1/2, F1 2/3. B: precision 2/3, recall 1, F1 4/5. C is never answered: 0."""
    assert macro_f1(["A", "A", "B", "B", "C"], ["A", "B", "B", "B", "?"]) == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


def test_always_the_most_frequent_answer_has_a_low_macro_f1() -> None:
    """Why macro-F1 is offered: 90% right by one word for everything, and still 0.47."""
    references = ["A"] * 9 + ["B"]
    assert majority_share(references) == 0.9
    assert macro_f1(references, ["A"] * 10) == pytest.approx(0.4737, abs=5e-5)


def test_the_answers_of_a_vanished_class_still_cost() -> None:
    """B is not drawn, so it is not averaged; but an A that was answered with B is an A that was missed."""
    value = weighted_macro_f1(["A", "A", "B"], ["A", "B", "B"])
    assert value(np.array([1.0, 1.0, 0.0])) == pytest.approx(2 / 3)
