"""The score of one answer, and the metrics of a group of answers.

An answer is right when it is the reference up to white space at its ends:

    reference "ValueError"   answer " ValueError\\n" -> 1   answer "ValueError." -> 0
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from finetune.config_types import ALL
from finetune.metrics import macro_f1, majority_share
from finetune.records import Answer, Prediction


def exact_match(answer: str, reference: str) -> bool:
    """Whether answer and reference are the same text, white space at the ends apart."""
    return answer.strip() == reference.strip()


def groups_of(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """All predictions, and those of each agent."""
    agents = sorted({prediction.agent for prediction in predictions})
    return {ALL: list(predictions)} | {
        agent: [prediction for prediction in predictions if prediction.agent == agent] for agent in agents
    }


def describe_group(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Examples, the most frequent answer's share, and the metrics of base and candidate."""
    return {
        "examples": len(predictions),
        "majority_share": majority_share([prediction.reference for prediction in predictions]),
        "baseline": describe_side(predictions, lambda prediction: prediction.baseline),
        "candidate": describe_side(predictions, lambda prediction: prediction.candidate),
    }


def describe_side(predictions: Sequence[Prediction], side: Callable[[Prediction], Answer]) -> dict[str, float]:
    """One model's metrics: exact match, macro-F1, loss and perplexity a token of the reference, length, cut-offs."""
    answers = [side(prediction) for prediction in predictions]
    loss = sum(answer.reference_nats for answer in answers) / sum(item.reference_tokens for item in predictions)
    return {
        "exact_match": sum(answer.exact_match for answer in answers) / len(answers),
        "macro_f1": macro_f1(
            [item.reference.strip() for item in predictions], [answer.text.strip() for answer in answers]
        ),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),  # beyond that a float is infinite, which is no JSON
        "mean_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "cut_off": sum(not answer.finished for answer in answers) / len(answers),
    }
