"""Pair both sides' scored answers as predictions, and cluster examples that are not independent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.config.evaluate import EvaluateParams
from finetune.records.examples import Example, Prediction, text_key
from finetune.score.scoring import Scored

if TYPE_CHECKING:
    from finetune.evaluate.sides import Sides


def reference_tokens(sides: "Sides", examples: Sequence[Example], params: EvaluateParams) -> list[int]:
    """Count the supervised tokens of each reference, with the candidate's tokenizer if it is available."""
    from finetune.evaluate.local import LocalSide
    from finetune.model.tokens import load_tokenizer, tokenize

    local = next((side for side in (sides.candidate, sides.baseline) if isinstance(side, LocalSide)), None)
    tokenizer = local.tokenizer if local else load_tokenizer(params.model)
    return [tokenize(tokenizer, example.messages, example.tools).supervised for example in examples]


def pair_answers(examples: Sequence[Example], scored: Scored, tokens: Sequence[int]) -> list[Prediction]:
    """Pair both sides' answers to each example."""
    return [
        Prediction(
            id=example.id,
            agent=example.agent,
            source=example.source,
            cluster=cluster,
            prompt=example.prompt[-1].text,
            reference=example.completion,
            reference_tokens=count,
            baseline=baseline,
            candidate=candidate,
        )
        for example, cluster, count, baseline, candidate in zip(
            examples, clusters_of(examples), tokens, scored.baseline, scored.candidate, strict=True
        )
    ]


def clusters_of(examples: Sequence[Example]) -> list[str]:
    """Return the cluster of each example; a shared group (a user, a conversation) or prompt links examples, also
    indirectly.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = [[example.group, text_key(example.prompt).hex()] for example in examples]
    names = {name: at for at, name in enumerate(sorted({name for pair in keys for name in pair if name is not None}))}
    links = [(at, len(examples) + names[name]) for at, pair in enumerate(keys) for name in pair if name is not None]
    rows, columns = zip(*links, strict=True)
    size = len(examples) + len(names)
    _, labels = connected_components(coo_array(([1] * len(links), (rows, columns)), shape=(size, size)), directed=False)
    return [f"{label}" for label in labels[: len(examples)].tolist()]
