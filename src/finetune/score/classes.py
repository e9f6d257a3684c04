"""The classes that a classification scorer knows, and the class that an answer names.

classes ("KeyError", "ValueError")   answer " ValueError\\n" -> "ValueError"   answer "a ValueError" -> None
"""

from collections.abc import Mapping, Sequence

from finetune.config.scorers import Classification
from finetune.errors import ConfigError
from finetune.records.examples import Example

MOST_CLASSES = 1_000  # likelihood asks for each of them; and what has more is no classification


def classes_of(
    asked: Classification, examples: Sequence[Example], labels: Mapping[str, Sequence[str]], place: str
) -> list[str]:
    """The scorer's classes, sorted; ConfigError, at the key `place`, where they can't be those of the references.

    Without `labels` of its own: those of its agents (by agent, as prepare counted them) and of the test examples.
    """
    references = {example.completion.strip() for example in examples}
    if asked.labels is not None:
        classes = {label.strip() for label in asked.labels}
        if missing := sorted(references - classes):
            raise ConfigError(
                f"{place}.labels",
                f"lacks {missing[0]!r:.80}, which is the reference of a test example ({len(missing)} such)",
                "add it, or name in `of` the agents that the labels are of",
            )
    else:
        agents = {example.agent for example in examples}
        classes = references.union(*({label.strip() for label in labels.get(agent, ())} for agent in agents))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ConfigError(
            place,
            f"has {len(classes):,} classes, where 2 to {MOST_CLASSES:,} are a classification",
            "name the labels, or in `of` the agents that classify",
        )
    return sorted(classes)


def class_in(answer: str, classes: Sequence[str] | frozenset[str]) -> str | None:
    """The class that the answer is, white space at the ends apart; None where it is none of them."""
    text = answer.strip()
    return text if text in classes else None
