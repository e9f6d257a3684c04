"""Choose the test examples that the report shows, and present both sides' answers beside the reference.

Nobody reads a page of ten thousand examples, so a subset is chosen by a rule that the page states.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from finetune.config.scorers import Metric
from finetune.decide.report.formatting import figure, name, shortened
from finetune.records.examples import Answer, Prediction

SHOWN = 200
LONGEST = 20
PROMPT_LETTERS, ANSWER_LETTERS, GIST_LETTERS = 1500, 800, 90
KINDS = {
    "failed": "Failed",
    "regression": "Regressions",
    "both-wrong": "Both wrong",
    "cut": "Cut off",
    "fix": "Fixes",
    "longest": "Longest",
    "both-right": "Both right",
    "unscored": "Not scored",
}
# The maximum of each kind, in this order; remaining space is filled with more examples in the same order.
QUOTAS = {"failed": 20, "regression": 60, "both-wrong": 50, "cut": 15, "fix": 35, "longest": 10, "both-right": 10}
RULE = (
    "failed answers, regressions (the baseline correct or better, the candidate not), both wrong, cut off, fixes, the "
    "longest and both right; a limited number of each, alternating between agents, starting with the "
    "references that the candidate found "
    "least likely first"
)


@dataclass(frozen=True)
class Row:
    """One example for display: its kind, and the tags to filter it by."""

    prediction: Prediction
    kind: str
    tags: frozenset[str]
    surprise: float  # nats per token of the reference, under the candidate


def tag_predictions(predictions: Sequence[Prediction], metrics: Mapping[str, Metric]) -> list[Row]:
    """Classify every prediction by which side was right, according to the first scorer that scored it."""
    scored = {metric.scored_as: (metric.lowest, metric.highest) for metric in metrics.values() if metric.scored_as}

    def rank(item: Prediction) -> tuple[int, str]:
        return -(len(item.candidate.text) if item.candidate.tokens is None else item.candidate.tokens), item.id

    longest = {item.id for item in sorted(predictions, key=rank)[:LONGEST]}
    return [_tag(item, scored, item.id in longest) for item in predictions]


def _tag(item: Prediction, scored: Mapping[str, tuple[float, float]], is_long: bool) -> Row:
    kind = kind_of(item, scored)
    extra = {
        "failed": item.candidate.failed is not None or item.baseline.failed is not None,
        "cut": item.candidate.finished is False,
        "longest": is_long,
    }
    nats = item.candidate.reference_nll
    surprise = nats / max(item.reference_tokens, 1) if nats is not None else 0.0
    return Row(item, kind, frozenset([kind, *(tag for tag, holds in extra.items() if holds)]), surprise)


def kind_of(item: Prediction, scored: Mapping[str, tuple[float, float]]) -> str:
    """Return regression, fix, both-wrong, both-right or unscored; a missing score counts as the lowest one."""
    key = next((key for key in scored if key in item.candidate.scores or key in item.baseline.scores), None)
    if key is None:
        return "unscored"
    lowest, highest = scored[key]
    sides = item.baseline, item.candidate
    old, new = (lowest if (score := side.scores.get(key)) is None else score for side in sides)
    if new != old:
        return "fix" if new > old else "regression"
    return "both-right" if new >= highest else "both-wrong"


def choose_rows(rows: Sequence[Row], limit: int = SHOWN) -> list[Row]:
    """Choose at most `limit` rows to show, in the order of KINDS."""
    chosen: dict[str, Row] = {}
    for everything in (False, True):
        for tag in KINDS:
            tagged = _in_turns(row for row in rows if tag in row.tags)
            members = [row for row in tagged if row.prediction.id not in chosen]
            room = limit - len(chosen)
            for row in members[: room if everything else min(room, QUOTAS.get(tag, 0))]:
                chosen[row.prediction.id] = row
    order = list(KINDS)
    return sorted(chosen.values(), key=lambda row: (min(order.index(tag) for tag in row.tags), *_rank(row)))


def _rank(row: Row) -> tuple[float, str]:
    return -row.surprise, row.prediction.id


def _in_turns(rows: Iterable[Row]) -> list[Row]:
    """Interleave the agents, each from its most surprising row on, so that a large agent does not hide a small one."""
    by_agent: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_rank):
        by_agent[row.prediction.agent].append(row)
    turns = zip_longest(*(by_agent[agent] for agent in sorted(by_agent)))
    return [row for row in chain.from_iterable(turns) if row is not None]


def show_examples(predictions: Sequence[Prediction], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the template's data: the rows, and how many of each kind are shown out of how many."""
    rows = tag_predictions(predictions, metrics)
    chosen = choose_rows(rows)
    total = Counter(tag for row in rows for tag in row.tags)
    shown = Counter(tag for row in chosen for tag in row.tags)
    kinds = ((tag, label) for tag, label in KINDS.items() if total[tag])
    filters = [{"tag": tag, "label": label, "shown": shown[tag], "total": total[tag]} for tag, label in kinds]
    agents = sorted({name(row.prediction.agent) for row in chosen})
    shown_rows = [_show(row) for row in chosen]
    return {"rows": shown_rows, "total": len(rows), "filters": filters, "agents": agents, "rule": RULE}


def _show(row: Row) -> dict[str, Any]:
    item = row.prediction
    return {
        "id": name(item.id),
        "agent": name(item.agent),
        "kind": row.kind,
        "label": "not scored" if row.kind == "unscored" else row.kind.replace("-", " "),
        "tags": " ".join(sorted(row.tags)),
        "extra": [tag for tag in ("failed", "cut") if tag in row.tags],
        "prompt": shortened(item.prompt, PROMPT_LETTERS),
        "reference": shortened(item.reference, ANSWER_LETTERS),
        "about": _gist(item.prompt),
        "gist": [_gist(item.reference), _gist(item.candidate.text) if item.candidate.failed is None else "(no answer)"],
        "sides": [_side("baseline", item.baseline), _side("candidate", item.candidate)],
    }


def _gist(text: str) -> str:
    plain = " ".join(text[: 4 * GIST_LETTERS].split())
    return (plain[:GIST_LETTERS] + ("…" if len(plain) > GIST_LETTERS else "")) or "(empty)"


def _side(side: str, answer: Answer) -> dict[str, Any]:
    facts = [] if answer.tokens is None else [f"{answer.tokens:,} tokens"]
    facts += ["cut off"] if answer.finished is False else []
    facts += [f"{name(key)} {'not scored' if score is None else f'{score:g}'}" for key, score in answer.scores.items()]
    if answer.reference_nll is not None:
        facts.append(f"reference {figure(answer.reference_nll)} nats")
    failed = None if answer.failed is None else shortened(answer.failed, 300)
    text = shortened(answer.text, ANSWER_LETTERS)
    return {"side": side, "text": text, "failed": failed, "facts": facts}
