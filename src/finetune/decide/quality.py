"""Judge a criterion on the answers: choose the interval or test by metric, rule and whether examples repeat.

Right-or-wrong scores get exact intervals, score intervals and McNemar's test. Means and metrics of the complete set get
a bootstrap that resamples both sides of an example together. Rows of one conversation and repetitions of one prompt are
not independent, so they are resampled, permuted and counted as one cluster.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from finetune.config.criteria import QualityCriterion
from finetune.config.scorers import Metric
from finetune.decide.outcomes import Outcome, conclude, unmeasured
from finetune.records.examples import Prediction
from finetune.score.metrics import UnmeasuredError, counted, scores_of, statistic_of
from finetune.statistics.bootstrap import mean_interval, paired_mean_difference, resample
from finetune.statistics.clustered import clustered_difference, clustered_proportion, paired_permutation
from finetune.statistics.decision import Gate, Measurement
from finetune.statistics.proportions import mcnemar_exact

BOUNDS: tuple[Literal["lower"], Literal["upper"]] = ("lower", "upper")
ONE_WILL_DO = 1  # examples that differ from the most common value; enough for a metric of one model (see `resample`)


def judge_quality(
    criterion: QualityCriterion, metric: Metric, predictions: Sequence[Prediction], gate: Gate
) -> Outcome:
    """Judge a criterion on a metric of a group; unmeasured without scored examples or if a score is missing."""
    members = counted(metric, predictions, criterion.group)
    if not members:
        scored = any(item.in_group(criterion.group) for item in predictions)
        what = f"{criterion.metric} has no scores for test examples of" if scored else "no test example belongs to"
        return unmeasured(criterion, "quality", criterion.target, f"{what} {criterion.group}")
    try:
        found = measure(metric, members, gate, alone=not criterion.compared)
    except (UnmeasuredError, ValueError) as error:
        return unmeasured(criterion, "quality", criterion.target, str(error))
    reason = found.seen
    if criterion.by_test and found.better is not None:
        test = "exact McNemar" if metric.kind == "binary" and not repeated(members) else "paired permutation"
        reason += f"; {test} p = {found.better:.2g}, required: below {1 - gate.confidence:.3g}"
    status = criterion.status(found, gate)
    return conclude(criterion, "quality", status, criterion.target, found.lower, found.upper, reason)


def measure(metric: Metric, members: Sequence[Prediction], gate: Gate, *, alone: bool) -> Measurement:
    """Bound the candidate's metric or (not `alone`) its gain on the baseline, in which higher is better."""
    if metric.kind == "binary":
        return measure_right(metric, members, gate, alone=alone)
    if metric.kind == "mean":
        return measure_mean(metric, members, gate, alone=alone)
    return measure_whole(metric, members, gate, alone=alone)


def measure_right(metric: Metric, members: Sequence[Prediction], gate: Gate, *, alone: bool) -> Measurement:
    """Bound a proportion of right answers: exact interval, paired score interval, exact McNemar test."""
    n, clusters = len(members), labels_of(members)
    candidate = [score > 0 for score in scores_of(metric, members, "candidate")]
    if alone:
        lower, upper = (clustered_proportion(candidate, clusters, gate.confidence, side) for side in BOUNDS)
        return Measurement(lower, upper, f"{sum(candidate)} of {n} correct{in_clusters(members)}")
    baseline = [score > 0 for score in scores_of(metric, members, "baseline")]
    gained = sum(mine and not theirs for mine, theirs in zip(candidate, baseline, strict=True))
    lost = sum(theirs and not mine for mine, theirs in zip(candidate, baseline, strict=True))
    lower, upper = (clustered_difference(candidate, baseline, clusters, gate.confidence, side) for side in BOUNDS)
    seen = (
        f"{gained} of {n}{in_clusters(members)} answered correctly only by the candidate, {lost} only by the baseline"
    )
    exact = not repeated(members)
    better, worse = (
        mcnemar_exact(gained, lost, side)
        if exact
        else paired_permutation(candidate, baseline, side, gate.seed, clusters)
        for side in ("greater", "less")
    )
    return Measurement(lower, upper, seen, better, worse, exact)


