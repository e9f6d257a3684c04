"""Artificial evidence for the gate: right and wrong answers, latencies around a mean, criteria."""

from collections.abc import Sequence
from typing import Any

from finetune.config.criteria import (
    AtLeast,
    AtMost,
    BetterThanBaseline,
    Criterion,
    LatencyAtMost,
    LatencyQuantileAtMost,
    MemoryAtMost,
    NotWorseThanBaseline,
)
from finetune.config.scorers import Metric, metrics_of
from finetune.decide.criteria import Evidence, judge
from finetune.decide.outcomes import Outcome
from finetune.records.examples import Answer, Prediction, Timing
from finetune.statistics.decision import Gate, Status

GATE = Gate("interval", 0.95, seed=1)
POINT = Gate("point", 0.95, seed=1)
PEAKS = (10**9, 10**9 + 1, 10**9 - 1)
METRICS = {
    "exact_match": Metric("exact_match", "binary", "exact_match"),
    "classes.accuracy": Metric("classes.accuracy", "binary", "exact_match"),
    "classes.macro_f1": Metric("classes.macro_f1", "macro_f1", "classes.accuracy"),
    "overlap": Metric("overlap", "mean", "overlap"),
    **metrics_of({}),
}


def answered(text: str, reference: str, *, overlap: float | None = None, nats: float | None = 1.0) -> Answer:
    """Return a scored answer; `overlap` is a score between 0 and 1."""
    right = float(text == reference)
    scores = {"exact_match": right, "classes.accuracy": right, "overlap": right if overlap is None else overlap}
    return Answer(text, 3, finished=True, reference_nll=nats, scores=dict(scores), labels={"classes": text})


def predicted(
    candidate: str, baseline: str, *, id: str, reference: str = "ValueError", cluster: str | None = None, **fields: Any
) -> Prediction:
    """Return both sides' answers to one example, which is its own cluster by default."""
    sides = {name: fields.pop(name, {}) for name in ("of_candidate", "of_baseline")}
    return Prediction(
        **{"agent": "namer", "source": "rows", "prompt": "message: invalid mode", "reference_tokens": 3} | fields,
        id=id,
        cluster=cluster or id,
        reference=reference,
        candidate=answered(candidate, reference, **sides["of_candidate"]),
        baseline=answered(baseline, reference, **sides["of_baseline"]),
    )


def pairs(both: int = 0, gained: int = 0, lost: int = 0, neither: int = 0, **fields: Any) -> list[Prediction]:
    """Return this many examples that both sides got right, only the candidate, only the baseline, or neither."""
    kinds = [(True, True)] * both + [(True, False)] * gained + [(False, True)] * lost + [(False, False)] * neither
    words = {True: "ValueError", False: "wrong"}
    agent = fields.get("agent", "namer")
    return [
        predicted(words[mine], words[theirs], id=f"{agent}-{at}", **fields) for at, (mine, theirs) in enumerate(kinds)
    ]


def classes(n: int, candidate: int, baseline: int) -> list[Prediction]:
    """`classes(60, candidate=12, baseline=30)`: return 60 answers of three classes, with this many wrong ones."""
    names = ["KeyError", "TypeError", "ValueError"]
    wrong = [{*range(0, n, max(n // count, 1))} if count else set() for count in (candidate, baseline)]
    return [
        predicted(
            names[(at + 1) % 3] if at in wrong[0] else names[at % 3],
            names[(at + 2) % 3] if at in wrong[1] else names[at % 3],
            id=f"{at}",
            reference=names[at % 3],
        )
        for at in range(n)
    ]


def timings(candidate: float, baseline: float = 1.0, count: int = 30) -> list[Timing]:
    """Return latencies around two means (± 10% in different cycles), as a real clock would measure."""
    spread = [1 + 0.02 * (at % 11 - 5) for at in range(count)]
    shift = sum(spread) / count
    return [
        Timing(f"{at}", baseline * spread[-1 - at] / shift, 0.1, 3, candidate * spread[at] / shift, 0.1, 3)
        for at in range(count)
    ]


def evidence(
    predictions: Sequence[Prediction] = (),
    latency: Any = (),
    memory: Sequence[int] = PEAKS,
    recorded: str | None = None,
) -> Evidence:
    """Return the evidence that the gate judges."""
    return Evidence(predictions, latency, memory, METRICS, recorded)


def outcome(criterion: Criterion, predictions: Sequence[Prediction] = (), gate: Gate = GATE, **cost: Any) -> Outcome:
    """Return the outcome of a criterion that has one."""
    (found,) = judge(criterion, evidence(predictions, **cost), gate)
    return found


def status(criterion: Criterion, predictions: Sequence[Prediction] = (), gate: Gate = GATE, **cost: Any) -> Status:
    """Return the status of a criterion with one outcome."""
    return outcome(criterion, predictions, gate, **cost).status


def at_least(threshold: float, metric: str = "exact_match", group: str = "all") -> AtLeast:
    """Require that the metric is at least this."""
    return AtLeast(rule="at_least", metric=metric, group=group, threshold=threshold)


def at_most(threshold: float, metric: str = "loss", group: str = "all") -> AtMost:
    """Require that the metric is at most this."""
    return AtMost(rule="at_most", metric=metric, group=group, threshold=threshold)


def better(metric: str = "exact_match", group: str = "all") -> BetterThanBaseline:
    """Require that the metric is better than the baseline's."""
    return BetterThanBaseline(rule="better_than_baseline", metric=metric, group=group)


def not_worse(margin: float, metric: str = "exact_match") -> NotWorseThanBaseline:
    """Require that the metric is not worse than the baseline's by this margin."""
    return NotWorseThanBaseline(rule="not_worse_than_baseline", metric=metric, group="all", margin=margin)


def latency(seconds: float, improvement: float | None = None) -> LatencyAtMost:
    """Require that the mean latency is below this."""
    return LatencyAtMost(rule="latency_at_most", seconds=seconds, improvement=improvement)


def quantile(seconds: float, q: float = 0.95) -> LatencyQuantileAtMost:
    """Require that this share of the answers is generated within this number of seconds."""
    return LatencyQuantileAtMost(rule="latency_quantile_at_most", quantile=q, seconds=seconds)


def memory(limit: str) -> MemoryAtMost:
    """Require that the peak memory is at most this."""
    return MemoryAtMost(rule="memory_at_most", limit=limit)
