"""Scorers of any kind, built from sections like those of params.yaml."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from finetune.config.scorers import AnyScorer
from finetune.records.examples import Answer, Example
from finetune.score.scorers import build_scorers
from finetune.score.scoring import Scorers

ROOT = Path(__file__).parents[2]
MakeExample = Callable[..., Example]
KINDS: dict[str, dict[str, Any]] = {
    "exact_match": {},
    "normalized_match": {"ignore": ["case", "punctuation", "articles", "accents"]},
    "contains": {"ignore_case": True},
    "regular_expression": {"pattern": r"(?i)answer:?\s*(\S+)|(a|a)*(b+)+$"},
    "numeric": {"absolute_tolerance": 0.0, "relative_tolerance": 1e-6},
    "json_valid": {"schema_file": "answer.schema.json"},
    "python_parses": {},
    "tool_calls": {},
    "classification": {"by": "generation", "labels": None},
    "bleu": {},
    "chrf": {},
    "rouge_l": {},
    "function": {"function": "scorers.example.share_of_words", "lowest": 0.0, "highest": 1.0},
}


def asked(kind: str, of: list[str] | None = None, **changes: Any) -> Any:
    """Return a scorer's section of params.yaml."""
    section = {"scorer": kind, "of": of, **KINDS.get(kind, {}), **changes}
    return TypeAdapter(AnyScorer).validate_json(json.dumps(section))


def built(examples: list[Example], root: Path = ROOT, **scorers: Any) -> Scorers:
    """Return the scorers under their names, ready for use."""
    return build_scorers(scorers, {}, examples, root)


def answers(*texts: str) -> list[Answer]:
    """Return answers with these texts."""
    return [Answer(text, tokens=1, finished=True) for text in texts]