def measure_mean(metric: Metric, members: Sequence[Prediction], gate: Gate, *, alone: bool) -> Measurement:
    """Bound a mean of scores, or its paired difference with a permutation test."""
    clusters = labels_of(members) if repeated(members) else None
    candidate = scores_of(metric, members, "candidate")
    mean = float(np.mean(candidate))
    if alone:
        ends = (metric.lowest, metric.highest)
        lower, upper = (mean_interval(candidate, gate.confidence, side, gate.seed, clusters, ends) for side in BOUNDS)
        return Measurement(lower, upper, f"mean {mean:.3f} of {len(members)} examples{in_clusters(members)}")
    baseline = scores_of(metric, members, "baseline")
    width = metric.highest - metric.lowest
    lower, upper = (
        paired_mean_difference(candidate, baseline, gate.confidence, side, gate.seed, clusters, (-width, width))
        for side in BOUNDS
    )
    better, worse = (paired_permutation(candidate, baseline, side, gate.seed, clusters) for side in ("greater", "less"))
    seen = f"candidate {mean:.3f}, baseline {float(np.mean(baseline)):.3f}, {len(members)} examples"
    return Measurement(lower, upper, f"{seen}{in_clusters(members)}", better, worse)


def measure_whole(metric: Metric, members: Sequence[Prediction], gate: Gate, *, alone: bool) -> Measurement:
    """Bound a metric of the complete set, or the candidate's gain in it, by a bootstrap stratified by agent."""
    candidate = statistic_of(metric, members, "candidate")
    baseline = None if alone else statistic_of(metric, members, "baseline")
    sign = 1.0 if metric.higher_is_better else -1.0

    def statistic(weights: Any) -> float:
        return candidate(weights) if baseline is None else sign * (candidate(weights) - baseline(weights))

    width = metric.highest - metric.lowest
    lower, upper = (
        resample(
            statistic,
            len(members),
            gate.confidence,
            side,
            gate.seed,
            strata=strata_of(members),
            clusters=labels_of(members) if repeated(members) else None,
            bounds=(metric.lowest, metric.highest) if alone else (-width, width),
            **({"minimum_unlike": ONE_WILL_DO} if alone else {}),
        )
        for side in BOUNDS
    )
    ones = np.ones(len(members))
    seen = f"candidate {candidate(ones):.3f}"
    if baseline is not None:
        seen += f", baseline {baseline(ones):.3f}"
    return Measurement(lower, upper, f"{seen}, {len(members)} examples{in_clusters(members)}")


def labels_of(members: Sequence[Prediction]) -> list[str]:
    """Return the cluster of each example."""
    return [item.cluster for item in members]


def strata_of(members: Sequence[Prediction]) -> list[str] | None:
    """Return the agent of each example; None if a cluster has several, because it is resampled as a unit."""
    agents: dict[str, set[str]] = {}
    for item in members:
        agents.setdefault(item.cluster, set()).add(item.agent)
    return None if any(len(found) > 1 for found in agents.values()) else [item.agent for item in members]


def repeated(members: Sequence[Prediction]) -> bool:
    """Return whether some examples belong to the same cluster."""
    return len(set(labels_of(members))) < len(members)


def in_clusters(members: Sequence[Prediction]) -> str:
    """State the number of independent clusters if it differs from the number of examples."""
    return f" in {len(set(labels_of(members)))} clusters" if repeated(members) else ""


def is_significant(
    metric: Metric, members: Sequence[Prediction], gate: Gate, direction: Literal["better", "worse"]
) -> str | None:
    """Describe the evidence that the candidate is better or worse than the baseline; None if there is none."""
    if not members:
        return None
    try:
        found = measure(metric, members, gate, alone=False)
    except (UnmeasuredError, ValueError):
        return None
    if not (found.is_better(gate) if direction == "better" else found.is_worse(gate)):
        return None
    p = found.better if direction == "better" else found.worse
    return found.seen if p is None else f"{found.seen} (p = {p:.2g})"
